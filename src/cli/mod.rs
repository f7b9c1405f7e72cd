//! What was typed and what it means.

mod options;

pub use options::{LeaseOptions, LogOptions, OnLeaseLost, Options};
