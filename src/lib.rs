//! A drop-in `flanneld` for Linux: every host leases one subnet of an overlay network from etcd, and
//! container packets travel between hosts as bare IPv4 packets inside UDP datagrams.
//!
//! # The map
//!
//! ```text
//!    container                                                                             peers
//!        │ IP                                                                                │ UDP
//!  ┌─────▼─────┐ read  ┌────────────────── engine/worker, one per core ─────────────────┐ ┌──▼──────┐
//!  │   tun/    ├──────►│ tun_to_udp: vnet hdr → route.lookup → ttl → segment → batch ──┼►│  udp/   │
//!  │ one queue │◄──────┤ udp_to_tun: coalesce ← ttl ← source check ← split by stride ◄─┼─┤ one sock│
//!  └───────────┘ write │ one ring (or one poll loop) carries all four                   │ └─────────┘
//!                      └────────▲─────────────────────────────────────────┬─────────────┘
//!              RouteCommand, Stop: bounded, wake-up                counters: read-only
//!                      ┌────────┴───────────────── control thread ────────▼─────────────┐
//!  etcd v2/v3 ─watch─► │ etcd/ ──► lease/ ──► Event ──► backend/{udp|vxlan|host_gw|…}   │ ─netlink─► kernel
//!                      └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Rooms, in the order in which a packet meets them, then the control path:
//!
//! | room | what it knows |
//! |---|---|
//! | [`log`] | what may be said, and how often |
//! | [`report`] | how the daemon is, as plain values |
//! | [`packet`] | what the bytes mean: IPv4, TCP, UDP, ICMP, checksum, virtio-net header |
//! | [`offload`] | shapes of many packets: segment, coalesce, batch |
//! | [`route`] | which peer owns an address |
//! | [`ring`] | the kernel's queues: io_uring, provided buffers, in-flight slots, wake-up |
//! | [`tun`] | the TUN device: open, queues, offloads |
//! | [`udp`] | the UDP socket: bind, sizes, `UDP_SEGMENT` and `UDP_GRO` |
//! | [`bpf`] | programs that the kernel runs: instructions, loader, the steering of TUN queues |
//! | [`engine`] | joins the rooms above: worker, `tun_to_udp`, `udp_to_tun`, port, counters |
//! | [`subnet`] | flannel's contract as values: config, lease, allocation, `subnet.env` |
//! | [`store`] | flannel's contract with a store, and one inside this process |
//! | [`etcd`] | etcd as a store: v2, v3 |
//! | [`lease`] | the lease's life, without I/O |
//! | [`membership`] | who is in the network, from wherever |
//! | [`netlink`] | the kernel's links, addresses, routes, neighbours |
//! | [`iface`] | which interface carries the overlay |
//! | [`masq`] | masquerade and forward rules, in iptables or nftables |
//! | [`status`] | health, readiness and metrics over HTTP |
//! | [`backend`] | what a lease event does |
//! | [`cli`] | what was typed and what it means |
//! | [`daemon`] | puts the two paths together; start, signals, stop |
//!
//! Start reading at [`engine`] for packets, at [`lease`] for subnets, at [`daemon`] for the whole.
//! Rooms import downward only; `tests/tidy.rs` holds the ranks and proves it.

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
