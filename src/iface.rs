//! Choice of the external interface.
