//! These tests run against the real kernel, each in a network namespace of its own.

use super::super::namespace::{ip, ip_shows, run};
use super::super::{Changes, write_all};
use super::*;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

/// What to do with entries of ours that are not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stale {
    /// Such entries stay, and [`Outcome::stale`] counts them.
    Keep,
    /// Such entries are removed.
    Remove,
}

/// The result of a call over a set of entries.
#[derive(Debug, Default)]
struct Outcome {
    /// The writes, in a sentence for each kind.
    changes: Changes,
    /// The errors of entries that the kernel refused, or whose place a foreign entry holds.
    failures: Vec<Error>,
    /// How many entries are not wanted and stayed, because of [`Stale::Keep`].
    stale: usize,
    /// How many entries were not wanted and are gone now.
    removed: usize,
}

impl Outcome {
    /// Makes the writes: first all of `set`, then all of `remove`, unless `stale` keeps those. `what` names the entries,
    /// for instance `routes into 10.1.0.0/16`.
    async fn write<S, R>(&mut self, what: &str, set: Vec<S>, remove: Vec<R>, stale: Stale)
    where
        S: Future<Output = Result<Placed, Error>>,
        R: Future<Output = Result<(), Error>>,
    {
        let mut written = 0;
        for result in write_all(set).await {
            match result {
                Ok(Placed::Found) => {}
                Ok(Placed::Set | Placed::Replaced(_)) => written += 1,
                Err(error) => self.failures.push(error),
            }
        }
        self.changes.note(written, &format!("set {written} {what}"));
        if stale == Stale::Keep {
            self.stale += remove.len();
            return;
        }
        let before = self.failures.len();
        let all = remove.len();
        self.failures.extend(write_all(remove).await.into_iter().filter_map(Result::err));
        let removed = all + before - self.failures.len();
        self.changes.note(removed, &format!("remove {removed} {what}"));
        self.removed += removed;
    }
}

impl Netlink {
    /// Makes `wanted`, which is ordered by destination, the routes of the territory, all at once.
    ///
    /// # Errors
    /// The kernel does not let us read the present routes. Refused writes are in [`Outcome::failures`].
    async fn ensure_routes(
        &self,
        wanted: &BTreeMap<Ipv4Net, Route>,
        territory: Territory,
        stale: Stale,
    ) -> Result<Outcome, Error> {
        debug_assert!(wanted.iter().all(|(to, route)| *to == route.destination.trunc()), "by destination");
        let found = self.survey_routes(territory, true, had_a_lease, |to| wanted.get(&to).copied()).await?;
        let missing = wanted.iter().filter(|(to, _)| !found.right.contains(to));
        let set = missing.map(|(_, route)| self.place_route(*route)).collect();
        let remove = found.stale.into_iter().map(|route| self.remove_route(route)).collect();
        let mut outcome = Outcome::default();
        outcome.write(&format!("routes into {}", territory.network), set, remove, stale).await;
        Ok(outcome)
    }
}

/// The host of the routes that an older flannel has left.
fn had_a_lease(host: Ipv4Addr) -> bool {
    host == Ipv4Addr::new(192, 0, 2, 7)
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn territory(network: &str, device: Option<u32>) -> Territory {
    Territory { network: net(network), subnet_len: 24, device, external: None }
}

/// Makes two devices: one with a prefix, where gateways are, and one of the overlay.
async fn devices(netlink: &Netlink) -> (u32, u32) {
    for (name, address) in [("d0", "192.0.2.1/24"), ("d1", "10.1.0.0/32")] {
        ip(&format!("link add {name} type veth peer name {name}-peer"));
        ip(&format!("link set {name}-peer up"));
        ip(&format!("link set {name} up"));
        ip(&format!("addr add {address} dev {name}"));
    }
    let index = async |name| netlink.link_by_name(name).await.unwrap().unwrap().index;
    (index("d0").await, index("d1").await)
}

fn via(link_index: u32, n: u8) -> (Ipv4Net, Route) {
    let destination = net(&format!("10.1.{n}.0/24"));
    let gateway = Some(Ipv4Addr::new(192, 0, 2, n));
    (destination, Route { destination, link_index, gateway, onlink: false })
}

fn onlink(link_index: u32, destination: Ipv4Net) -> (Ipv4Net, Route) {
    (destination, Route { destination, link_index, gateway: Some(destination.network()), onlink: true })
}

/// The output of `ip route show`, with single blanks.
fn routes(selector: &str) -> Vec<String> {
    let shown = ip_shows(&format!("route show {selector}"));
    shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn our_routes_become_what_is_wanted() {
    run("netlink::route_set::tests::our_routes_become_what_is_wanted", || async {
        let netlink = Netlink::new().unwrap();
        let (d0, _) = devices(&netlink).await;
        let territory = territory("10.1.0.0/16", None);
        // The routes are a stale one, a moved one, one of another network of ours, and foreign ones.
        ip("route add 10.1.9.0/24 via 192.0.2.9 proto 78");
        ip("route add 10.1.2.0/24 via 192.0.2.22 proto 78");
        ip("route add 10.2.9.0/24 via 192.0.2.9 proto 78");
        ip("route add 10.1.8.0/24 via 192.0.2.8 proto static");
        ip("route add 10.1.9.0/24 via 192.0.2.9 proto 78 table 88");
        let wanted: BTreeMap<_, _> = [1, 2, 3].map(|n| via(d0, n)).into();

        let kept = netlink.ensure_routes(&wanted, territory, Stale::Keep).await.unwrap();
        assert_eq!(kept.changes.to_string(), "set 3 routes into 10.1.0.0/16");
        assert_eq!((kept.stale, kept.removed), (1, 0));
        let done = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert_eq!(done.changes.to_string(), "remove 1 routes into 10.1.0.0/16");
        let again = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert!(again.changes.is_empty() && again.failures.is_empty());

        let ours = ["1", "2", "3"].map(|n| format!("10.1.{n}.0/24 via 192.0.2.{n} dev d0"));
        let others = ["10.2.9.0/24 via 192.0.2.9 dev d0".to_owned()];
        assert_eq!(routes("proto 78"), [&ours[..], &others[..]].concat());
        assert_eq!(routes("proto static"), ["10.1.8.0/24 via 192.0.2.8 dev d0"]);
        assert_eq!(routes("table 88").len(), 1);
    });
}

#[test]
fn a_foreign_route_stays_and_a_bad_one_stops_nothing() {
    run("netlink::route_set::tests::a_foreign_route_stays_and_a_bad_one_stops_nothing", || async {
        let netlink = Netlink::new().unwrap();
        let (d0, _) = devices(&netlink).await;
        let territory = territory("10.1.0.0/16", None);
        ip("route add 10.1.1.0/24 via 192.0.2.100 proto static");
        ip("route add 10.1.2.0/24 via 192.0.2.2 proto static");
        let mut wanted: BTreeMap<_, _> = [1, 2, 3].map(|n| via(d0, n)).into();
        let (far, mut route) = via(d0, 4);
        route.gateway = Some(Ipv4Addr::new(198, 51, 100, 4));
        wanted.insert(far, route);
        let done = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert_eq!(done.changes.to_string(), "set 1 routes into 10.1.0.0/16");
        let failures: Vec<_> = done.failures.iter().map(ToString::to_string).collect();
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].contains("10.1.1.0/24") && failures[0].contains("protocol 4"), "{failures:?}");
        assert!(failures[1].contains("10.1.4.0/24 via 198.51.100.4"), "{failures:?}");
        assert_eq!(done.failures[1].errno(), Some(libc::ENETUNREACH));
        assert_eq!(routes("10.1.1.0/24"), ["10.1.1.0/24 via 192.0.2.100 dev d0 proto static"]);
        assert_eq!(routes("10.1.2.0/24"), ["10.1.2.0/24 via 192.0.2.2 dev d0 proto static"]);
    });
}

/// The original flanneld may have left routes, which carry no protocol number of its own.
#[test]
fn an_older_flannels_routes_are_taken_over() {
    run("netlink::route_set::tests::an_older_flannels_routes_are_taken_over", || async {
        let netlink = Netlink::new().unwrap();
        let (d0, d1) = devices(&netlink).await;
        let territory = territory("10.1.0.0/16", Some(d1));
        for n in [1, 2] {
            ip(&format!("route add 10.1.{n}.0/24 via 10.1.{n}.0 dev d1 onlink"));
        }
        ip("route add 10.1.0.0/16 dev d1");
        ip("route add 10.1.3.0/24 via 192.0.2.3 dev d0");
        ip("route add 172.16.0.0/12 dev d1");
        // Other programs' on the same device: by their protocol, by their form.
        ip("route add 10.1.200.0/22 via 10.1.200.0 dev d1 onlink proto static metric 50");
        ip("route add 10.1.208.0/22 dev d1 proto bird");
        ip("route add 10.1.212.0/24 via 10.1.7.7 dev d1 onlink");
        ip("route add 10.1.213.0/24 via 10.1.213.0 dev d1 onlink metric 7");
        let (destination, direct) = via(d0, 3);
        let wanted: BTreeMap<_, _> =
            [onlink(d1, net("10.1.1.0/24")), onlink(d1, net("10.1.4.0/24")), (destination, direct)].into();
        let done = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert!(done.failures.is_empty(), "{:?}", done.failures);
        assert_eq!(
            done.changes.to_string(),
            "set 3 routes into 10.1.0.0/16; remove 2 routes into 10.1.0.0/16"
        );
        assert_eq!(
            routes("proto 78"),
            [
                "10.1.1.0/24 via 10.1.1.0 dev d1 onlink",
                "10.1.3.0/24 via 192.0.2.3 dev d0",
                "10.1.4.0/24 via 10.1.4.0 dev d1 onlink"
            ]
        );
        let others = [
            "10.1.212.0/24 via 10.1.7.7 dev d1 onlink",
            "10.1.213.0/24 via 10.1.213.0 dev d1 metric 7 onlink",
            "172.16.0.0/12 dev d1 scope link",
        ];
        assert_eq!(routes("proto boot"), others);
        assert_eq!((routes("proto static").len(), routes("proto bird").len()), (1, 1));
        let again = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert!(again.changes.is_empty(), "{}", again.changes);
    });
}

/// host-gw of an older flannel has left a route to a peer that has moved, and routes to peers that are gone.
#[test]
fn an_older_flannels_routes_by_the_external_interface_are_taken_over() {
    let test = "netlink::route_set::tests::an_older_flannels_routes_by_the_external_interface_are_taken_over";
    run(test, || async {
        let netlink = Netlink::new().unwrap();
        let (d0, _) = devices(&netlink).await;
        ip("link add d2 type veth peer name d2-peer");
        ip("link set d2 up");
        ip("addr add 198.51.100.1/24 dev d2");
        let territory = Territory { external: Some(d0), ..territory("10.1.0.0/16", None) };
        for route in [
            "10.1.1.0/24 via 192.0.2.100",
            "10.1.2.0/24 via 192.0.2.2",
            "10.1.7.0/24 via 192.0.2.7",
            // vxlan's form, by whatever device.
            "10.1.8.0/24 via 10.1.8.0 dev d2 onlink",
            // None of these has the form of flannel's.
            "10.1.20.0/24 via 192.0.2.9 proto static",
            "10.1.21.0/25 via 192.0.2.9",
            "10.1.22.0/24 via 192.0.2.9 metric 5",
            "10.1.23.0/24 dev d0",
            "10.1.24.0/24 via 198.51.100.9",
            "10.2.7.0/24 via 192.0.2.7",
            // An operator's, by a gateway that is no peer.
            "10.1.25.0/24 via 192.0.2.254",
        ] {
            ip(&format!("route add {route}"));
        }
        let others = routes("proto boot");
        let wanted: BTreeMap<_, _> = [1, 2, 3].map(|n| via(d0, n)).into();
        let (to, route) = via(d0, 1);
        let placed = netlink.place_route(route).await.unwrap();
        assert_eq!(placed, Placed::Replaced(format!("10.1.1.0/24 via 192.0.2.100 by link {d0}")));
        assert_eq!(routes(&to.to_string()), ["10.1.1.0/24 via 192.0.2.1 dev d0 proto 78"]);
        assert_eq!(netlink.place_route(route).await.unwrap(), Placed::Found);
        let wants = |to| wanted.get(&to).copied();
        let found = netlink.survey_routes(territory, false, had_a_lease, wants).await.unwrap();
        assert_eq!((found.right.len(), found.stale.len()), (1, 0), "only our own are looked for");
        let found = netlink.survey_routes(territory, true, had_a_lease, wants).await.unwrap();
        assert_eq!(found.unclear, [format!("10.1.25.0/24 via 192.0.2.254 by link {d0}")]);
        let stale: Vec<_> = found.stale.iter().map(StaleRoute::destination).collect();
        assert_eq!(stale, [net("10.1.7.0/24"), net("10.1.8.0/24")]);

        let done = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert!(done.failures.is_empty(), "{:?}", done.failures);
        assert_eq!(routes("proto 78"), [1, 2, 3].map(|n| format!("10.1.{n}.0/24 via 192.0.2.{n} dev d0")));
        let left = others
            .into_iter()
            .filter(|line| !["1", "2", "7", "8"].iter().any(|n| line.starts_with(&format!("10.1.{n}.0/24"))));
        assert_eq!(routes("proto boot"), left.collect::<Vec<_>>());
        assert_eq!(routes("proto static").len(), 1);
    });
}

/// Ours is hidden from a look-up by a route to a part of its destination, and found all the same.
#[test]
fn a_route_that_another_one_hides_is_found() {
    run("netlink::route_set::tests::a_route_that_another_one_hides_is_found", || async {
        let netlink = Netlink::new().unwrap();
        let (d0, _) = devices(&netlink).await;
        ip("route add 10.1.1.0/26 via 192.0.2.77 proto static");
        ip("route add 10.1.1.0/24 via 192.0.2.100");
        ip("route add 10.1.2.0/26 via 192.0.2.77 proto static");
        ip("route add 10.1.2.0/24 via 192.0.2.100 proto static");
        let (_, route) = via(d0, 1);
        assert!(matches!(netlink.place_route(route).await.unwrap(), Placed::Replaced(_)));
        assert_eq!(netlink.place_route(route).await.unwrap(), Placed::Found);
        let error = netlink.place_route(via(d0, 2).1).await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST));
        netlink.withdraw_route(route).await.unwrap();
        netlink.withdraw_route(route).await.unwrap();
        assert_eq!(routes("10.1.1.0/24"), Vec::<String>::new());
        assert_eq!(routes("10.1.1.0/26").len(), 1);
    });
}

#[test]
fn a_thousand_routes_take_no_time() {
    run("netlink::route_set::tests::a_thousand_routes_take_no_time", || async {
        let netlink = Netlink::new().unwrap();
        let (_, d1) = devices(&netlink).await;
        let territory = territory("10.0.0.0/8", Some(d1));
        let subnet = |n: u32| net(&format!("10.{}.{}.0/24", 10 + n / 250, n % 250));
        let mut wanted: BTreeMap<_, _> = (0..1000).map(|n| onlink(d1, subnet(n))).collect();
        for (what, writes) in [("set", 1000), ("compare", 0)] {
            let start = Instant::now();
            let outcome = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
            eprintln!("{what}: {:?}", start.elapsed());
            assert_eq!((outcome.changes.writes(), outcome.failures.len()), (writes, 0));
            assert!(start.elapsed() < Duration::from_secs(1));
        }
        wanted = wanted.into_iter().skip(300).collect();
        let start = Instant::now();
        let outcome = netlink.ensure_routes(&wanted, territory, Stale::Remove).await.unwrap();
        assert_eq!((outcome.removed, outcome.failures.len()), (300, 0));
        assert!(start.elapsed() < Duration::from_millis(500));
    });
}
