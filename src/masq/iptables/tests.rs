//! The scripts are checked by their exact text, and by their effect in a small model of `iptables-restore --noflush`.

use super::*;
use std::collections::BTreeMap;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn rules() -> Rules {
    Rules {
        network: net("10.10.0.0/16"),
        subnet: net("10.10.5.0/24"),
        masquerade: true,
        random_fully: true,
        forward: true,
        guard: None,
    }
}

/// The script for a host where no earlier run is remembered but these networks.
fn restore(save: &str, rules: &Rules, older: &[Ipv4Net]) -> Option<String> {
    let past = Past { networks: older.to_vec(), sweep: false };
    let listing = Listing::parse(save);
    Some(plan(&listing, rules, &past).script).filter(|script| !script.is_empty())
}

const FRESH: &str = "\
*nat
-N FLANNEL-POSTRTG
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-I FLANNEL-POSTRTG 1 -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.10.5.0/24 -d 10.10.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.10.0.0/16 -d 10.10.5.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.10.0.0/16 -d 10.10.5.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.10.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.10.0.0/16 -d 10.10.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
*filter
-N FLANNEL-FWD
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.10.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.10.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
";

#[test]
fn a_fresh_host_gets_everything() {
    assert_eq!(restore("", &rules(), &[]).as_deref(), Some(FRESH));
    let plain = Rules { random_fully: false, ..rules() };
    assert_eq!(restore("", &plain, &[]).unwrap(), FRESH.replace(" --random-fully", ""));
    assert_eq!(restore("", &rules().none(), &[]), None);
}

/// The chains of a host, with their rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Host(BTreeMap<(String, String), Vec<String>>);

impl Host {
    fn new() -> Self {
        let mut host = Self::default();
        for (table, chain) in [("nat", "POSTROUTING"), ("filter", "FORWARD")] {
            host.0.insert((table.to_owned(), chain.to_owned()), Vec::new());
        }
        host
    }

    fn save(&self) -> String {
        let mut text = String::new();
        for table in ["filter", "nat"] {
            text += &format!("# a comment\n*{table}\n");
            let chains = || self.0.iter().filter(|((of, _), _)| of == table);
            chains().for_each(|((_, chain), _)| text += &format!(":{chain} - [0:0]\n"));
            for ((_, chain), rules) in chains() {
                rules.iter().for_each(|rule| text += &format!("-A {chain} {rule}\n"));
            }
            text += "COMMIT\n";
        }
        text
    }

    fn chain(&mut self, table: &str, chain: &str) -> &mut Vec<String> {
        self.0.get_mut(&(table.to_owned(), chain.to_owned())).expect("a chain")
    }

    fn feed(&mut self, script: &str) {
        let mut table = "";
        for line in script.lines().filter(|line| *line != "COMMIT") {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
                continue;
            }
            if let Some(chain) = line.strip_prefix("-N ") {
                assert!(self.0.insert((table.to_owned(), chain.to_owned()), Vec::new()).is_none(), "{chain}");
                continue;
            }
            let (operation, rest) = line.split_once(' ').unwrap();
            let (chain, spec) = rest.split_once(' ').unwrap_or((rest, ""));
            let rules = self.chain(table, chain);
            match operation {
                "-A" => rules.push(spec.to_owned()),
                "-I" => rules.insert(0, spec.strip_prefix("1 ").unwrap().to_owned()),
                "-D" => {
                    let at = rules.iter().position(|rule| rule == spec).expect("a rule to delete");
                    rules.remove(at);
                }
                "-X" => {
                    assert!(rules.is_empty(), "{chain} is not empty");
                    self.0.remove(&(table.to_owned(), chain.to_owned()));
                }
                other => panic!("{other}"),
            }
        }
    }

    fn apply(&mut self, rules: &Rules, older: &[Ipv4Net]) -> bool {
        let script = restore(&self.save(), rules, older);
        script.iter().for_each(|script| self.feed(script));
        script.is_some()
    }
}

fn with(rules: &Rules) -> Host {
    let mut host = Host::new();
    assert!(host.apply(rules, &[]));
    host
}

#[test]
fn a_second_look_changes_nothing() {
    let mut host = with(&rules());
    assert!(!host.apply(&rules(), &[]));
    // A rule is recognised whichever words the version puts into quotes.
    let unquoted = host.save().replace("0x4000/0x4000", "\"0x4000/0x4000\"");
    assert_eq!(restore(&unquoted, &rules(), &[]), None);
}

#[test]
fn a_missing_doubled_or_misplaced_rule_rebuilds_its_group() {
    let right = with(&rules());
    for (table, chain) in
        [("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD"), ("nat", "POSTROUTING"), ("filter", "FORWARD")]
    {
        for at in 0..right.clone().chain(table, chain).len() {
            let mut host = right.clone();
            let gone = host.chain(table, chain).remove(at);
            assert!(host.apply(&rules(), &[]), "without {gone}");
            assert_eq!(host, right, "without {gone}");
            host.chain(table, chain).push(gone.clone());
            assert!(host.apply(&rules(), &[]), "twice {gone}");
            assert_eq!(host, right, "twice {gone}");
            if at > 0 {
                host.chain(table, chain).swap(0, at);
                assert!(host.apply(&rules(), &[]), "misplaced {gone}");
                assert_eq!(host, right, "misplaced {gone}");
            }
        }
    }
}

#[test]
fn only_the_group_that_is_wrong_is_written() {
    let mut host = with(&rules());
    host.chain("filter", "FORWARD").clear();
    assert_eq!(
        restore(&host.save(), &rules(), &[]).as_deref(),
        Some("*filter\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\nCOMMIT\n")
    );
}

#[test]
fn what_an_earlier_run_left_goes() {
    let right = with(&rules());
    let other_subnet = Rules { subnet: net("10.10.77.0/24"), ..rules() };
    let other_flags = Rules { random_fully: false, ..rules() };
    let mut host = with(&other_subnet);
    host.apply(&rules(), &[]);
    assert_eq!(host, right);
    host = with(&other_flags);
    host.apply(&rules(), &[]);
    assert_eq!(host, right);
    let other_network = Rules { network: net("10.20.0.0/16"), subnet: net("10.20.3.0/24"), ..rules() };
    host = with(&other_network);
    host.apply(&rules(), &[other_network.network]);
    assert_eq!(host, right);
    // The flags were switched off.
    host.apply(&Rules { masquerade: false, ..rules() }, &[]);
    assert_eq!(host, with(&Rules { masquerade: false, ..rules() }));
    host.apply(&rules().none(), &[]);
    assert_eq!(host, Host::new());
    assert!(!host.apply(&rules().none(), &[]));
}

#[test]
fn daemons_of_several_networks_share_the_chains_in_peace() {
    let other = Rules { network: net("10.20.0.0/16"), subnet: net("10.20.3.0/24"), ..rules() };
    let mut host = with(&rules());
    assert!(host.apply(&other, &[]));
    assert_eq!(host.chain("nat", "FLANNEL-POSTRTG").len(), 1 + 5 + 5);
    assert_eq!(host.chain("nat", "POSTROUTING").len(), 1);
    assert!(!host.apply(&rules(), &[]));
    assert!(!host.apply(&other, &[]));
    let both = host.clone();
    // One daemon repairs the rule that both share, and the other finds nothing to do.
    host.chain("nat", "FLANNEL-POSTRTG").remove(0);
    assert!(host.apply(&other, &[]));
    assert!(!host.apply(&rules(), &[]));
    assert_eq!(host, both);
    assert!(host.apply(&rules().none(), &[]));
    assert_eq!(host, with(&other));
}

#[test]
fn rules_of_others_stay_where_they_are() {
    let foreign = [
        ("nat", "POSTROUTING", "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"),
        ("nat", "POSTROUTING", "-s 10.10.0.0/16 -d 10.10.0.0/16 -j RETURN"),
        ("filter", "FORWARD", "-j DOCKER-USER"),
    ];
    let mut host = Host::new();
    foreign.iter().for_each(|(table, chain, spec)| host.chain(table, chain).push((*spec).to_owned()));
    let before = host.clone();
    host.apply(&rules(), &[]);
    for (table, chain, spec) in foreign {
        assert!(host.chain(table, chain).contains(&spec.to_owned()));
    }
    assert!(!host.apply(&rules(), &[]));
    host.apply(&rules().none(), &[]);
    assert_eq!(host, before);
    // This holds inside our chain, too, and a chain that a foreign rule jumps to is not deleted.
    host.apply(&rules(), &[]);
    host.chain("filter", "FLANNEL-FWD").insert(0, "-s 192.0.2.1/32 -j DROP".to_owned());
    host.chain("nat", "POSTROUTING").push("-o eth1 -j FLANNEL-POSTRTG".to_owned());
    assert!(!host.apply(&rules(), &[]));
    host.apply(&rules().none(), &[]);
    assert_eq!(*host.chain("filter", "FLANNEL-FWD"), ["-s 192.0.2.1/32 -j DROP"]);
    assert_eq!(host.chain("nat", "FLANNEL-POSTRTG").len(), 1, "the mark rule");
}

#[test]
fn versions_are_read() {
    assert_eq!(version("iptables v1.8.9 (nf_tables)\n"), Some((1, 8, 9)));
    assert_eq!(version("iptables v1.4.21"), Some((1, 4, 21)));
    assert_eq!(version("iptables v1.6"), Some((1, 6, 0)));
    assert_eq!(version("iptables"), None);
    assert!(version("iptables v1.6.1").unwrap() < MODERN && version("iptables v1.6.2").unwrap() >= MODERN);
}
