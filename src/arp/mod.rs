//! Asking the link who has an address: the ARP probe of RFC 5227.
//!
//! # Theory of operation
//!
//! A probe is an ARP request whose sender address is 0.0.0.0. So no neighbour learns anything from it, and a host that
//! has the address answers even if the one who asks has the address too: a request from that address would be a
//! martian to it. [`who_has`] sends three probes and listens for anything that a MAC that is not ours says from that
//! address. It blocks for a second at most, so it belongs on a thread of its own.
//!
//! A packet socket of ARP's protocol does not see what its own host sends. The kernel writes the Ethernet header.

use libc::sockaddr_ll;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use std::io::{self, ErrorKind, Read};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// `AF_PACKET` and the length of its addresses, in the types that an address has them in.
const FAMILY: libc::sa_family_t = 17;
const ADDRESS_LENGTH: libc::socklen_t = 20;
const _: () =
    assert!(FAMILY as i32 == libc::AF_PACKET && ADDRESS_LENGTH as usize == size_of::<sockaddr_ll>());
/// `ETH_P_ARP` of if_ether.h.
const ETH_P_ARP: u16 = 0x0806;
/// `ARPHRD_ETHER` of if_arp.h: links of other kinds have no ARP, or one of their own.
const ETHERNET: u16 = 1;
/// ARP's number for IPv4, which is Ethernet's.
const ETH_P_IP: u16 = 0x0800;
/// The length of an ARP packet for IPv4 over Ethernet.
const LENGTH: usize = 28;
/// How many probes are sent, and how long we listen after each: RFC 5227 waits longer, for links of its time.
const PROBES: (u32, Duration) = (3, Duration::from_millis(300));

/// The MAC of another host on this link that has `address`. `None` if nobody answers within a second, and if the link is
/// not Ethernet. `link` is the number of the interface; `ours` are the MACs of all interfaces of this host.
///
/// # Errors
/// The process may not open packet sockets (CAP_NET_RAW), or the link is gone or down.
pub fn who_has(link: u32, address: Ipv4Addr, ours: &[[u8; 6]]) -> io::Result<Option<[u8; 6]>> {
    let protocol = Protocol::from(i32::from(ETH_P_ARP.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.bind(&link_address(link, [0; 6]))?;
    let Some(own) = own_mac(&socket)? else { return Ok(None) };
    let (probes, pause) = PROBES;
    for _ in 0..probes {
        socket.send_to(&probe(own, address), &link_address(link, [0xff; 6]))?;
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let mut packet = [0; LENGTH];
            match (&socket).read(&mut packet) {
                Ok(LENGTH) => {
                    let is_ours = |mac: &[u8; 6]| *mac == own || ours.contains(mac);
                    if let Some(mac) = speaker(&packet, address).filter(|mac| !is_ours(mac)) {
                        return Ok(Some(mac));
                    }
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// The probe for `address`: who has it? We say nothing of an address of our own.
fn probe(own: [u8; 6], address: Ipv4Addr) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0..2].copy_from_slice(&ETHERNET.to_be_bytes());
    packet[2..4].copy_from_slice(&ETH_P_IP.to_be_bytes());
    packet[4..8].copy_from_slice(&[6, 4, 0, 1]); // lengths of the addresses; 1: a request
    packet[8..14].copy_from_slice(&own);
    packet[24..28].copy_from_slice(&address.octets());
    packet
}

/// The MAC that says in this packet that it has `address`.
fn speaker(packet: &[u8; LENGTH], address: Ipv4Addr) -> Option<[u8; 6]> {
    let is_ipv4 = packet[2..4] == ETH_P_IP.to_be_bytes() && packet[4..6] == [6, 4];
    if !is_ipv4 || packet[14..18] != address.octets() {
        return None;
    }
    packet[8..14].try_into().ok()
}

/// The address of all who have this MAC on a link.
fn link_address(link: u32, mac: [u8; 6]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll is smaller than the storage, and the zeroes that it holds are a valid one.
    let address = unsafe { storage.view_as::<sockaddr_ll>() };
    address.sll_family = FAMILY;
    address.sll_protocol = ETH_P_ARP.to_be();
    address.sll_ifindex = i32::try_from(link).unwrap_or_default();
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac);
    // SAFETY: the storage holds a sockaddr_ll, whose length this is.
    unsafe { SockAddr::new(storage, ADDRESS_LENGTH) }
}

/// The MAC of the link that the socket is bound to; `None` if it is not Ethernet.
fn own_mac(socket: &Socket) -> io::Result<Option<[u8; 6]>> {
    let bound = socket.local_addr()?;
    if bound.domain() != Domain::PACKET {
        return Ok(None);
    }
    let mut storage = bound.as_storage();
    // SAFETY: the kernel has written a sockaddr_ll there, as the family says.
    let address = unsafe { storage.view_as::<sockaddr_ll>() };
    let is_ethernet = address.sll_hatype == ETHERNET && address.sll_halen == 6;
    let mac = address.sll_addr[..6].try_into().ok();
    Ok(mac.filter(|_| is_ethernet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_as_rfc_5227_has_it() {
        let own = [2, 0, 0, 0, 0, 7];
        let packet = probe(own, Ipv4Addr::new(192, 0, 2, 1));
        let text: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "000108000604000102000000000700000000000000000000c0000201");
        assert_eq!(speaker(&packet, Ipv4Addr::new(192, 0, 2, 1)), None, "it speaks for nobody");
        let mut answer = packet;
        answer[7] = 2;
        answer[14..18].copy_from_slice(&[192, 0, 2, 1]);
        assert_eq!(speaker(&answer, Ipv4Addr::new(192, 0, 2, 1)), Some(own));
        assert_eq!(speaker(&answer, Ipv4Addr::new(192, 0, 2, 2)), None);
    }
}
