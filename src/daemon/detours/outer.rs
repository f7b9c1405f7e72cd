//! The outer addresses of one network, which a detour may have to lead to, and the routes of the overlay that may swallow
//! them.

use crate::netlink::Swallowed;
use crate::subnet::Config;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Whether the overlay has one route for all, or one for each peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Routes {
    Whole,
    Peers,
    /// The backend makes no routes, or nobody knows which.
    None,
}

/// The outer addresses of one network.
#[derive(Debug)]
pub(super) struct Outer {
    network: Ipv4Net,
    routes: Routes,
    swallowed: Swallowed,
    store: BTreeSet<Ipv4Addr>,
    gateways: BTreeSet<Ipv4Addr>,
    /// The PublicIP of each peer, by its subnet.
    peers: BTreeMap<Ipv4Net, Ipv4Addr>,
    /// The same, by the PublicIP.
    hosts: BTreeSet<(Ipv4Addr, Ipv4Net)>,
    /// The addresses that are to be looked at, since a change concerns them.
    touched: BTreeSet<Ipv4Addr>,
}

impl Outer {
    /// The addresses of the store in the network of `config`, which has no peer yet.
    pub(super) fn new(config: &Config, store: BTreeSet<Ipv4Addr>) -> Outer {
        let routes = match config.backend.kind.as_str() {
            "udp" => Routes::Whole,
            "vxlan" | "host-gw" => Routes::Peers,
            _ => Routes::None,
        };
        let routed = BTreeSet::from_iter((routes == Routes::Whole).then_some(config.network));
        Outer {
            network: config.network,
            routes,
            swallowed: Swallowed { routed, own: None },
            store,
            gateways: BTreeSet::new(),
            peers: BTreeMap::new(),
            hosts: BTreeSet::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Whether one route of the overlay leads to the whole network.
    pub(super) fn is_whole(&self) -> bool {
        self.routes == Routes::Whole
    }

    /// What the overlay routes.
    pub(super) fn swallowed(&self) -> &Swallowed {
        &self.swallowed
    }

    /// The addresses of the store.
    pub(super) fn store(&self) -> &BTreeSet<Ipv4Addr> {
        &self.store
    }

    /// The store has these addresses from now on; false if it had them before.
    pub(super) fn set_store(&mut self, store: BTreeSet<Ipv4Addr>) -> bool {
        let is_new = self.store != store;
        self.store = store;
        is_new
    }

    /// These are the gateways in the network.
    pub(super) fn set_gateways(&mut self, gateways: BTreeSet<Ipv4Addr>) {
        self.gateways = gateways;
    }

    /// This host has that subnet.
    pub(super) fn set_own(&mut self, subnet: Ipv4Net) {
        self.swallowed.own = Some(subnet);
    }

    /// A peer has come, or has another address.
    pub(super) fn added(&mut self, subnet: Ipv4Net, address: Ipv4Addr) {
        match self.peers.insert(subnet, address) {
            Some(before) if before == address => return,
            Some(before) => self.leaves(subnet, before),
            None => self.turns(subnet, true),
        }
        self.hosts.insert((address, subnet));
        self.touch(address);
    }

    /// A peer has gone.
    pub(super) fn removed(&mut self, subnet: Ipv4Net) {
        if let Some(address) = self.peers.remove(&subnet) {
            self.leaves(subnet, address);
            self.turns(subnet, false);
        }
    }

    fn leaves(&mut self, subnet: Ipv4Net, address: Ipv4Addr) {
        self.hosts.remove(&(address, subnet));
        self.touch(address);
    }

    /// The overlay has a route to the subnet of a peer from now on, or none any more.
    fn turns(&mut self, subnet: Ipv4Net, routed: bool) {
        if self.routes != Routes::Peers {
            return;
        }
        if routed {
            self.swallowed.routed.insert(subnet);
        } else {
            self.swallowed.routed.remove(&subnet);
        }
        let within = self.hosts_in(subnet).chain(self.others().filter(|address| subnet.contains(address)));
        let within: Vec<Ipv4Addr> = within.collect();
        self.touched.extend(within);
    }

    fn touch(&mut self, address: Ipv4Addr) {
        if self.network.contains(&address) {
            self.touched.insert(address);
        }
    }

    /// The PublicIPs of peers in `net`.
    fn hosts_in(&self, net: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
        let (least, most) = (Ipv4Net::default(), Ipv4Net::from(Ipv4Addr::BROADCAST));
        self.hosts.range((net.network(), least)..=(net.broadcast(), most)).map(|(address, _)| *address)
    }

    fn others(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.store.iter().chain(&self.gateways).copied()
    }

    /// Every outer address in the network is to be looked at, and these too.
    pub(super) fn touch_all(&mut self, led: impl Iterator<Item = Ipv4Addr>) {
        let others = self.others().filter(|address| self.network.contains(address));
        let all: Vec<Ipv4Addr> = others.chain(self.hosts_in(self.network)).chain(led).collect();
        self.touched.extend(all);
    }

    /// Whether the address is an outer one in the network.
    pub(super) fn holds(&self, address: Ipv4Addr) -> bool {
        let is_other = self.store.contains(&address) || self.gateways.contains(&address);
        self.network.contains(&address) && (is_other || self.is_peer(address))
    }

    fn is_peer(&self, address: Ipv4Addr) -> bool {
        self.hosts_in(Ipv4Net::from(address)).next().is_some()
    }

    /// Whether some address is to be looked at.
    pub(super) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Takes at most so many of the addresses that are to be looked at.
    pub(super) fn take_touched(&mut self, most: usize) -> BTreeSet<Ipv4Addr> {
        let rest = self.touched.iter().nth(most).copied().map(|first| self.touched.split_off(&first));
        std::mem::replace(&mut self.touched, rest.unwrap_or_default())
    }

    /// An outer address with the reason why it matters.
    pub(super) fn describe(&self, address: Ipv4Addr) -> String {
        let what = if self.store.contains(&address) {
            "of etcd"
        } else if self.is_peer(address) {
            "of a peer"
        } else {
            "of a gateway"
        };
        let around = |len| Some(Ipv4Net::new(address, len).ok()?.trunc());
        let subnet = (0..=32).rev().filter_map(around).find_map(|net| self.peers.get_key_value(&net));
        match subnet {
            Some((net, owner)) => format!("{address} {what} (in {owner}'s subnet {net})"),
            None => format!("{address} {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn outer(kind: &str, store: &str) -> Outer {
        let text = format!(r#"{{"Network":"10.0.0.0/8","Backend":{{"Type":"{kind}"}}}}"#);
        let config = Config::parse(&text).unwrap();
        Outer::new(&config, BTreeSet::from([ip(store)]))
    }

    fn touched(outer: &mut Outer) -> Vec<String> {
        outer.take_touched(usize::MAX).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_change_touches_what_it_concerns_and_nothing_else() {
        let mut udp = outer("udp", "10.9.0.5");
        assert_eq!(udp.swallowed().routed, BTreeSet::from([net("10.0.0.0/8")]));
        for n in 0..=255_u8 {
            udp.added(Ipv4Net::new(Ipv4Addr::new(10, 128, n, 0), 24).unwrap(), Ipv4Addr::new(10, 1, 0, n));
        }
        assert_eq!((udp.take_touched(100).len(), udp.take_touched(100).len()), (100, 100));
        assert_eq!((udp.take_touched(100).len(), udp.is_touched()), (56, false));
        udp.touch_all([ip("10.77.0.1")].into_iter());
        assert_eq!(udp.take_touched(usize::MAX).len(), 258, "the peers, the store and the one that is named");
        udp.added(net("10.128.7.0/24"), ip("10.1.0.7"));
        assert_eq!(touched(&mut udp), [""; 0], "nothing has changed");
        udp.added(net("10.200.1.0/24"), ip("192.0.2.1"));
        assert_eq!(touched(&mut udp), [""; 0], "it lies outside of the network");
        udp.added(net("10.128.7.0/24"), ip("10.1.1.7"));
        assert_eq!(touched(&mut udp), ["10.1.0.7", "10.1.1.7"]);
        assert!(!udp.holds(ip("10.1.0.7")) && udp.holds(ip("10.1.1.7")) && udp.holds(ip("10.9.0.5")));

        let mut vxlan = outer("vxlan", "10.9.0.5");
        vxlan.set_gateways(BTreeSet::from([ip("10.9.0.1"), ip("10.8.0.1")]));
        vxlan.added(net("10.7.0.0/24"), ip("10.9.0.7"));
        vxlan.added(net("10.6.0.0/24"), ip("10.9.0.7"));
        assert_eq!(touched(&mut vxlan), ["10.9.0.7"]);
        vxlan.added(net("10.9.0.0/24"), ip("192.0.2.9"));
        assert_eq!(touched(&mut vxlan), ["10.9.0.1", "10.9.0.5", "10.9.0.7"], "its route swallows these");
        let said = "10.9.0.5 of etcd (in 192.0.2.9's subnet 10.9.0.0/24)";
        assert_eq!(vxlan.describe(ip("10.9.0.5")), said);
        vxlan.removed(net("10.7.0.0/24"));
        assert!(vxlan.holds(ip("10.9.0.7")), "another subnet has this address too");
        vxlan.removed(net("10.6.0.0/24"));
        assert_eq!(touched(&mut vxlan), ["10.9.0.7"]);
        assert!(!vxlan.holds(ip("10.9.0.7")));
    }
}
