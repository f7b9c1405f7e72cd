//! Events against a model of the kernel's tables.

use super::*;
use proptest::prelude::*;

const DEVICE: u32 = 7;
const EXTERNAL: u32 = 2;

fn wanted() -> Wanted {
    let network = "10.1.0.0/16".parse().unwrap();
    Wanted::new(Territory { network, subnet_len: 24, device: Some(DEVICE), external: None }, EXTERNAL)
}

fn subnet(n: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 1, n, 0), 24).unwrap()
}

fn host(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn mac(n: u8) -> Mac {
    Mac([10, 0, 0, 0, 0, n])
}

/// The kernel's tables, as far as the jobs write them.
#[derive(Debug, Default, PartialEq)]
struct Kernel {
    arp: BTreeMap<Ipv4Addr, Mac>,
    fdb: BTreeMap<Mac, Ipv4Addr>,
    routes: BTreeMap<Ipv4Net, Route>,
}

impl Kernel {
    fn run(&mut self, job: Job) {
        assert!(job.drop_arp.is_none() || job.set_arp.is_none());
        self.arp.extend(job.set_arp);
        self.fdb.extend(job.set_fdb);
        self.routes.extend(job.set_route.map(|route| (route.destination, route)));
        if let Some(route) = job.drop_route {
            assert_eq!(self.routes.remove(&route.destination), Some(route), "it removes what it has set");
        }
        if let Some((mac, ip)) = job.drop_fdb {
            assert_eq!(
                self.fdb.remove(&mac),
                Some(ip),
                "the kernel refuses to remove one that leads elsewhere"
            );
        }
        if let Some(ip) = job.drop_arp {
            assert!(self.arp.remove(&ip).is_some());
        }
    }

    /// What a look at all tables would make of them.
    fn of(wanted: &mut Wanted) -> Kernel {
        let mut kernel = Kernel::default();
        let subnets: Vec<_> = wanted.after(None).map(|(subnet, _)| subnet).collect();
        for subnet in subnets {
            kernel.run(wanted.job(subnet, Parts { arp: true, fdb: true, route: true }));
        }
        kernel
    }
}

fn write(wanted: &mut Wanted, kernel: &mut Kernel) {
    for (subnet, written) in wanted.take_changes(usize::MAX) {
        kernel.run(wanted.difference(subnet, written, false));
    }
    wanted.settle().into_iter().for_each(|job| kernel.run(job));
}

#[test]
fn one_event_costs_the_writes_of_one_peer() {
    let mut wanted = wanted();
    let mut kernel = Kernel::default();
    for n in 1..=200 {
        wanted.put(subnet(n), host(n), Some(mac(n)));
    }
    write(&mut wanted, &mut kernel);
    assert_eq!(kernel, Kernel::of(&mut wanted));
    wanted.put(subnet(7), host(7), Some(mac(7)));
    assert!(!wanted.has_changed(), "a renewal is no change");
    wanted.put(subnet(7), host(77), Some(mac(7)));
    let [(_, written)] = wanted.take_changes(9)[..] else { panic!("one change") };
    let job = wanted.difference(subnet(7), written, false);
    assert_eq!(job.set_fdb, Some((mac(7), host(77))));
    assert!(job.set_arp.is_none() && job.set_route.is_none() && job.drop_fdb.is_none(), "{job:?}");
}

#[test]
fn what_another_program_needs_is_not_removed() {
    let mut wanted = wanted();
    let mut kernel = Kernel::default();
    wanted.put(subnet(1), host(1), Some(mac(1)));
    write(&mut wanted, &mut kernel);
    wanted.foreign_macs.insert(mac(1));
    wanted.remove(subnet(1));
    write(&mut wanted, &mut kernel);
    assert!(kernel.routes.is_empty() && kernel.arp.is_empty());
    assert_eq!(kernel.fdb, [(mac(1), host(1))].into());
}

#[test]
fn peers_that_share_a_mac_are_told_of() {
    let mut wanted = wanted();
    wanted.put(subnet(1), host(1), Some(mac(9)));
    wanted.put(subnet(2), host(1), Some(mac(9)));
    assert!(wanted.rivals().is_empty(), "one host with two leases");
    wanted.put(subnet(2), host(2), Some(mac(9)));
    assert_eq!(wanted.rivals(), ["192.0.2.1 and 192.0.2.2 both have the VtepMAC 0a:00:00:00:00:09"]);
    assert_eq!(wanted.rivals().len(), 1, "as long as they do");
    wanted.decide(subnet(2), true);
    assert!(wanted.rivals().is_empty(), "no tunnel leads to the second");
    wanted.decide(subnet(2), false);
    wanted.remove(subnet(1));
    assert!(wanted.rivals().is_empty());
}

proptest! {
    /// Whatever comes, in whatever portions it is written: the tables become what a look at all of them would make.
    #[test]
    fn changes_lead_where_a_look_would(
        events in prop::collection::vec((0u8..5, 1u8..6, 1u8..5, 1u8..4), 1..60),
    ) {
        let mut wanted = wanted();
        let mut kernel = Kernel::default();
        for (what, n, ip, m) in events {
            match what {
                0 | 1 => wanted.put(subnet(n), host(ip), Some(mac(m))),
                2 => wanted.remove(subnet(n)),
                3 => wanted.decide(subnet(n), ip % 2 == 0),
                _ => {
                    let some = usize::from(ip);
                    for (subnet, written) in wanted.take_changes(some) {
                        kernel.run(wanted.difference(subnet, written, false));
                    }
                }
            }
        }
        write(&mut wanted, &mut kernel);
        prop_assert_eq!(kernel, Kernel::of(&mut wanted));
    }
}
