//! What passes an interface, byte for byte: tcpdump's hexadecimal output, read back.

use super::{Lab, Proc, eventually, secs};
use std::time::Duration;

/// A running capture of IPv4 packets.
pub struct Capture {
    proc: Proc,
}

impl Capture {
    /// Starts a capture and waits until it listens. `direction` is `in`, `out` or `inout`: on `flannel0`, `in` is what
    /// the daemon wrote and `out` what it reads.
    pub fn start(lab: &Lab, ns: &str, device: &str, direction: &str, filter: &str) -> Self {
        let name = format!("tcpdump-{ns}-{device}-{:08x}", super::random());
        let argv = ["tcpdump", "-Z", "root", "-i", device, "-Q", direction];
        let output = ["-n", "-l", "-x", "-s", "0", "-B", "8192", "--immediate-mode", filter];
        let proc = lab.spawn(ns, &name, &[&argv[..], &output[..]].concat());
        proc.wait_text("listening on", secs(10));
        Self { proc }
    }

    /// The packets so far, from the IPv4 header on.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for line in self.proc.text().lines() {
            // `\t0x0010:  0a01 0903 9c40 …` continues a packet, the summary line before it starts one.
            match line.strip_prefix("\t0x").and_then(|l| l.split_once(':')) {
                Some((offset, hex)) => {
                    if offset == "0000" {
                        packets.push(Vec::new());
                    }
                    let hex: String = hex.split_whitespace().collect();
                    packets.last_mut().unwrap().extend(super::ipv4::unhex(&hex));
                }
                None => continue,
            }
        }
        packets
    }

    /// Waits for at least so many packets.
    pub fn at_least(&self, n: usize, limit: Duration) -> Vec<Vec<u8>> {
        eventually(limit, &format!("{n} captured packets; so far {:?}", self.hex()), || {
            let packets = self.packets();
            // A packet is whole when its total length says so.
            let whole =
                |p: &Vec<u8>| p.len() >= 4 && p.len() >= usize::from(u16::from_be_bytes([p[2], p[3]]));
            (packets.len() >= n && packets.iter().take(n).all(whole)).then_some(packets)
        })
    }

    /// The packets of [`Capture::packets`], in hexadecimal.
    pub fn hex(&self) -> Vec<String> {
        self.packets().iter().map(|p| super::ipv4::hex(p)).collect()
    }
}
