//! The table against a naive model that walks all rules.

use super::*;
use ipnet::Ipv4Net;
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddrV4};

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn peer(number: u8) -> Peer {
    // Two ports to a host, so that `is_peer` has to count.
    Peer { address: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, number / 2), 8285 + u16::from(number % 2)) }
}

fn owner(table: &RouteTable, address: &str) -> Option<SocketAddrV4> {
    table.lookup(ip(address)).map(|id| table.address(id))
}

/// Keeps all rules in a list, of which the longest that contains an address wins.
#[derive(Default)]
struct Naive(Vec<(Ipv4Net, Peer)>);

impl Naive {
    fn apply(&mut self, command: &RouteCommand) -> bool {
        let (subnet, peer) = match *command {
            RouteCommand::Set { subnet, peer } => (subnet, Some(peer)),
            RouteCommand::Del { subnet } => (subnet, None),
        };
        let before = self.0.len();
        self.0.retain(|(net, _)| *net != subnet);
        let found = before != self.0.len();
        self.0.extend(peer.map(|peer| (subnet, peer)));
        found || peer.is_some()
    }

    fn lookup(&self, address: Ipv4Addr) -> Option<SocketAddrV4> {
        let covering = self.0.iter().filter(|(net, _)| net.contains(&address));
        covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, peer)| peer.address)
    }
}

/// The addresses at which a rule's effect begins and ends, and one inside.
fn edges(subnet: Ipv4Net) -> [Ipv4Addr; 5] {
    let (first, last) = (subnet.network().to_bits(), subnet.broadcast().to_bits());
    [first.wrapping_sub(1), first, first + (last - first) / 2, last, last.wrapping_add(1)]
        .map(Ipv4Addr::from_bits)
}

/// Commands on subnets of `network` of 8 ..= 32 bits, crowded into a few places so that they nest and collide.
fn commands(network: Ipv4Net) -> impl Strategy<Value = Vec<RouteCommand>> {
    let base = network.network().to_bits();
    let host = network.hostmask().to_bits();
    let length = network.prefix_len().max(8)..=32;
    let spread = prop_oneof![Just(0x0001_0203u32), Just(0x0001_0280), Just(0x0042_0001), any::<u32>()];
    let subnet = (spread, 0u32..4, length).prop_map(move |(spread, shift, length)| {
        let address = base | ((spread ^ (shift << 6)) & host);
        Ipv4Net::new(Ipv4Addr::from_bits(address), length).unwrap().trunc()
    });
    let command = (subnet, 0u8..12, any::<bool>()).prop_map(|(subnet, number, set)| match set {
        true => RouteCommand::Set { subnet, peer: peer(number) },
        false => RouteCommand::Del { subnet },
    });
    prop::collection::vec(command, 1..60)
}

fn same_as_naive(network: Ipv4Net, commands: &[RouteCommand]) -> Result<(), TestCaseError> {
    let (mut table, mut naive) = (RouteTable::new(network), Naive::default());
    let mut asked = vec![network.network(), network.broadcast()];
    for command in commands {
        let (RouteCommand::Set { subnet, .. } | RouteCommand::Del { subnet }) = *command;
        prop_assert_eq!(table.apply(command).is_ok(), naive.apply(command), "{:?}", command);
        asked.extend(edges(subnet));
        prop_assert_eq!(table.len(), naive.0.len());
        for &address in &asked {
            let found = table.lookup(address).map(|id| table.address(id));
            prop_assert_eq!(found, naive.lookup(address), "{} after {:?}", address, command);
        }
        for number in 0..12 {
            let host = *peer(number).address.ip();
            prop_assert_eq!(table.is_peer(host), naive.0.iter().any(|(_, peer)| *peer.address.ip() == host));
        }
    }
    for (subnet, _) in naive.0 {
        table.del(subnet).unwrap();
    }
    prop_assert!(table.is_empty());
    prop_assert!(asked.iter().all(|&address| table.lookup(address).is_none()));
    prop_assert!((0..12).all(|number| !table.is_peer(*peer(number).address.ip())));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn network_8_is_as_the_naive_model(commands in commands(net("10.0.0.0/8"))) {
        same_as_naive(net("10.0.0.0/8"), &commands)?;
    }
    #[test]
    fn network_16_is_as_the_naive_model(commands in commands(net("172.31.0.0/16"))) {
        same_as_naive(net("172.31.0.0/16"), &commands)?;
    }
    #[test]
    fn network_21_is_as_the_naive_model(commands in commands(net("10.1.248.0/21"))) {
        same_as_naive(net("10.1.248.0/21"), &commands)?;
    }
    #[test]
    fn network_24_is_as_the_naive_model(commands in commands(net("10.1.2.0/24"))) {
        same_as_naive(net("10.1.2.0/24"), &commands)?;
    }
    #[test]
    fn network_28_is_as_the_naive_model(commands in commands(net("192.168.7.240/28"))) {
        same_as_naive(net("192.168.7.240/28"), &commands)?;
    }
    #[test]
    fn network_32_is_as_the_naive_model(commands in commands(net("255.255.255.255/32"))) {
        same_as_naive(net("255.255.255.255/32"), &commands)?;
    }
}

#[test]
fn the_whole_address_space_is_a_network_too() {
    let mut table = RouteTable::new(net("0.0.0.0/0"));
    table.set(net("255.255.255.255/32"), peer(1)).unwrap();
    table.set(net("0.0.0.0/8"), peer(2)).unwrap();
    assert_eq!(owner(&table, "255.255.255.255"), Some(peer(1).address));
    assert_eq!(owner(&table, "0.1.2.3"), Some(peer(2).address));
    assert_eq!(owner(&table, "1.0.0.0"), None);
}

#[test]
fn subnets_outside_the_network_are_refused() {
    let network = net("10.5.0.0/16");
    let mut table = RouteTable::new(network);
    for outside in ["10.6.0.0/24", "10.4.255.0/24", "10.4.0.0/15", "0.0.0.0/0", "192.168.0.0/24"] {
        let subnet = net(outside);
        assert_eq!(table.set(subnet, peer(1)), Err(RouteError::OutsideNetwork { subnet, network }));
        assert_eq!(table.del(subnet), Err(RouteError::NoRoute { subnet }));
    }
    assert!(table.is_empty());
    assert!(!table.is_peer(*peer(1).address.ip()));
    assert_eq!(owner(&table, "10.6.0.1"), None);
    table.set(network, peer(1)).unwrap();
    assert_eq!(owner(&table, "10.5.255.255"), Some(peer(1).address));
    assert_eq!(owner(&table, "10.6.0.0"), None);
}

#[test]
fn del_uncovers_the_next_shorter_route() {
    let mut table = RouteTable::new(net("10.0.0.0/8"));
    table.set(net("10.1.2.128/25"), peer(25)).unwrap();
    table.set(net("10.1.0.0/16"), peer(16)).unwrap();
    table.set(net("10.1.2.0/24"), peer(24)).unwrap();
    assert_eq!(owner(&table, "10.1.2.200"), Some(peer(25).address));
    table.del(net("10.1.2.0/24")).unwrap();
    assert_eq!(owner(&table, "10.1.2.200"), Some(peer(25).address));
    assert_eq!(owner(&table, "10.1.2.1"), Some(peer(16).address));
    table.del(net("10.1.2.128/25")).unwrap();
    assert_eq!(owner(&table, "10.1.2.200"), Some(peer(16).address));
    assert_eq!(table.del(net("10.1.2.128/25")), Err(RouteError::NoRoute { subnet: net("10.1.2.128/25") }));
}

#[test]
fn host_bits_of_a_subnet_are_ignored() {
    let mut table = RouteTable::new(net("10.9.9.9/8"));
    table.set(net("10.1.2.3/24"), peer(1)).unwrap();
    assert_eq!(owner(&table, "10.1.2.0"), Some(peer(1).address));
    table.del(net("10.1.2.99/24")).unwrap();
    assert!(table.is_empty());
}

#[test]
fn a_peer_keeps_its_id_while_a_route_refers_to_it() {
    let mut table = RouteTable::new(net("10.0.0.0/8"));
    table.set(net("10.1.0.0/24"), peer(1)).unwrap();
    table.set(net("10.2.0.0/24"), peer(1)).unwrap();
    let id = table.lookup(ip("10.1.0.1")).unwrap();
    assert_eq!(table.lookup(ip("10.2.0.1")), Some(id));
    table.set(net("10.1.0.0/24"), peer(2)).unwrap();
    table.set(net("10.3.0.0/24"), peer(3)).unwrap();
    assert_eq!(table.lookup(ip("10.2.0.1")), Some(id));
    table.set(net("10.2.0.0/24"), peer(1)).unwrap();
    assert_eq!(table.lookup(ip("10.2.0.1")), Some(id));
    assert_eq!(table.address(id), peer(1).address);
}

#[test]
fn ids_and_chunks_are_used_again() {
    let mut table = RouteTable::new(net("10.0.0.0/8"));
    for round in 0u32..10_000 {
        let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 | round << 8), 26).unwrap();
        let host = Ipv4Addr::from_bits(0xc000_0000 | round);
        table.set(subnet, Peer { address: SocketAddrV4::new(host, 8285) }).unwrap();
        let id = table.lookup(subnet.network()).unwrap();
        assert_eq!(id, PeerId(0), "round {round}");
        table.del(subnet).unwrap();
    }
    assert_eq!(table.level2_slots(), 256);
}
