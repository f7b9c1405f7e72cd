//! Words of flannel's that people search for and alert on.
//!
//! Each stands at the beginning of a line's text, as in flannel 0.6.2 to 0.28.9; what follows may differ from
//! flannel's. Whoever changes one of these breaks somebody's alert.

/// This host has leased a subnet (0.6.2; the subnet follows).
pub const LEASE_ACQUIRED: &str = "Lease acquired";
/// The lease was renewed (the time of its end follows).
pub const LEASE_RENEWED: &str = "Lease renewed, new expiration";
/// The lease belongs to another host now (since 0.8.0). A lease that was deleted and is asked for again is told of in
/// other words.
pub const LEASE_REVOKED: &str = "Lease has been revoked";
/// A lease with this host's public IP was there already (the subnet and the address follow, then `reusing`).
pub const LEASE_FOUND: &str = "Found lease";
/// When the lease will be renewed (the time until then follows, then `to renew lease`).
pub const RENEWAL_WAITS: &str = "Waiting for";
/// The settings of the store are in order; it was not contacted yet (the store follows; since 0.6.2).
pub const MANAGER_CREATED: &str = "Created subnet manager";
/// The backend carries packets (since 0.10).
pub const BACKEND_RUNS: &str = "Running backend.";
/// The daemon ends because of a signal (since 0.6.2).
pub const EXITING: &str = "Exiting cleanly...";
/// A peer came or changed.
pub const SUBNET_ADDED: &str = "Subnet added";
/// A peer went.
pub const SUBNET_REMOVED: &str = "Subnet removed";
/// The store does not answer, or holds no usable config (the reason follows).
pub const CONFIG_UNAVAILABLE: &str = "Couldn't fetch network config";
/// The network config was read (the backend's type follows).
pub const CONFIG_FOUND: &str = "Found network config - Backend type";
/// `subnet.env` was written (its path follows).
pub const SUBNET_FILE_WRITTEN: &str = "Wrote subnet file to";
/// The external interface was chosen (its name and address follow).
pub const INTERFACE_CHOSEN: &str = "Using interface with name";
/// No interface suits the flags or the default route.
pub const NO_INTERFACE: &str = "Failed to find any valid interface to use";
/// The store's settings can never work.
pub const NO_SUBNET_MANAGER: &str = "Failed to create SubnetManager";
