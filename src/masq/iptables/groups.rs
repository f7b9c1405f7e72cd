//! The chains of ours and the rules in them, and how such rules are known again.

use super::listing::{Line, Listing};
use crate::masq::rules::{Guard, Rules};
use crate::netlink::OVERLAY_DEVICES;
use ipnet::Ipv4Net;

/// The chain of the forward rules, which has flannel's name.
pub(super) const FORWARD_CHAIN: &str = "FLANNEL-FWD";
/// The chain of the guard.
pub(in crate::masq) const GUARD_CHAIN: &str = "FLANNEL-GUARD";

/// A chain of ours, the jump that leads to it, and the rules in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) table: &'static str,
    pub(super) builtin: &'static str,
    pub(super) chain: &'static str,
    pub(super) comment: &'static str,
    /// The first rule of the chain. It names no network, and all daemons on this host share it.
    pub(super) head: Option<String>,
    /// The rules of this network, in order. There are none if they are not wanted.
    pub(super) body: Vec<String>,
}

impl Group {
    /// The rule in the built-in chain that leads to this chain.
    pub(super) fn jump(&self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment, self.chain)
    }

    /// Whether this rule is the jump, with or without its comment.
    pub(super) fn is_jump(&self, line: &Line<'_>) -> bool {
        let is_here = (line.table, line.chain) == (self.table, self.builtin);
        is_here && (line.is(&self.jump()) || line.is_bare(&self.jump()))
    }

    /// Whether this rule of the chain is its head, with or without its comment.
    pub(super) fn is_head(&self, line: &Line<'_>) -> bool {
        self.head.as_ref().is_some_and(|head| line.is(head) || line.is_bare(head))
    }

    /// Whether this rule of the chain was written for one of these networks: it carries our comment, or it is one of our
    /// rules word for word and has lost its comment.
    pub(super) fn is_ours(&self, line: &Line<'_>, networks: &[Ipv4Net]) -> bool {
        line.is_of(self.comment, networks) || self.is_bare_rule(line, networks)
    }

    fn is_bare_rule(&self, line: &Line<'_>, networks: &[Ipv4Net]) -> bool {
        let words = line.words();
        let subnets: Vec<Ipv4Net> = words.iter().filter_map(|word| word.parse().ok()).collect();
        let port = words.windows(2).find(|pair| pair[0] == "--dport").and_then(|pair| pair[1].parse().ok());
        let in_group = |rules: Rules| groups(&rules).into_iter().find(|group| group.chain == self.chain);
        networks.iter().any(|network| {
            let within = subnets.iter().filter(|subnet| network.contains(*subnet));
            let rules =
                within.flat_map(|subnet| [true, false].map(|either| every(*network, *subnet, port, either)));
            rules.filter_map(in_group).any(|group| group.body.iter().any(|spec| line.is_bare(spec)))
        })
    }
}

/// All rules that a host can have. Two of them have two forms, and `either` chooses.
fn every(network: Ipv4Net, subnet: Ipv4Net, port: Option<u16>, either: bool) -> Rules {
    let guard = port.map(|port| Guard { port, direct: either });
    Rules { network, subnet, masquerade: true, random_fully: either, forward: true, guard }
}

/// The chains of ours, with the rules that belong into them.
pub(super) fn groups(rules: &Rules) -> [Group; 3] {
    let (c, p) = (rules.network, rules.subnet);
    let comment = "-m comment --comment \"flanneld masq\" -j";
    let masquerade = if rules.random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" };
    let masq = [
        format!("-s {p} -d {c} {comment} RETURN"),
        format!("-s {c} -d {p} {comment} RETURN"),
        format!("! -s {c} -d {p} {comment} RETURN"),
        format!("-s {c} ! -d 224.0.0.0/4 {comment} {masquerade}"),
        format!("! -s {c} -d {c} {comment} {masquerade}"),
    ];
    let comment = "-m comment --comment \"flanneld forward\" -j";
    let forward = [format!("-s {c} {comment} ACCEPT"), format!("-d {c} {comment} ACCEPT")];
    let guard = |Guard { port, direct }| {
        let inside = if direct { c } else { p };
        let comment = "-m comment --comment \"flanneld guard\" -j";
        format!("-s {c} ! -d {inside} ! -o {OVERLAY_DEVICES}+ -p udp -m udp --dport {port} {comment} DROP")
    };
    [
        Group {
            table: "nat",
            builtin: "POSTROUTING",
            chain: "FLANNEL-POSTRTG",
            comment: "flanneld masq",
            // This is the mark of kube-proxy, which masquerades such a packet itself.
            head: Some(
                "-m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN".to_owned(),
            ),
            body: if rules.masquerade { masq.to_vec() } else { Vec::new() },
        },
        Group {
            table: "filter",
            builtin: "FORWARD",
            chain: FORWARD_CHAIN,
            comment: "flanneld forward",
            head: None,
            body: if rules.forward { forward.to_vec() } else { Vec::new() },
        },
        // An accept in the table filter, such as Docker's, does not pass by the table mangle.
        Group {
            table: "mangle",
            builtin: "FORWARD",
            chain: GUARD_CHAIN,
            comment: "flanneld guard",
            head: None,
            body: rules.guard.map(guard).into_iter().collect(),
        },
    ]
}

/// The rules that flannel before v0.20 wrote straight into the built-in chain of this group: three in v0.6, four since
/// v0.8, and the two accepts since v0.9.1. The later ones carry a comment. Those without one could be anybody's, so they
/// count only where all of the set are there, and the accepts only where ours take their place.
pub(super) fn left_by_flannel<'a>(
    listing: &Listing<'a>,
    group: &Group,
    networks: &[Ipv4Net],
) -> Vec<Line<'a>> {
    let here: Vec<&Line<'a>> = listing
        .lines
        .iter()
        .filter(|line| (line.table, line.chain) == (group.table, group.builtin) && !group.is_jump(line))
        .collect();
    let commented = here.iter().copied().filter(|line| line.is_of(group.comment, networks));
    let mut left: Vec<Line<'a>> = commented.copied().collect();
    for network in networks {
        let Some(set) = direct_rules(group, *network) else { continue };
        let copies = |spec: &String| here.iter().copied().filter(|line| line.is(spec)).collect::<Vec<_>>();
        let found: Vec<Vec<&Line<'a>>> =
            set.iter().map(|forms| forms.iter().flat_map(copies).collect()).collect();
        if found.iter().any(Vec::is_empty) {
            continue;
        }
        left.extend(found.into_iter().flatten().copied());
        let of_a_subnet = here.iter().copied().filter(|line| is_return_to_a_subnet(line, *network));
        if group.builtin == "POSTROUTING" {
            left.extend(of_a_subnet.copied());
        }
    }
    left
}

/// The rules of which every flannel before v0.20 wrote all, each in the forms that it had.
fn direct_rules(group: &Group, c: Ipv4Net) -> Option<Vec<Vec<String>>> {
    let forms = |spec: String| vec![spec.clone(), format!("{spec} --random-fully")];
    match group.builtin {
        "POSTROUTING" => Some(vec![
            vec![format!("-s {c} -d {c} -j RETURN")],
            forms(format!("-s {c} ! -d 224.0.0.0/4 -j MASQUERADE")),
            forms(format!("! -s {c} -d {c} -j MASQUERADE")),
        ]),
        _ if group.table == "filter" && !group.body.is_empty() => {
            Some(vec![vec![format!("-s {c} -j ACCEPT")], vec![format!("-d {c} -j ACCEPT")]])
        }
        _ => None,
    }
}

/// Whether the rule is `! -s NETWORK -d SUBNET -j RETURN`, which v0.8 to v0.19 wrote.
fn is_return_to_a_subnet(line: &Line<'_>, network: Ipv4Net) -> bool {
    let words = line.words();
    let subnet = words.get(4).and_then(|word| word.parse::<Ipv4Net>().ok());
    subnet.is_some_and(|subnet| {
        network.contains(&subnet) && line.is(&format!("! -s {network} -d {subnet} -j RETURN"))
    })
}
