//! Tests of the whole machine: this host gets another address while it holds a subnet.

use super::rig::*;
use crate::subnet::{HostAddress, Underlay};
use std::net::Ipv4Addr;

/// The address that the host gets.
const NEW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);

fn publish(ip: Ipv4Addr) -> Input {
    Input::Publish(LeaseAttrs::new(ip))
}

/// The key that a call overwrites with the new address.
fn rewritten(call: Option<Call>) -> Entry {
    match call {
        Some(Call::Update { held, attrs, ttl }) if ttl == TTL && attrs == LeaseAttrs::new(NEW) => held,
        other => panic!("{other:?}"),
    }
}

fn readdressed() -> Notice {
    Notice::Readdressed { subnet: net(1), public_ip: NEW }
}

#[test]
fn another_address_is_written_at_once_over_what_we_hold() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.m.status().public_ip, Some(US));
    assert_eq!(rewritten(b.give(publish(NEW))), entry(1, US, 11));
    assert_eq!(b.watches, [10, 10], "a watch over a new connection follows from where the old one ended");
    assert_eq!(b.give(Input::WatchStarted), None);
    let sent = b.now;
    assert_eq!(b.m.status().public_ip, Some(US), "peers still know the old one");
    assert_eq!(b.give(updated(Ok(entry(1, NEW, 20)))), None);
    assert_eq!(b.said(), [Notice::Renewed { subnet: net(1), deadline: Some(sent + TTL) }, readdressed()]);
    assert_eq!((b.held(), b.m.status().public_ip), (Some(net(1)), Some(NEW)));
    // The list that follows on new connections finds nothing to do.
    assert_eq!(b.sleep(), Call::List);
    assert_eq!(b.give(list(21, &[entry(1, NEW, 20), entry(3, THEM, 9)])), None);
    assert!(b.said().is_empty());
}

#[test]
fn the_call_under_way_is_given_up_and_the_write_follows() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(updated_entry(Some(b.sleep())), entry(1, US, 11));
    assert_eq!(rewritten(b.give(publish(NEW))), entry(1, US, 11));
    // The renewal had happened: its value is what we published before, so it is ours.
    assert_eq!(b.give(updated(Err(Error::Conflict))), Some(Call::List));
    let call = b.give(list(21, &[entry(1, US, 20), entry(3, THEM, 9)]));
    assert_eq!(rewritten(call), entry(1, US, 20));
    assert_eq!(b.held(), Some(net(1)));
    b.give(updated(Ok(entry(1, NEW, 22))));
    assert!(b.said().contains(&readdressed()));
}

#[test]
fn a_write_that_fails_is_repeated_within_seconds() {
    let mut b = Rig::holding(OnLost::Exit);
    let start = b.now;
    assert_eq!(rewritten(b.give(publish(NEW))), entry(1, US, 11));
    for _ in 0..3 {
        b.give(updated(Err(down())));
        while !matches!(b.sleep(), Call::Update { .. }) {
            b.give(Input::Reply(Reply::Listed(Err(down()))));
        }
    }
    assert!(b.now - start < Duration::from_secs(15), "{:?}", b.now - start);
    b.give(updated(Ok(entry(1, NEW, 30))));
    assert!(b.said().contains(&readdressed()));
}

#[test]
fn a_reservation_gets_the_address_and_stays_one() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    assert_eq!(b.give(list(10, &[reservation(1, US, 5)])), None);
    b.give(Input::WatchStarted);
    b.said();
    assert_eq!(rewritten(b.give(publish(NEW))), reservation(1, US, 5));
    b.give(updated(Ok(reservation(1, NEW, 12))));
    assert_eq!(b.said(), [Notice::Renewed { subnet: net(1), deadline: None }, readdressed()]);
    assert_eq!(b.m.status().deadline, None);
}

#[test]
fn a_late_write_of_our_own_is_overwritten_and_a_strangers_is_a_conflict() {
    let mut b = Rig::holding(OnLost::Exit);
    b.give(publish(NEW));
    b.give(updated(Ok(entry(1, NEW, 20))));
    b.give(Input::WatchStarted);
    b.said();
    // A write that was sent before the change arrives late.
    assert_eq!(b.give(set(entry(1, US, 25))), None);
    assert_eq!(b.said(), [Notice::Readdressed { subnet: net(1), public_ip: US }]);
    let mut call = b.sleep();
    if call == Call::List {
        call = b.give(list(26, &[entry(1, US, 25), entry(3, THEM, 9)])).unwrap_or_else(|| b.sleep());
    }
    assert_eq!(rewritten(Some(call)), entry(1, US, 25));
    b.give(updated(Ok(entry(1, NEW, 27))));
    b.said();
    b.give(set(entry(1, THEM, 30)));
    assert!(matches!(b.said()[..], [Notice::Conflict { owner: THEM, .. }]));
}

#[test]
fn a_search_goes_on_with_the_new_address() {
    let mut b = Rig::new(OnLost::Exit, Some(net(1)));
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    assert_eq!(created_key(b.give(list(10, &[]))), net(1));
    // Whether the creation has happened is open, so a list follows, and finds it.
    let call = b.give(publish(NEW)).unwrap_or_else(|| b.sleep());
    assert_eq!(call, Call::List);
    assert_eq!(rewritten(b.give(list(12, &[entry(1, US, 11)]))), entry(1, US, 11));
    b.give(updated(Ok(entry(1, NEW, 13))));
    assert_eq!((b.held(), b.m.status().public_ip), (Some(net(1)), Some(NEW)));
}

/// The PublicIP is fixed by a flag, and the address below it changes.
#[test]
fn the_same_value_makes_new_connections_and_no_write() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.give(publish(US)), None);
    assert_eq!(b.watches, [10, 10]);
    assert_eq!(b.give(Input::WatchStarted), None);
    assert_eq!(b.sleep(), Call::List);
    assert_eq!(b.give(list(12, &[entry(1, US, 11), entry(3, THEM, 9)])), None);
    assert!(b.said().is_empty());
    assert_eq!(updated_entry(Some(b.sleep())), entry(1, US, 11));
}

#[test]
fn an_address_that_comes_into_a_peers_subnet_is_kept_from_it() {
    let under = |address: &str| Underlay {
        host: vec![HostAddress { net: address.parse().unwrap(), external: true }],
        others: vec![],
    };
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.give(Input::Underlay(under("192.0.2.11/24"))), None, "no subnet holds it");
    assert_eq!(b.give(Input::Underlay(under("10.5.3.7/24"))), Some(Call::List));
    b.give(list(12, &[entry(1, US, 11), entry(3, THEM, 9)]));
    let said = b.said();
    let gone = Event::Removed(Lease { subnet: net(3), attrs: LeaseAttrs::new(THEM) });
    assert!(said.contains(&Notice::Peers(vec![gone])), "{said:?}");
    assert!(said.iter().any(|one| matches!(one, Notice::Refused { key, .. } if key == "10.5.3.0-24")));
    // It leaves again, and the peer comes back.
    assert_eq!(b.give(Input::Underlay(under("192.0.2.11/24"))), Some(Call::List));
    b.give(list(12, &[entry(1, US, 11), entry(3, THEM, 9)]));
    let back = Event::Added(Lease { subnet: net(3), attrs: LeaseAttrs::new(THEM) });
    assert_eq!(b.said(), [Notice::Peers(vec![back])]);
    assert_eq!(b.give(set(entry(2, US, 13))), None);
}
