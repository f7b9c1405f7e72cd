//! The engine room.

pub mod settings;

pub use settings::*;
