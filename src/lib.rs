//! A drop-in `flanneld` for Linux: every host leases one subnet of an overlay network from etcd, and
//! container packets travel between hosts as bare IPv4 packets inside UDP datagrams.
//!
//! # The map
//!
//! ```text
//!    container                                                                             peers
//!        │ IP                                                                                │ UDP
//!  ┌─────▼─────┐ read  ┌────────────────── engine/worker, one per core ─────────────────┐ ┌──▼──────┐
//!  │   tun/    ├──────►│ tun_to_udp: vnet hdr → route.lookup → ttl → segment → train ──┼►│  udp/   │
//!  │ one queue │◄──────┤ udp_to_tun: coalesce ← ttl ← source check ← split by stride ◄─┼─┤ one sock│
//!  └───────────┘ write │ one ring (or one poll loop) carries all four                   │ └─────────┘
//!                      └────────▲─────────────────────────────────────────┬─────────────┘
//!              RouteCommand, Stop: bounded, wake-up                counters: read-only
//!                      ┌────────┴───────────────── control thread ────────▼─────────────┐
//!  etcd v2/v3 ─watch─► │ etcd/ ─► lease/ ─► membership/ ─Event─► backend/{udp|vxlan|…}  │ ─netlink─► kernel
//!                      └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Two plain values join the rooms: *who is in the network* ([`subnet::Event`], told by a [`membership::Source`]) and
//! *how things are* ([`report::State`]).
//!
//! | what every room may stand on | what it knows |
//! |---|---|
//! | [`log`] | what may be said, and how often |
//! | [`report`] | how the daemon is, as plain values; every metric |
//! | [`subnet`] | flannel's contract as values: config, lease, event, allocation, `subnet.env` |
//!
//! | packet path: bytes, shapes, descriptors, and what joins them | what it knows |
//! |---|---|
//! | [`packet`] | what the bytes mean: IPv4, TCP, UDP, ICMP, checksum, virtio-net header |
//! | [`offload`] | shapes of many packets: segment, coalesce, batch |
//! | [`route`] | which peer owns an address |
//! | [`ring`] | the kernel's queues: io_uring, provided buffers, in-flight slots, wake-up |
//! | [`tun`] | the TUN device: open, queues, offloads |
//! | [`udp`] | the UDP socket: bind, sizes, `UDP_SEGMENT` and `UDP_GRO` |
//! | [`bpf`] | programs that the kernel runs: instructions, loader, the steering of TUN queues |
//! | [`engine`] | joins the rooms above: worker, `tun_to_udp`, `udp_to_tun`, refusals, port, counters |
//!
//! | control path, from the store to the kernel | what it knows |
//! |---|---|
//! | [`store`] | flannel's contract with a store, and one inside this process |
//! | [`etcd`] | etcd as a store: v2, v3 |
//! | [`lease`] | the lease's life, without I/O |
//! | [`membership`] | who is in the network, from wherever |
//! | [`netlink`] | the kernel's links, addresses, routes, neighbours |
//! | [`arp`] | who has an address on the link |
//! | [`iface`] | which interface carries the overlay |
//! | [`masq`] | masquerade and forward rules, in iptables or nftables |
//! | [`backend`] | what a lease event does |
//! | [`status`] | health, readiness and metrics over HTTP |
//! | [`daemon`] | joins the rooms above; start, signals, stop |
//! | [`cli`] | what was typed and what it means |
//!
//! # Ways through it
//!
//! | what happens | the files, in order |
//! |---|---|
//! | a container's packet leaves | `engine/worker.rs`, `engine/tun_to_udp.rs`, `offload/batch/` |
//! | a peer's packet is let in or refused | `engine/udp_to_tun.rs`, `engine/counters.rs`, `offload/coalesce/` |
//! | a path refuses a segmented send (a *train*: see the words of [`offload`]) | `engine/worker.rs`, `engine/refusals.rs` |
//! | io_uring or poll is chosen, and shown | `engine/start.rs`, `ring/setup.rs`, `status/metrics.rs` |
//! | a peer's lease becomes a route of udp | `lease/watcher.rs`, `backend/udp/peers.rs`, `route/table.rs` |
//! | a route reaches the workers | `backend/udp/mod.rs`, `engine/mod.rs`, `engine/worker.rs` |
//! | this host gets a lease | `lease/manager.rs`, `lease/seek.rs` |
//! | this host loses its lease | `lease/mod.rs` (what that means), `lease/own/gone.rs` (when), `daemon/running.rs` (what follows) |
//! | a counter gets its name and is shown | `engine/counters.rs`, `report/metric.rs`, `status/metrics.rs` |
//! | the daemon starts | `daemon/mod.rs`, `daemon/control.rs`, `daemon/running.rs` |
//! | it starts while the store is away | `daemon/kept.rs`, `membership/cache/`, `lease/manager/without_store.rs` |
//! | SIGTERM, SIGUSR1 | `daemon/signals.rs`, `daemon/running.rs` (which drops the engine), `engine/mod.rs` (where that stops it) |
//! | SIGHUP | `daemon/signals.rs`, `cli/reread.rs`, `daemon/reload.rs`, `etcd/replaceable.rs`, `engine/mod.rs` |
//! | a device, address or route was taken away | `daemon/running.rs`, `backend/mod.rs`, the backend's file |
//! | a flag is read | `cli/flags.rs`, `cli/meaning.rs` (which says where it takes effect), `daemon/settings.rs` |
//! | a flag takes effect in the workers | `engine/settings.rs`, `engine/start.rs` |
//! | a flag takes effect on the device and the sockets | `engine/settings.rs`, `backend/udp/config.rs`, `backend/udp/device.rs` |
//! | another source of membership comes | `membership/mod.rs` says where |
//! | another backend comes | `backend/mod.rs` (the traits and `KINDS`), `backend/alloc.rs` (the smallest) |
//!
//! Rooms import downward only, and no files of a room name each other in a circle; `tests/tidy.rs` holds the ranks
//! and proves both.

#[allow(unsafe_code)] // addresses of packet sockets
pub mod arp;
pub mod backend;
#[allow(unsafe_code)] // bpf(2)
pub mod bpf;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod etcd;
pub mod iface;
pub mod lease;
pub mod log;
pub mod masq;
pub mod membership;
pub mod netlink;
pub mod offload;
pub mod packet;
pub mod report;
#[allow(unsafe_code)] // system calls and memory that the kernel writes
pub mod ring;
pub mod route;
pub mod status;
pub mod store;
pub mod subnet;
#[allow(unsafe_code)] // ioctl on the TUN device
pub mod tun;
#[allow(unsafe_code)] // control messages and sendmmsg/recvmmsg
pub mod udp;
