//! Tests of the watcher alone: snapshots, deltas, what is refused.

use super::*;
use crate::store::Revision;
use crate::subnet::Generation;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn net(third: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap()
}

fn entry(third: u8, host: u8, revision: Revision) -> Entry {
    let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 0, 2, host));
    let value = attrs.encode(Generation::V3);
    Entry { key: SubnetKey::v4(net(third)), attrs, value, revision, lease: Some(1) }
}

fn watcher() -> Watcher {
    let mut watcher = Watcher::new("10.5.0.0/16".parse().unwrap());
    watcher.restart(Some(SubnetKey::v4(net(1))));
    watcher
}

fn us() -> Identity {
    Identity::new(LeaseAttrs::new(OWN), None)
}

fn added(third: u8, host: u8) -> Event {
    Event::Added(Lease { subnet: net(third), attrs: entry(third, host, 0).attrs })
}

fn removed(third: u8, host: u8) -> Event {
    Event::Removed(Lease { subnet: net(third), attrs: entry(third, host, 0).attrs })
}

const NOW: Duration = Duration::from_secs(100);

#[test]
fn a_second_list_gives_the_difference_over_all_attributes_additions_first() {
    let mut w = watcher();
    let first = [entry(1, 1, 1), entry(2, 2, 2), entry(3, 3, 3)];
    assert_eq!(w.snapshot(&us(), NOW, &first, &[], false), [added(2, 2), added(3, 3)]);
    // 3 has moved to another host, 2 is gone, 9 is new; our own is gone too and says nothing.
    let second = [entry(3, 33, 5), entry(9, 9, 6)];
    assert_eq!(w.snapshot(&us(), NOW, &second, &[], true), [added(3, 33), added(9, 9), removed(2, 2)]);
    assert_eq!(w.counters().repairs, 3);
    assert_eq!(w.snapshot(&us(), NOW, &second, &[], true), []);
}

#[test]
fn backend_data_counts_as_a_change() {
    let mut w = watcher();
    w.snapshot(&us(), NOW, &[entry(2, 2, 2)], &[], false);
    let mut moved = entry(2, 2, 3);
    moved.attrs.backend_data = Some(serde_json::json!({"VtepMAC": "aa:bb:cc:dd:ee:ff"}).into());
    assert_eq!(w.snapshot(&us(), NOW, std::slice::from_ref(&moved), &[], true).len(), 1);
    assert_eq!(w.apply(&us(), &Change::Set(entry(2, 2, 4))), Some(added(2, 2)));
}

#[test]
fn deltas_are_idempotent_and_remember_attributes() {
    let mut w = watcher();
    assert_eq!(w.apply(&us(), &Change::Set(entry(2, 2, 2))), Some(added(2, 2)));
    assert_eq!(w.apply(&us(), &Change::Set(entry(2, 2, 3))), None, "a renewal");
    assert_eq!(w.apply(&us(), &Change::Set(entry(1, 7, 3))), None, "our own subnet");
    let gone = |third| Change::Gone { key: SubnetKey::v4(net(third)), revision: 9 };
    assert_eq!(w.apply(&us(), &gone(2)), Some(removed(2, 2)));
    assert_eq!(w.apply(&us(), &gone(2)), None);
    assert_eq!(w.apply(&us(), &gone(1)), None);
}

#[test]
fn a_bad_value_keeps_the_last_good_one_and_is_counted_once() {
    let mut w = watcher();
    w.snapshot(&us(), NOW, &[entry(2, 2, 2), entry(3, 3, 3)], &[], false);
    let bad = Skipped { key: net(2).addr().to_string() + "-24", reason: "empty".to_owned() };
    let odd = Skipped { key: "config".to_owned(), reason: "no key".to_owned() };
    assert_eq!(w.apply(&us(), &Change::Skipped(bad.clone())), None);
    for _ in 0..3 {
        assert_eq!(w.snapshot(&us(), NOW, &[entry(3, 3, 3)], &[bad.clone(), odd.clone()], true), []);
    }
    assert_eq!(w.counters().skipped, 2);
    assert_eq!(w.take_notices().len(), 2);
    // The same for a value that reads well but that nobody can send to.
    let mut nowhere = entry(3, 3, 7);
    nowhere.attrs.public_ip = Ipv4Addr::UNSPECIFIED;
    assert_eq!(w.snapshot(&us(), NOW, &[nowhere], std::slice::from_ref(&bad), true), []);
    assert_eq!((w.len(), w.counters().rejected), (2, 1));
    // One value is mended, and the other key is gone.
    assert_eq!(w.snapshot(&us(), NOW, &[entry(3, 3, 8)], &[], true), [removed(2, 2)]);
}

#[test]
fn a_peers_key_with_our_public_ip_is_no_peers_any_more() {
    let ours = Entry { attrs: LeaseAttrs::new(OWN), ..entry(2, 1, 5) };
    let mut w = watcher();
    w.snapshot(&us(), NOW, &[entry(2, 2, 2)], &[], false);
    assert_eq!(w.apply(&us(), &Change::Set(ours.clone())), Some(removed(2, 2)));
    w.snapshot(&us(), NOW, &[entry(2, 2, 6)], &[], false);
    assert_eq!(w.snapshot(&us(), NOW, &[ours], &[], true), [removed(2, 2)]);
    assert_eq!(w.take_notices().len(), 2);
}

#[test]
fn foreign_and_overlapping_leases_are_rejected_and_counted() {
    let mut w = watcher();
    let with =
        |subnet: &str, host| Entry { key: SubnetKey::v4(subnet.parse().unwrap()), ..entry(0, host, 1) };
    let odd =
        [with("10.6.2.0/24", 2), with("10.5.1.128/25", 3), with("10.5.0.0/20", 4), with("10.5.9.0/24", 1)];
    assert_eq!(w.snapshot(&us(), NOW, &odd, &[], false), []);
    assert_eq!(w.counters().rejected, 4);
    assert_eq!(w.apply(&us(), &Change::Set(odd[0].clone())), None);
    assert_eq!(w.counters().rejected, 4);
    let reasons: Vec<_> = w.take_notices().into_iter().map(|notice| format!("{notice:?}")).collect();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert!(reasons[0].contains("outside the network") && reasons[3].contains("our own"), "{reasons:?}");
}

#[test]
fn a_dual_stack_key_over_our_subnet_is_a_foreign_lease() {
    let mut w = watcher();
    let dual = |third, host, revision| {
        let key = SubnetKey { ipv6: Some("fd00:1::/64".parse().unwrap()), ..SubnetKey::v4(net(third)) };
        Entry { key, ..entry(third, host, revision) }
    };
    assert_eq!(w.apply(&us(), &Change::Set(dual(1, 7, 2))), None);
    assert!(w.is_overlapped(), "its IPv4 part holds our subnet");
    assert_eq!(w.counters().rejected, 1);
    assert!(format!("{:?}", w.take_notices()).contains("overlaps our own subnet"));
    // A list says the same, our own key beside it is ours, and elsewhere such a key is a peer.
    assert_eq!(
        w.snapshot(&us(), NOW, &[entry(1, 1, 1), dual(1, 7, 2), dual(2, 8, 3)], &[], false),
        [added(2, 8)]
    );
    assert!(w.is_overlapped() && w.counters().rejected == 1);
    assert_eq!(w.apply(&us(), &Change::Gone { key: dual(1, 7, 2).key, revision: 4 }), None);
    assert!(!w.is_overlapped());
}

#[test]
fn a_key_off_the_boundary_is_the_peer_of_its_subnet() {
    let mut w = watcher();
    let odd = Entry { key: SubnetKey::v4("10.5.2.7/24".parse().unwrap()), ..entry(2, 2, 2) };
    assert_eq!(w.apply(&us(), &Change::Set(odd.clone())), Some(added(2, 2)));
    assert_eq!(
        w.apply(&us(), &Change::Gone { key: SubnetKey::v4(net(2)), revision: 3 }),
        None,
        "that key never was"
    );
    assert_eq!(w.apply(&us(), &Change::Gone { key: odd.key, revision: 4 }), Some(removed(2, 2)));
}

#[test]
fn two_keys_of_one_subnet_are_one_peer() {
    let mut w = watcher();
    let mut dual = entry(2, 22, 5);
    dual.key.ipv6 = Some("fc00::/64".parse().unwrap());
    assert_eq!(w.snapshot(&us(), NOW, &[dual.clone(), entry(2, 2, 4)], &[], false), [added(2, 22)]);
    let plain = SubnetKey::v4(net(2));
    assert_eq!(w.apply(&us(), &Change::Gone { key: plain, revision: 6 }), None, "the other key still stands");
    assert_eq!(w.apply(&us(), &Change::Gone { key: dual.key, revision: 7 }), Some(removed(2, 22)));
}

#[test]
fn a_mass_withdrawal_waits_for_a_second_list() {
    let mut w = watcher();
    let all: Vec<_> = (2..=6).map(|n| entry(n, n, 1)).collect();
    w.snapshot(&us(), NOW, &all, &[], false);
    // A list that lacks three of five is suspect. What is new in it is taken at once.
    let few = [entry(2, 2, 1), entry(3, 3, 1), entry(9, 9, 9)];
    assert_eq!(w.snapshot(&us(), NOW, &few, &[], true), [added(9, 9)]);
    assert_eq!(w.take_notices(), [Notice::Withheld { count: 3 }]);
    assert_eq!(w.confirm_at(), Some(NOW + CONFIRM_AFTER));
    // It is too early to confirm, although three of six are no longer more than half.
    assert_eq!(w.snapshot(&us(), NOW + Duration::from_secs(9), &few, &[], true), []);
    assert_eq!(w.take_notices(), [], "said already");
    let fewer = [entry(2, 2, 1)];
    let gone = [removed(3, 3), removed(4, 4), removed(5, 5), removed(6, 6), removed(9, 9)];
    assert_eq!(w.snapshot(&us(), NOW + CONFIRM_AFTER, &fewer, &[], true), gone);
    assert_eq!((w.confirm_at(), w.counters().withheld), (None, 1));
}

#[test]
fn a_withdrawal_that_was_a_hiccup_changes_nothing() {
    let mut w = watcher();
    let all: Vec<_> = (2..=5).map(|n| entry(n, n, 1)).collect();
    w.snapshot(&us(), NOW, &all, &[], false);
    assert_eq!(w.snapshot(&us(), NOW, &[], &[], true), []);
    assert_eq!(w.snapshot(&us(), NOW + CONFIRM_AFTER, &all, &[], true), []);
    assert_eq!((w.len(), w.confirm_at()), (4, None));
    // Half of four is not more than half; and three are too few to be suspect.
    assert_eq!(w.snapshot(&us(), NOW, &all[..2], &[], true).len(), 2);
    assert_eq!(w.snapshot(&us(), NOW, &[], &[], true).len(), 2);
}

proptest! {
    /// Whatever came before, the events since lead from the old table to the list.
    #[test]
    fn the_difference_applied_gives_the_list(
        before in proptest::collection::btree_map(2u8..40, 2u8..20, 0..20),
        after in proptest::collection::btree_map(2u8..40, 2u8..20, 0..20),
    ) {
        let entries = |map: &BTreeMap<u8, u8>| map.iter().map(|(n, host)| entry(*n, *host, 1)).collect::<Vec<_>>();
        let mut w = watcher();
        let mut routes = BTreeMap::new();
        let lists = [(NOW, &before), (NOW, &after), (NOW + CONFIRM_AFTER, &after)];
        for (now, list) in lists {
            for event in w.snapshot(&us(), now, &entries(list), &[], false) {
                match event {
                    Event::Added(lease) => drop(routes.insert(lease.subnet, lease.attrs)),
                    Event::Removed(lease) => assert_eq!(routes.remove(&lease.subnet), Some(lease.attrs)),
                }
            }
        }
        let wanted: BTreeMap<_, _> = entries(&after).into_iter().map(|e| (e.key.ipv4, e.attrs)).collect();
        prop_assert_eq!(&routes, &wanted);
        prop_assert_eq!(w.peers().map(|(subnet, attrs)| (subnet, attrs.clone())).collect::<BTreeMap<_, _>>(), wanted);
    }
}

#[test]
fn a_lease_that_changes_hands_is_counted_and_told_of() {
    let node = |entry: Entry, name: &str| {
        let attrs = LeaseAttrs { node_id: crate::subnet::NodeId::published(name), ..entry.attrs };
        Entry { attrs, ..entry }
    };
    let told = |w: &mut Watcher| {
        let hands = |notice: &Notice| matches!(notice, Notice::ChangedHands { .. });
        w.take_notices().iter().filter(|notice| hands(notice)).count()
    };
    let mut w = watcher();
    w.snapshot(&us(), NOW, &[entry(2, 2, 2), entry(3, 3, 3)], &[], false);
    // A peer that begins to publish its name, is asked whether it lives, or tells more of its backend stays what it is.
    let mut asked = node(entry(2, 2, 6), "a");
    asked.attrs.asked_by = crate::subnet::NodeId::published("b");
    assert!(w.apply(&us(), &Change::Set(node(entry(2, 2, 4), "a"))).is_some());
    assert_eq!(w.apply(&us(), &Change::Set(asked)), None, "the question is not for us");
    assert!(w.apply(&us(), &Change::Set(entry(2, 2, 7))).is_some());
    assert!(w.apply(&us(), &Change::Set(node(entry(2, 2, 8), "a"))).is_some());
    assert_eq!((told(&mut w), w.counters().handovers), (0, 0));
    // Another name, another address, by the watch and by a list.
    w.apply(&us(), &Change::Set(node(entry(2, 2, 9), "c")));
    assert_eq!((told(&mut w), w.counters().handovers), (1, 1));
    w.snapshot(&us(), NOW, &[node(entry(2, 2, 9), "c"), entry(3, 33, 10)], &[], false);
    assert_eq!((told(&mut w), w.counters().handovers), (1, 2));
}

/// After a change of the network's range, every lease of the old one is refused: that is no line for each.
#[test]
fn many_refusals_share_a_notice() {
    let outside = |count: u8| -> Vec<Entry> {
        let key = |third| SubnetKey::v4(Ipv4Net::new(Ipv4Addr::new(10, 6, third, 0), 24).unwrap());
        (0..count).map(|third| Entry { key: key(third), ..entry(third, 9, 1) }).collect()
    };
    let mut w = watcher();
    w.snapshot(&us(), NOW, &outside(20), &[], false);
    assert_eq!(w.take_notices().len(), 20);
    let mut w = watcher();
    w.snapshot(&us(), NOW, &outside(200), &[], false);
    let notices = w.take_notices();
    let [Notice::ManyRefused(refused)] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!(refused.len(), 200);
    assert!(refused.contains(&("10.6.7.0-24".to_owned(), "it lies outside the network".to_owned())));
    assert_eq!(w.counters().rejected, 200);
}
