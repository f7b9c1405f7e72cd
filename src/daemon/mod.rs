//! The daemon room.

pub mod leases;
