//! Tests of the whole machine: which subnet is asked for.

use super::rig::*;
use crate::subnet::{HostAddress, Underlay};
use std::net::Ipv4Addr;

#[test]
fn a_lease_of_our_public_ip_is_reused() {
    let mut b = Rig::new(OnLost::Exit, Some(net(3)));
    b.give(Input::Tick);
    let call = b.give(list(10, &[entry(1, THEM, 3), entry(2, US, 4)]));
    assert_eq!(updated_entry(call), entry(2, US, 4));
    let sent = b.now;
    b.now += Duration::from_secs(3);
    assert_eq!(b.give(updated(Ok(entry(2, US, 12)))), None);
    let acquired = Notice::Acquired { subnet: net(2), how: How::Reused, deadline: Some(sent + TTL) };
    let peer = Event::Added(Lease { subnet: net(1), attrs: LeaseAttrs::new(THEM) });
    assert_eq!(b.said(), [acquired, Notice::Peers(vec![peer])]);
    assert_eq!(b.watches, [10], "the watch starts where the list ended");
}

#[test]
fn a_lease_that_does_not_fit_is_deleted_and_a_reservation_is_not() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    let misfits = [reservation(8, US, 3), entry(9, US, 4), entry(1, THEM, 5), entry(2, THEM, 6)];
    assert_eq!(b.give(list(10, &misfits)), Some(Call::Delete { held: entry(9, US, 4) }));
    let reason = "the network config has subnets from 10.5.1.0 to 10.5.3.0".to_owned();
    assert_eq!(b.said(), [Notice::Discarded { key: SubnetKey::v4(net(9)), reason }]);
    let call = b.give(Input::Reply(Reply::Deleted(Ok(()))));
    assert_eq!(created_key(call), net(3));
}

#[test]
fn no_lease_of_ours_is_discarded_without_its_reason() {
    let dual = SubnetKey { ipv6: Some("fd00:1::/64".parse().unwrap()), ..SubnetKey::v4(net(1)) };
    let cases = [
        (SubnetKey::v4("10.5.1.128/25".parse().unwrap()), "subnets of /24"),
        (SubnetKey::v4("10.5.1.7/24".parse().unwrap()), "not on a /24 boundary"),
        (dual, "dual-stack node"),
    ];
    for (key, why) in cases {
        let mut b = Rig::new(OnLost::Exit, None);
        b.give(Input::Tick);
        let held = Entry { key, ..entry(1, US, 4) };
        assert_eq!(b.give(list(10, std::slice::from_ref(&held))), Some(Call::Delete { held }));
        let said = b.said();
        assert!(matches!(&said[..], [Notice::Discarded { reason, .. }] if reason.contains(why)), "{said:?}");
    }
}

/// US is 10.5.2.9, and the bridge of an earlier run has 10.5.1.1.
fn under() -> Underlay {
    let own = |net: &str, external| HostAddress { net: net.parse().unwrap(), external };
    Underlay { host: vec![own("10.5.2.9/24", true), own("10.5.1.1/24", false)], others: vec![] }
}

fn rig_over(underlay: Underlay, previous: Option<Ipv4Net>) -> Rig {
    let mut b = Rig::new(OnLost::Exit, previous);
    b.m = b.m.over(underlay);
    b.give(Input::Tick);
    b
}

#[test]
fn no_subnet_is_taken_over_an_outer_address() {
    // The host's own addresses leave the third subnet, a peer's PublicIP or the store's address not even that.
    assert_eq!(created_key(rig_over(under(), None).give(list(10, &[]))), net(3));
    let full = |b: &mut Rig, entries: &[Entry]| {
        assert_eq!(b.give(list(10, entries)), None);
        b.said().iter().map(|notice| format!("{notice:?}")).collect::<String>()
    };
    let peer = entry(77, Ipv4Addr::new(10, 5, 3, 9), 3);
    let said = full(&mut rig_over(under(), None), std::slice::from_ref(&peer));
    assert!(said.contains("leases: 1, addresses: 3, pool: 3"), "{said}");
    let store = Underlay { others: vec![Ipv4Addr::new(10, 5, 3, 8)], ..under() };
    assert!(full(&mut rig_over(store, None), &[]).contains("addresses: 3"));
    // The subnet of the last run may be that of a bridge, but not of the external interface.
    assert_eq!(created_key(rig_over(under(), Some(net(1))).give(list(10, &[]))), net(1));
    assert_eq!(created_key(rig_over(under(), Some(net(2))).give(list(10, &[]))), net(3));
}

#[test]
fn a_lease_over_our_own_address_is_given_up_and_a_peers_is_refused() {
    let mut b = rig_over(under(), Some(net(2)));
    assert_eq!(b.give(list(10, &[entry(2, US, 4)])), Some(Call::Delete { held: entry(2, US, 4) }));
    let reason = "it holds this host's own address 10.5.2.9, which would no longer be reached".to_owned();
    assert_eq!(b.said(), [Notice::Discarded { key: SubnetKey::v4(net(2)), reason: reason.clone() }]);
    assert_eq!(created_key(b.give(Input::Reply(Reply::Deleted(Ok(()))))), net(3));
    assert_eq!(b.give(created(Ok(entry(3, US, 11)))), None);
    b.said();
    b.give(set(entry(2, THEM, 12)));
    assert_eq!(b.said(), [Notice::Refused { key: "10.5.2.0-24".to_owned(), reason }]);
    assert_eq!((b.m.peers().count(), b.m.status().counters.conflicts), (0, 2));
    // The bridge's subnet may be a peer's, and a reservation over our own address is the operator's.
    b.give(set(entry(1, THEM, 13)));
    assert_eq!(b.m.peers().count(), 1);
    let mut b = rig_over(under(), None);
    assert_eq!(created_key(b.give(list(10, &[reservation(2, US, 4)]))), net(3));
}

#[test]
fn a_lease_off_the_boundary_is_kept_where_flannel_v0_6_made_it() {
    let text = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.7"}"#;
    let config = Config::parse_for(Generation::V2, text).unwrap();
    let settings = Settings::new(TTL, Some(MARGIN), OnLost::Exit).unwrap();
    let held =
        |revision| Entry { key: SubnetKey::v4("10.5.2.7/24".parse().unwrap()), ..entry(2, US, revision) };
    for previous in [None, Some("10.5.2.7/24".parse().unwrap()), Some(net(2))] {
        let mut b = Rig::run(Manager::new(
            config.clone(),
            Identity::new(LeaseAttrs::new(US), None),
            previous,
            settings,
            42,
        ));
        b.give(Input::Tick);
        assert_eq!(updated_entry(b.give(list(10, &[entry(1, THEM, 3), held(4)]))), held(4));
        assert_eq!(b.give(updated(Ok(held(11)))), None);
        assert!(
            matches!(b.said()[0], Notice::Acquired { subnet, .. } if subnet.to_string() == "10.5.2.7/24")
        );
        assert_eq!(b.m.peers().map(|(subnet, _)| subnet).collect::<Vec<_>>(), [net(1)]);
    }
}

#[test]
fn the_previous_subnet_is_asked_for_unless_something_overlaps_it() {
    let mut b = Rig::new(OnLost::Exit, Some(net(2)));
    b.give(Input::Tick);
    assert_eq!(created_key(b.give(list(10, &[entry(1, THEM, 3)]))), net(2));
    b.give(created(Ok(entry(2, US, 11))));
    assert!(matches!(b.said()[0], Notice::Acquired { how: How::Previous, .. }));

    let mut b = Rig::new(OnLost::Exit, Some(net(2)));
    b.give(Input::Tick);
    let half = Entry { key: SubnetKey::v4("10.5.2.128/25".parse().unwrap()), ..entry(2, THEM, 3) };
    assert_eq!(created_key(b.give(list(10, &[half, entry(1, THEM, 4)]))), net(3));

    let mut b = Rig::new(OnLost::Exit, Some(net(200)));
    b.give(Input::Tick);
    assert_eq!(created_key(b.give(list(10, &[entry(1, THEM, 3), entry(2, THEM, 4)]))), net(3));
}

#[test]
fn a_lost_race_is_never_fatal() {
    let mut b = Rig::new(OnLost::Exit, Some(net(1)));
    b.give(Input::Tick);
    for round in 0..500 {
        let call = b.give(list(10 + round, &[]));
        assert!(matches!(call, Some(Call::Create { .. })));
        let start = b.now;
        assert_eq!(b.give(created(Err(Error::Exists))), None);
        assert_eq!(b.sleep(), Call::List);
        assert!(b.now - start < Duration::from_secs(1));
    }
    assert_eq!(b.said(), []);
}

#[test]
fn a_bad_value_blocks_its_subnet() {
    let mut b = Rig::new(OnLost::Exit, Some(net(1)));
    b.give(Input::Tick);
    let skipped = Skipped { key: "10.5.1.0-24".to_owned(), reason: "garbage".to_owned() };
    let listing = Listing { entries: vec![entry(2, THEM, 3)], skipped: vec![skipped], revision: 10 };
    assert_eq!(created_key(b.give(Input::Reply(Reply::Listed(Ok(listing))))), net(3));
}

#[test]
fn a_full_pool_is_said_once_a_minute_and_tried_again() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    let all = [entry(1, THEM, 1), entry(2, THEM, 2), entry(3, THEM, 3)];
    let start = b.now;
    while b.now < start + Duration::from_secs(150) {
        assert_eq!(b.give(list(10, &all)), None);
        let before = b.now;
        assert_eq!(b.sleep(), Call::List);
        assert!(b.now - before <= Duration::from_secs(30));
    }
    let said = b.said();
    assert_eq!(
        said,
        vec![
            Notice::OutOfSubnets(crate::subnet::allocate::OutOfSubnets { leases: 3, addresses: 0, pool: 3 });
            3
        ]
    );
    assert_eq!(created_key(b.give(list(20, &all[1..]))), net(1));
}

#[test]
fn a_lost_reply_to_a_create_is_looked_up() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    let key = created_key(b.give(list(10, &[])));
    assert_eq!(b.give(created(Err(down()))), None);
    assert_eq!(b.sleep(), Call::List);
    let landed = Entry { key: SubnetKey::v4(key), ..entry(0, US, 11) };
    let call = b.give(list(11, std::slice::from_ref(&landed)));
    assert_eq!(updated_entry(call), landed);
}

#[test]
fn an_answer_that_outlives_the_lease_is_no_lease() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    b.give(list(10, &[]));
    b.now += TTL;
    assert_eq!(b.give(created(Ok(entry(1, US, 11)))), None);
    assert_eq!((b.held(), b.said()), (None, vec![]));
    assert_eq!(b.sleep(), Call::List);
}

/// How often a machine lists within ten minutes, while every list is answered and every write fails like this.
fn lists_without_writes(b: &mut Rig, mut call: Option<Call>, error: &Error) -> usize {
    let (end, mut lists) = (b.now + Duration::from_secs(600), 0);
    while call.is_some() || b.now < end {
        let input = match call.take().unwrap_or_else(|| b.sleep()) {
            Call::List => {
                lists += 1;
                list(20, &[])
            }
            Call::Create { .. } => created(Err(error.clone())),
            Call::Update { .. } => updated(Err(error.clone())),
            Call::Delete { .. } => panic!("there is nothing to delete"),
        };
        call = b.give(input);
    }
    lists
}

#[test]
fn a_store_that_takes_no_write_is_listed_rarely() {
    for (error, most) in [(Error::Denied("no".to_owned()), 25), (down(), 250)] {
        let mut lost = Rig::holding(OnLost::Exit);
        let create = lost.give(gone(1, 12));
        for (what, mut b, call) in
            [("seeking", Rig::new(OnLost::Exit, None), None), ("regaining", lost, create)]
        {
            let lists = lists_without_writes(&mut b, call, &error);
            assert!((5..=most).contains(&lists), "{what}, {error}: {lists} lists");
            assert!(b.m.status().read_only && b.m.status().store_out);
            let said = b.said();
            // The first write without an answer may be the store's.
            let backs = said.iter().filter(|notice| matches!(notice, Notice::StoreBack { .. })).count();
            assert!(backs <= usize::from(error == down()), "{said:?}");
            let reason = "it answers, but takes no write";
            let told = |notice: &&Notice| matches!(notice, Notice::StoreStillLost { reason: r, .. } if r.contains(reason));
            assert!(said.iter().filter(told).count() >= 8, "{said:?}");

            b.give(Input::Admission);
            assert!(b.m.wake_at().unwrap() <= b.now + Duration::from_secs(1), "{what}");
        }
    }
}

#[test]
fn a_subnet_that_needs_no_write_ends_an_outage_of_writes() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    b.give(list(10, &[]));
    b.give(created(Err(Error::Denied("no".to_owned()))));
    assert!(b.m.status().read_only);
    assert_eq!(b.sleep(), Call::List);
    b.give(list(11, &[reservation(2, US, 11)]));
    assert_eq!((b.held(), b.m.status().read_only, b.m.status().store_out), (Some(net(2)), false, false));
}
