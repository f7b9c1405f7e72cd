//! Tests of the whole machine: which subnet is asked for.

use super::rig::*;

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

#[test]
fn a_lease_off_the_boundary_is_kept_where_flannel_v0_6_made_it() {
    let text = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.7"}"#;
    let config = Config::parse_for(Generation::V2, text).unwrap();
    let settings = Settings::new(TTL, Some(MARGIN), OnLost::Exit).unwrap();
    let held =
        |revision| Entry { key: SubnetKey::v4("10.5.2.7/24".parse().unwrap()), ..entry(2, US, revision) };
    for previous in [None, Some("10.5.2.7/24".parse().unwrap()), Some(net(2))] {
        let mut b = Rig::of(Manager::new(config.clone(), LeaseAttrs::new(US), previous, settings, 42));
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
        vec![Notice::OutOfSubnets(crate::subnet::allocate::OutOfSubnets { leases: 3, pool: 3 }); 3]
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
