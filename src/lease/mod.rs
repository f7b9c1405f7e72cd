//! The lease room.
