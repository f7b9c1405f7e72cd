//! The offload room.
