//! The port, MTU and sockets of the `udp` backend follow from the network config and the flags.

use crate::backend::entries::{clear_routes, tell_unclear};
use crate::backend::{BackendError, Setup};
use crate::engine::{self, MAX_WORKERS, UdpOffload};
use crate::iface::External;
use crate::netlink::{self, Changes, Netlink, Territory};
use crate::subnet::LeaseAttrs;
use crate::udp::{Socket, SocketOptions};
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use tracing::{info, warn};

/// The bytes of the outer IPv4 and UDP headers.
const OVERHEAD: u32 = 28;
/// The largest UDP payload, which is 65 535 bytes less both headers.
const LARGEST_PAYLOAD: u32 = 65_507;
/// The smallest MTU of an IPv4 link (RFC 791).
const LEAST_MTU: u32 = 68;
const _: () = assert!(OVERHEAD + LARGEST_PAYLOAD == u16::MAX as u32 && LEAST_MTU < LARGEST_PAYLOAD);
/// The most workers by default. Up to two cores get one worker, since a second would fight the first for the core that
/// the kernel's half of the work needs; more cores get one worker each up to this number.
const MOST_WORKERS: usize = 4;
const _: () = assert!(MOST_WORKERS <= MAX_WORKERS);

/// The `udp` backend as configured.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Config {
    pub(super) network: Ipv4Net,
    subnet_len: u8,
    /// The number of the external interface.
    external: u32,
    pub(super) port: u16,
    pub(super) bind: Ipv4Addr,
    /// The MTU for containers and of the device.
    pub(super) mtu: u16,
    pub(super) engine: engine::Settings,
    /// How many workers there are. It stays when the number of cores changes, since each has a queue of the device.
    workers: usize,
    pub(super) attrs: LeaseAttrs,
}

impl Config {
    /// Reads the config, and removes the routes that vxlan or host-gw have left before the network became udp's.
    pub(in crate::backend) async fn configure(setup: Setup<'_>) -> Result<Config, BackendError> {
        let Setup { config, external, engine, netlink } = setup;
        let mtu = mtu(external)?;
        let port = config.backend.port()?;
        if port == 0 {
            warn!(
                "network config: Backend.Port 0: as in flannel, the kernel chooses a port, which no peer knows, so no \
                 packet crosses between hosts; leave Port out for the default"
            );
        }
        let mut engine = engine.clone();
        engine::settle_carrier(&mut engine)?;
        let made = Config {
            network: config.network,
            subnet_len: config.subnet_len,
            external: external.index,
            port,
            bind: external.address,
            mtu,
            workers: engine.workers.unwrap_or_else(default_workers),
            engine,
            // udp publishes no type, as flannel does.
            attrs: LeaseAttrs::new(external.public_ip),
        };
        // Which routes by the external interface are an older flannel's is known when the peers are.
        let (changes, error) = made.clear_way(netlink, None).await?;
        if !changes.is_empty() {
            info!("{changes}");
        }
        if let Some(error) = error {
            return Err(error.into());
        }
        Ok(made)
    }

    /// Removes the routes that vxlan or host-gw, ours or an older flannel's, have left. They are narrower than udp's own
    /// route and would lead packets away from it. `hosts`, once they are known, have or had a lease: an older flannel's
    /// host-gw has set routes by them. Returns what was done and the first error.
    pub(super) async fn clear_way(
        &self,
        netlink: &Netlink,
        hosts: Option<&BTreeSet<Ipv4Addr>>,
    ) -> Result<(Changes, Option<netlink::Error>), netlink::Error> {
        let territory = Territory {
            network: self.network,
            subnet_len: self.subnet_len,
            device: None,
            external: Some(self.external),
        };
        let known = |ip| hosts.is_some_and(|hosts| hosts.contains(&ip));
        let found = netlink.survey_routes(territory, true, known, |_| None).await?;
        if hosts.is_some() {
            tell_unclear(&found.unclear);
        }
        // The route of the whole network is udp's own: another daemon's, if it is there.
        let narrower = found.stale.into_iter().filter(|route| route.destination() != self.network);
        Ok(clear_routes(netlink, narrower, self.network).await)
    }

    /// This config over `external`. The MTU stays, unless the link is too narrow for it.
    pub(super) fn over(&self, external: &External) -> Result<Config, BackendError> {
        let attrs = LeaseAttrs { public_ip: external.public_ip, ..self.attrs.clone() };
        let mtu = self.mtu.min(mtu(external)?);
        Ok(Config { external: external.index, bind: external.address, mtu, attrs, ..self.clone() })
    }

    /// Binds one socket to receive on for each worker.
    pub(super) fn receivers(&self) -> Result<Vec<Socket>, BackendError> {
        let address = SocketAddrV4::new(self.bind, self.port);
        if self.workers > 1 {
            // SO_REUSEPORT would share the port with another flanneld of this user; this bind fails if there is one.
            drop(Socket::bind(address, SocketOptions::default())?);
        }
        let options = self.socket_options(self.workers > 1);
        (0..self.workers).map(|_| Ok(Socket::bind(address, options)?)).collect()
    }

    fn socket_options(&self, reuse_port: bool) -> SocketOptions {
        SocketOptions {
            reuse_port,
            receive_buffer: self.engine.receive_buffer,
            send_buffer: self.engine.send_buffer,
            gro: matches!(self.engine.udp_offload, UdpOffload::Auto | UdpOffload::Receive),
        }
    }

    /// The sockets of a worker that receives on `receiver`, and sends from a port of its own or from that one.
    pub(super) fn pair(&self, receiver: &Socket, own_port: bool) -> Result<(Socket, Socket), BackendError> {
        let copy = |socket: &Socket| socket.try_clone().map_err(BackendError::ShareSocket);
        let sender = if !own_port {
            copy(receiver)?
        } else {
            // Nobody reads what is sent to this socket, so it holds as little as the kernel allows.
            let options = SocketOptions { receive_buffer: 1, gro: false, ..self.socket_options(false) };
            Socket::bind(SocketAddrV4::new(self.bind, 0), options)?
        };
        Ok((copy(receiver)?, sender))
    }
}

fn default_workers() -> usize {
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() > 2 => cores.get().min(MOST_WORKERS),
        _ => 1,
    }
}

/// The MTU for containers over that link.
fn mtu(external: &External) -> Result<u16, BackendError> {
    let mtu = external.mtu.saturating_sub(OVERHEAD);
    if mtu < LEAST_MTU {
        return Err(BackendError::Mtu { name: external.name.clone(), mtu: external.mtu });
    }
    // A wider link does not help beyond the largest UDP payload.
    Ok(u16::try_from(mtu.min(LARGEST_PAYLOAD)).unwrap_or(u16::MAX))
}
