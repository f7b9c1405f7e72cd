//! Masquerade and forward rules: what leaves the overlay gets the host's address, and what belongs to the
//! overlay may be forwarded.
//!
//! Theory of operation. [`Rules`] says what should be there; it is a value, made from the network, this host's
//! subnet and the flags. Two flavours turn it into text: `iptables.rs` for `iptables-restore`,
//! `nftables.rs` for `nft -f`. Each reads what is there, and writes nothing if that is right; else the whole difference goes
//! to the kernel in one step. The [`Keeper`] is a thread of its own that does so when the subnet changes and then
//! every resync period; a slow `iptables-save` on a host with many rules delays neither packets nor the lease.
//!
//! Rules of others are never touched, also not inside the chains that flannel's name is on: several daemons on
//! one host, each with its own network, share them. A rule is ours if it stands in such a chain, carries flannel's
//! comment, and names our network or the one of the `subnet.env` that we found. So what an earlier
//! run left for another subnet goes, whatever its flags were. In the nftables flavour the whole table is ours; where
//! one of another network has flannel's table, ours gets a name of its own (`nftables.rs`).
//!
//! Rules stay when the daemon ends, as with flannel: containers outlive it. `--cleanup-on-exit` removes them.
//!
//! Where this differs from flannel v0.28, on purpose:
//!
//! - Its nftables rule `saddr != subnet daddr network return` is not what its iptables rule says and makes the
//!   last rule unreachable for most packets. Both flavours say `saddr != network daddr subnet return` here. Its
//!   mark rule compares the whole mark; ours looks at bit 0x4000 in both flavours.
//! - It never compares nftables rules after the start, and empties that table when it stops.
//! - It looks for `FLANNEL-FWD` in table nat when it cleans the unused flavour; the chain is in filter.
//! - It does not start without `br_netfilter`. Here that is a warning.
//!
//! An accept in the nftables table ends that table's chain only: it does not lift a drop in another table, such as
//! Docker's `FORWARD` policy. The iptables flavour does.

mod command;
mod iptables;
mod keeper;
mod nftables;
mod rules;

pub use keeper::Keeper;
pub use rules::Rules;

use std::time::Duration;

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Masquerade what leaves the overlay (`-ip-masq`).
    pub masquerade: bool,
    /// Masquerade with random source ports where that is possible: it avoids port clashes of connections that
    /// start at the same moment.
    pub random_fully: bool,
    /// Accept forwarded packets of the overlay (`-iptables-forward-rules`).
    pub forward: bool,
    /// How often the rules and the blackhole route are compared with what is there.
    pub resync: Duration,
    /// Keep a blackhole route for this host's subnet. The routes room does it; it is set here since it goes by
    /// the same period and the same end.
    pub blackhole: bool,
    /// Remove all of it at the daemon's end.
    pub cleanup_on_exit: bool,
}

impl Default for Settings {
    /// flannel's defaults.
    fn default() -> Self {
        Settings {
            masquerade: false,
            random_fully: true,
            forward: true,
            resync: Duration::from_secs(5),
            blackhole: false,
            cleanup_on_exit: false,
        }
    }
}

/// Who writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-restore` and `iptables-save`, of whichever backend (nf_tables or legacy) the host uses.
    Iptables,
    /// `nft`, for a network config with `EnableNFTables`.
    Nftables,
}

impl Flavour {
    /// The Debian package, and that of most distributions.
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
    /// No program to write them with.
    #[error("-ip-masq needs the program {program}, which is not here: install the package {package}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// What to install.
        package: &'static str,
    },
    /// The program failed, with its own words.
    #[error("{program}: {reason}")]
    Program {
        /// Its name.
        program: String,
        /// The first lines that it wrote to stderr, or how it ended.
        reason: String,
    },
    /// No thread.
    #[error("cannot start the thread that keeps the rules: {0}")]
    Thread(String),
}
