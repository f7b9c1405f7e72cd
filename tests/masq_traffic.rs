//! Promise: a container reaches the world with its host's address and its peers with its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod lab;

use lab::{Api, Lab, Tool, secs};

#[test]
#[ignore = "a tool of the lab, not a test"]
fn tool_entry() {
    lab::tools::entry();
}

/// The address that a datagram to this socket comes from.
fn source(socket: &Tool, sender: &mut Tool, to: &str) -> String {
    let mut said = String::new();
    for _ in 0..10 {
        // The first datagram may wait for ARP.
        sender.write(&format!("{to} 01"));
        if let Some((_, line)) = socket.maybe_line(secs(1)) {
            said = line;
            break;
        }
    }
    said.split(':').next().unwrap_or_default().to_owned()
}

fn flavour(nftables: bool) {
    if !lab::has_firewall_tools() {
        return;
    }
    let Some(lab) = Lab::start(2) else { return };
    lab.put_config(
        Api::V3,
        &format!(r#"{{"Network":"10.5.0.0/16","EnableNFTables":{nftables},"Backend":{{"Type":"udp"}}}}"#),
    );
    if !nftables {
        // Docker sets this policy; the forward rules are what lets packets through.
        for i in [1, 2] {
            lab.run(&lab.host(i), &["/usr/sbin/iptables", "-P", "FORWARD", "DROP"]);
        }
    }
    let mut daemons = [lab.daemon(1, &["-ip-masq"]), lab.daemon(2, &["-ip-masq"])];
    let subnets = [daemons[0].subnet(), daemons[1].subnet()];
    let ends = [lab.container(1, &subnets[0]), lab.container(2, &subnets[1])];
    lab.reaches(&ends[0].ns, ends[1].addr, secs(5));
    lab.reaches(&ends[1].ns, ends[0].addr, secs(5));

    let outside = lab.tool(&lab.ns("sw"), "udp_socket 10.77.0.254:4000");
    let peer = lab.tool(&ends[1].ns, &format!("udp_socket {}:4000", ends[1].addr));
    let mut sender = lab.tool(&ends[0].ns, &format!("udp_socket {}:4000", ends[0].addr));
    assert_eq!(source(&outside, &mut sender, "10.77.0.254:4000"), "10.77.0.1", "to the outside");
    assert_eq!(
        source(&peer, &mut sender, &format!("{}:4000", ends[1].addr)),
        ends[0].addr.to_string(),
        "to a peer"
    );
    // Answers find their way back.
    lab.reaches(&ends[0].ns, "10.77.0.254".parse().unwrap(), secs(2));
}

#[test]
fn masquerade_to_the_outside_and_none_between_containers_with_iptables() {
    flavour(false);
}

#[test]
fn masquerade_to_the_outside_and_none_between_containers_with_nftables() {
    flavour(true);
}
