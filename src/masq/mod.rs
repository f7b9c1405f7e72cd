//! Masquerade and forward rules: a packet that leaves the overlay gets the address of the host, and a packet of the
//! overlay may be forwarded.
//!
//! Theory of operation. [`Rules`] says which rules should exist. It is a value, made from the network, the subnet of
//! this host and the flags. Two flavours turn it into text: `iptables/` for `iptables-restore`, `nftables.rs` for
//! `nft -f`. Each reads the present rules. If they are right, it writes nothing; if not, it hands the whole difference
//! to the kernel in one step. The [`Keeper`] is a thread of its own that does so when the subnet changes, and then once
//! every resync period. So a slow `iptables-save` on a host with many rules delays neither packets nor the lease.
//!
//! Rules of others are never touched, not even inside the chains that flannel has named: several daemons on one host,
//! each with its own network, share those chains. A rule is ours if it stands in such a chain, carries flannel's
//! comment, and names our network or the one of the `subnet.env` that we found. So rules that an earlier run left for
//! another subnet are removed, whatever its flags were. In the nftables flavour the whole table is ours. If flannel's
//! table belongs to another network already, our table gets a name of its own (`nftables.rs`).
//!
//! As with flannel, rules stay when the daemon ends, because containers outlive it. `--cleanup-on-exit` removes them.
//!
//! Where this differs from flannel v0.28, on purpose:
//!
//! - flannel's nftables rule `saddr != subnet daddr network return` says something else than its iptables rule, and
//!   makes the last rule unreachable for most packets. Here both flavours say `saddr != network daddr subnet return`.
//!   flannel's mark rule compares the whole mark; ours looks at bit 0x4000 in both flavours.
//! - flannel never compares nftables rules after the start, and empties that table when it stops.
//! - When flannel cleans the unused flavour, it looks for `FLANNEL-FWD` in the table nat; the chain is in filter.
//! - flannel does not start without `br_netfilter`. Here that is a warning.
//!
//! In the nftables flavour, an accept ends only the chain of our table. It does not lift a drop in another table, such
//! as Docker's `FORWARD` policy. So where iptables' own `FORWARD` drops, our accept goes there too. A drop in any other
//! table can only be named (`barriers.rs`).
//!
//! iptables shows nothing of a table that holds rules it does not know. Our rules for such a table are in nft's table,
//! and what earlier runs left in it is removed through nft (`iptables/unseen.rs`).
//!
//! One rule guards the overlay itself. A container may send UDP to the overlay's port of another host. Masquerading,
//! Docker's or ours, would give that packet the address of this host, and the receiver would take it for a packet of
//! the overlay. The rule drops it where packets are forwarded, unless it leaves by the overlay's device or is for this
//! host's own subnet. The packets that this daemon sends itself leave by `OUTPUT`, which the rule does not touch.

mod barriers;
mod command;
mod iptables;
mod keeper;
mod nftables;
mod rules;

pub use keeper::Keeper;
pub use rules::{Guard, Rules};

use ipnet::Ipv4Net;
use std::time::Duration;

/// What the operator asks for by flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Whether packets that leave the overlay are masqueraded (`-ip-masq`).
    pub masquerade: bool,
    /// Whether source ports are drawn at random where that is possible, so that connections that start at the same
    /// moment do not choose the same port.
    pub random_fully: bool,
    /// Whether forwarded packets of the overlay are accepted (`-iptables-forward-rules`).
    pub forward: bool,
    /// Whether packets of containers to the overlay's port of another host are dropped (`--port-guard`).
    pub guard: bool,
    /// The time between two comparisons of the rules and the blackhole route with what is there.
    pub resync: Duration,
    /// Whether this host's subnet gets a blackhole route. The room `netlink` writes it. The setting stands here because
    /// the route is checked in the same period as the rules and removed together with them.
    pub blackhole: bool,
    /// Whether rules and route are removed when the daemon ends.
    pub cleanup_on_exit: bool,
}

impl Default for Settings {
    /// The defaults of flannel's flags.
    fn default() -> Self {
        Settings {
            masquerade: false,
            random_fully: true,
            forward: true,
            guard: true,
            resync: Duration::from_secs(5),
            blackhole: false,
            cleanup_on_exit: false,
        }
    }
}

/// What earlier runs and older versions may have left.
#[derive(Debug, Default)]
struct Past {
    /// Networks of earlier runs; rules for them go.
    networks: Vec<Ipv4Net>,
    /// Whether rules that flannel before v0.20 wrote into the built-in chains go.
    sweep: bool,
}

/// The kind of firewall that the rules are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Rules go through `iptables-restore` and `iptables-save`, whether these use nf_tables or the legacy tables.
    Iptables,
    /// Rules go through `nft`. A network config with `EnableNFTables` asks for it.
    Nftables,
}

impl Flavour {
    /// The package that holds the program in Debian and most other distributions.
    fn package(self) -> &'static str {
        match self {
            Flavour::Iptables => "iptables",
            Flavour::Nftables => "nftables",
        }
    }
}

/// Why rules are not as they should be.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no program to write them with.
    #[error("-ip-masq needs the program {program}, which is not here: install the package {package}")]
    Missing {
        /// The name of the program.
        program: &'static str,
        /// The package to install.
        package: &'static str,
    },
    /// Rules of `nft` in iptables' own tables hide those tables from iptables, and there is no `nft` to write ours with.
    #[error(
        "the table {tables} of iptables holds rules that nft wrote, and iptables shows nothing of such a table: \
         install the package nftables, so that our rules get a table of their own"
    )]
    Hidden {
        /// The names of the tables.
        tables: String,
    },
    /// The program failed.
    #[error("{program}: {reason}")]
    Program {
        /// The name of the program.
        program: String,
        /// The first lines that it wrote to stderr, or how it ended.
        reason: String,
    },
    /// The thread of the keeper could not be started.
    #[error("cannot start the thread that keeps the rules: {0}")]
    Thread(String),
}
