//! Tests of the whole machine: renewal, loss, conflict.

use super::rig::*;

#[test]
fn renewal_is_conditional_and_counts_from_before_the_request() {
    let mut b = Rig::holding(OnLost::Exit);
    let acquired = b.now;
    assert_eq!(updated_entry(Some(b.sleep())), entry(1, US, 11));
    assert_spread(&b, acquired);
    let sent = b.now;
    b.now += Duration::from_secs(2);
    b.give(updated(Ok(entry(1, US, 15))));
    assert_eq!(b.said(), [Notice::Renewed { subnet: net(1), deadline: Some(sent + TTL) }]);
    // The event of our own write says nothing new.
    assert_eq!(b.give(set(entry(1, US, 15))), None);
    assert_eq!(updated_entry(Some(b.sleep())), entry(1, US, 15));
    assert_spread(&b, sent);
}

/// Checks that a lease that was written at this time is renewed now, before the margin and not long before it.
fn assert_spread(b: &Rig, written: Duration) {
    let margin_begins = written + TTL - MARGIN;
    assert!(b.now <= margin_begins && b.now >= margin_begins - MARGIN / 2, "{:?}", b.now - written);
}

/// Hosts that start together and have the same end are not renewed together.
#[test]
fn renewals_of_hosts_that_started_together_are_spread() {
    let renewal = |seed| {
        let settings = Settings::new(TTL, Some(MARGIN), OnLost::Exit).unwrap();
        let config = Config::parse(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.3.0"}"#).unwrap();
        let us = Identity::new(LeaseAttrs::new(US), None);
        let mut b = Rig::run(Manager::new(config, us, Some(net(1)), settings, seed));
        b.give(Input::Tick);
        b.give(list(10, &[]));
        let acquired = b.now;
        b.give(created(Ok(entry(1, US, 11))));
        let promised = b.m.renew_at().unwrap();
        while !matches!(b.sleep(), Call::Update { .. }) {}
        assert_eq!(b.now, promised, "what the log says is not what happens");
        assert_spread(&b, acquired);
        promised
    };
    let mut times: Vec<Duration> = (0..40).map(renewal).collect();
    times.sort();
    assert!(times[39] - times[0] >= MARGIN / 4, "{times:?}");
    // None of the quarters of that time is left out.
    let quarter = (times[39] - times[0]) / 4;
    for n in 0..4 {
        let (from, to) = (times[0] + quarter * n, times[0] + quarter * (n + 1));
        assert!(times.iter().any(|at| (from..=to).contains(at)), "{times:?}");
    }
}

#[test]
fn a_failed_renewal_is_repeated_faster_towards_the_end_then_lost() {
    let mut b = Rig::holding(OnLost::Exit);
    let deadline = b.m.status().deadline.unwrap();
    let mut last = None;
    let mut delays = vec![];
    while b.held().is_some() {
        let call = b.sleep();
        if b.held().is_none() {
            assert_eq!(call, Call::List, "lost: look first");
            break;
        }
        delays.extend(last.replace(b.now).map(|last| b.now - last));
        assert!(matches!(call, Call::Update { .. }));
        b.give(updated(Err(down())));
    }
    assert_eq!(b.now, deadline);
    assert!(
        delays[0] >= Duration::from_secs(2) && *delays.last().unwrap() < Duration::from_secs(1),
        "{delays:?}"
    );
    assert!(delays.len() < 100, "{delays:?}");
    assert!(b.said().contains(&Notice::Lost { subnet: net(1) }));
    // The key is still there and ours, so a conditional write brings it back.
    let call = b.give(list(30, &[entry(1, US, 11)]));
    assert_eq!(updated_entry(call), entry(1, US, 11));
    let sent = b.now;
    b.give(updated(Ok(entry(1, US, 31))));
    let regained = Notice::Acquired { subnet: net(1), how: How::Regained, deadline: Some(sent + TTL) };
    assert!(b.said().contains(&regained));
}

#[test]
fn a_renewal_that_did_happen_is_found_and_done_again() {
    let mut b = Rig::holding(OnLost::Exit);
    let deadline = b.m.status().deadline;
    b.sleep();
    b.give(updated(Err(down())));
    assert_eq!(updated_entry(Some(b.sleep())), entry(1, US, 11));
    assert_eq!(b.give(updated(Err(Error::Conflict))), Some(Call::List));
    let call = b.give(list(21, &[entry(1, US, 20), entry(3, THEM, 9)]));
    assert_eq!(b.m.status().deadline, deadline, "nobody knows when that write was made");
    assert_eq!(updated_entry(call), entry(1, US, 20));
}

/// The list that follows an outage shows these entries.
fn after_an_outage(b: &mut Rig, revision: Revision, entries: &[Entry]) -> Option<Call> {
    b.outage();
    assert_eq!(b.sleep(), Call::List);
    b.said();
    b.give(list(revision, entries))
}

#[test]
fn an_older_copy_of_our_lease_is_not_held_until_it_is_renewed() {
    let other = Entry { value: r#"{ "PublicIP": "192.0.2.1" }"#.to_owned(), ..entry(1, US, 11) };
    for copy in [entry(1, US, 5), other] {
        let mut b = Rig::holding(OnLost::Exit);
        let call = after_an_outage(&mut b, 11, &[copy.clone(), entry(3, THEM, 4)]);
        assert_eq!(updated_entry(call), copy);
        assert_eq!((b.said(), b.held()), (vec![Notice::Lost { subnet: net(1) }], None));
        b.give(updated(Ok(entry(1, US, 12))));
        assert!(matches!(b.said()[..], [Notice::Acquired { how: How::Regained, .. }]));
        assert_eq!(b.held(), Some(net(1)));
    }
    // The key is as we know it, so there is nothing to do.
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(after_an_outage(&mut b, 11, &[entry(1, US, 11), entry(3, THEM, 9)]), None);
    assert_eq!((b.said(), b.held()), (vec![], Some(net(1))));
}

#[test]
fn our_subnet_is_not_created_over_a_part_of_it_that_is_taken() {
    let half =
        |revision| Entry { key: SubnetKey::v4("10.5.1.128/25".parse().unwrap()), ..entry(1, THEM, revision) };
    let conflict = Notice::Conflict { subnet: net(1), owner: THEM, node: None, then: OnLost::Exit };
    // A list shows the other key, after a restore that has forgotten ours.
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(after_an_outage(&mut b, 20, &[half(12)]), None);
    assert!(b.said().contains(&conflict));
    // The watch shows the other key, before ours is deleted.
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.give(set(half(20))), None);
    assert!(matches!(b.said()[..], [Notice::Refused { .. }]));
    assert_eq!(b.held(), Some(net(1)), "our key stands");
    assert_eq!(b.give(gone(1, 21)), Some(Call::List));
    assert_eq!(b.give(list(21, &[half(20), entry(3, THEM, 9)])), None);
    assert_eq!(b.said(), [Notice::Revoked { subnet: net(1) }, conflict]);
}

#[test]
fn an_expired_lease_that_is_free_is_created_again() {
    let mut b = Rig::holding(OnLost::Exit);
    b.now = b.m.status().deadline.unwrap();
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    assert_eq!(created_key(b.give(list(30, &[entry(3, THEM, 9)]))), net(1));
    b.give(created(Ok(entry(1, US, 31))));
    assert_eq!(b.held(), Some(net(1)));
}

#[test]
fn an_expired_lease_that_is_taken_is_a_conflict() {
    let mut b = Rig::holding(OnLost::Exit);
    b.now = b.m.status().deadline.unwrap();
    b.give(Input::Tick);
    assert_eq!(b.give(list(30, &[entry(1, THEM, 29)])), None);
    let conflict = Notice::Conflict { subnet: net(1), owner: THEM, node: None, then: OnLost::Exit };
    assert!(b.said().contains(&conflict));
    assert_eq!((b.m.wake_at(), b.held()), (None, None));
}

#[test]
fn a_deleted_key_is_created_again_at_once() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(created_key(b.give(gone(1, 20))), net(1));
    assert_eq!((b.said(), b.held()), (vec![Notice::Revoked { subnet: net(1) }], None));
    b.give(created(Ok(entry(1, US, 21))));
    assert!(matches!(b.said()[..], [Notice::Acquired { how: How::Regained, .. }]));

    let mut b = Rig::holding(OnLost::Exit);
    b.give(gone(1, 20));
    b.give(created(Err(Error::Exists)));
    assert_eq!(b.sleep(), Call::List);
    b.give(list(22, &[entry(1, THEM, 21), entry(3, THEM, 9)]));
    assert!(matches!(b.said()[..], [Notice::Revoked { .. }, Notice::Conflict { .. }]));
}

#[test]
fn an_old_deletion_is_not_a_new_one() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.give(gone(1, 11)), None);
    assert_eq!(b.held(), Some(net(1)));
}

#[test]
fn what_the_watch_says_during_a_write_is_weighed_against_its_answer() {
    // Somebody else created the key before us, and it was deleted again: our creation stands.
    let mut b = Rig::holding(OnLost::Exit);
    b.give(gone(1, 20));
    assert_eq!(b.give(set(entry(1, THEM, 21))), None);
    b.give(gone(1, 22));
    assert_eq!(b.give(created(Ok(entry(1, US, 23)))), None);
    assert_eq!(b.held(), Some(net(1)));
    // The key was deleted after our creation.
    let mut b = Rig::holding(OnLost::Exit);
    b.give(gone(1, 20));
    assert_eq!(b.give(gone(1, 22)), None);
    assert_eq!(created_key(b.give(created(Ok(entry(1, US, 21))))), net(1));
    assert_eq!(b.held(), None);
    // The key was taken after our creation.
    let mut b = Rig::holding(OnLost::Exit);
    b.give(gone(1, 20));
    b.give(set(entry(1, THEM, 22)));
    b.give(created(Ok(entry(1, US, 21))));
    assert!(matches!(b.said()[..], [.., Notice::Conflict { owner: THEM, .. }]));
    // The key was deleted after a renewal whose answer is late.
    let mut b = Rig::holding(OnLost::Exit);
    b.sleep();
    assert_eq!(b.give(gone(1, 22)), None);
    assert_eq!(created_key(b.give(updated(Ok(entry(1, US, 21))))), net(1));
    assert_eq!(b.held(), None);
}

#[test]
fn an_overwritten_key_is_a_conflict_at_once() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.give(set(entry(1, THEM, 20))), None);
    assert_eq!(b.said(), [Notice::Conflict { subnet: net(1), owner: THEM, node: None, then: OnLost::Exit }]);
}

#[test]
fn keep_waits_for_the_key_and_says_so_once() {
    let mut b = Rig::holding(OnLost::Keep);
    b.give(set(entry(1, THEM, 20)));
    assert_eq!(b.said(), [Notice::Conflict { subnet: net(1), owner: THEM, node: None, then: OnLost::Keep }]);
    assert_eq!(b.sleep(), Call::List);
    b.give(list(25, &[entry(1, THEM, 20), entry(3, THEM, 9)]));
    assert_eq!((b.said(), b.held()), (vec![], None));
    assert_eq!(created_key(b.give(gone(1, 30))), net(1));
    b.give(created(Ok(entry(1, US, 31))));
    assert!(matches!(b.said()[..], [Notice::Acquired { how: How::Regained, .. }]));
}

#[test]
fn reacquire_takes_another_subnet_and_starts_the_peers_anew() {
    let mut b = Rig::holding(OnLost::Reacquire);
    assert_eq!(b.give(set(entry(1, THEM, 20))), Some(Call::List));
    let third = Lease { subnet: net(3), attrs: LeaseAttrs::new(THEM) };
    let said = b.said();
    assert!(matches!(said[0], Notice::Conflict { then: OnLost::Reacquire, .. }));
    assert_eq!(said[1], Notice::Peers(vec![Event::Removed(third.clone())]));
    assert_eq!(b.give(set(entry(1, THEM, 21))), None, "the old watch is not heard");
    assert_eq!(created_key(b.give(list(22, &[entry(1, THEM, 21), entry(3, THEM, 9)]))), net(2));
    b.give(created(Ok(entry(2, US, 23))));
    let first = Lease { subnet: net(1), attrs: LeaseAttrs::new(THEM) };
    let said = b.said();
    assert!(matches!(said[0], Notice::Acquired { how: How::Fresh, .. }));
    assert_eq!(said[1], Notice::Peers(vec![Event::Added(first), Event::Added(third)]));
    assert_eq!(b.watches, [10, 22]);
}

#[test]
fn a_reservation_is_held_without_a_write_and_without_an_end() {
    let mut b = Rig::new(OnLost::Exit, None);
    b.give(Input::Tick);
    assert_eq!(b.give(list(10, &[reservation(2, US, 4)])), None);
    assert_eq!(b.said(), [Notice::Acquired { subnet: net(2), how: How::Reused, deadline: None }]);
    b.give(Input::WatchStarted);
    // For a week there is nothing but the lists on the timer.
    let start = b.now;
    while b.now < start + Duration::from_secs(7 * 86_400) {
        assert_eq!(b.sleep(), Call::List);
        assert_eq!(b.give(list(10, &[reservation(2, US, 4)])), None);
    }
    assert_eq!((b.held(), b.said()), (Some(net(2)), vec![]));
}

#[test]
fn a_lease_becomes_a_reservation_and_back() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(b.give(set(reservation(1, US, 20))), None);
    assert_eq!(b.said(), [Notice::Reserved { subnet: net(1) }]);
    assert_eq!(b.m.status().deadline, None);
    b.now += TTL * 2;
    assert_eq!(b.give(Input::Tick), None);
    assert_eq!(updated_entry(b.give(set(entry(1, US, 30)))), entry(1, US, 30), "how much is left of it?");
}

#[test]
fn garbage_in_our_key_is_waited_out() {
    let mut b = Rig::holding(OnLost::Exit);
    let deadline = b.m.status().deadline.unwrap();
    let skipped = Skipped { key: "10.5.1.0-24".to_owned(), reason: "garbage".to_owned() };
    b.give(Input::Changes(vec![Change::Skipped(skipped.clone())]));
    let listing = Listing { entries: vec![entry(3, THEM, 9)], skipped: vec![skipped], revision: 20 };
    let mut calls = 0;
    while b.now < deadline + Duration::from_secs(600) {
        let reply = match b.sleep() {
            Call::List => Input::Reply(Reply::Listed(Ok(listing.clone()))),
            Call::Update { .. } => updated(Err(Error::Conflict)),
            other => panic!("{other:?}"),
        };
        calls += 1;
        let mut call = b.give(reply);
        while let Some(Call::List) = call {
            call = b.give(Input::Reply(Reply::Listed(Ok(listing.clone()))));
        }
        assert_eq!(call, None);
    }
    assert!(calls < 100, "{calls} calls in ten minutes");
    let lost = |notice: &Notice| matches!(notice, Notice::Lost { .. });
    let said = b.said();
    assert_eq!(said.iter().filter(|notice| lost(notice)).count(), 1, "{said:?}");
    assert!(!said.iter().any(|notice| matches!(notice, Notice::Conflict { .. } | Notice::Revoked { .. })));
    // An operator removes the key.
    assert_eq!(created_key(b.give(gone(1, 30))), net(1));
}

/// The config as an operator edits it before the leases are deleted.
fn narrower(rest: &str) -> Config {
    Config::parse(&format!(r#"{{"Network":"10.5.0.0/16"{rest}}}"#)).unwrap()
}

#[test]
fn a_subnet_without_a_place_in_the_newest_config_is_not_created_again() {
    for on_lost in [OnLost::Exit, OnLost::Reacquire] {
        let mut b = Rig::holding(on_lost);
        let Some(Call::Create { key, again: true, .. }) = b.give(gone(1, 20)) else { panic!("{on_lost:?}") };
        assert_eq!(key.ipv4, net(1));
        b.said();
        let call = b.give(Input::Reply(Reply::Outgrown(narrower(
            r#","SubnetMin":"10.5.2.0","SubnetMax":"10.5.2.0""#,
        ))));
        let outgrown = Notice::Outgrown { subnet: net(1), then: on_lost };
        assert!(b.said().contains(&outgrown), "{on_lost:?}");
        assert_eq!(b.held(), None);
        if on_lost == OnLost::Exit {
            assert_eq!((call, b.m.wake_at()), (None, None));
            continue;
        }
        assert_eq!(call, Some(Call::List));
        assert_eq!(created_key(b.give(list(21, &[entry(3, THEM, 9)]))), net(2), "from the newest config");
    }
}

#[test]
fn a_subnet_of_another_network_ends_the_run_unless_the_operator_keeps_it() {
    let mut b = Rig::holding(OnLost::Reacquire);
    b.give(gone(1, 20));
    let other = Config::parse(r#"{"Network":"10.6.0.0/16"}"#).unwrap();
    assert_eq!(b.give(Input::Reply(Reply::Outgrown(other))), None);
    assert!(b.said().contains(&Notice::Outgrown { subnet: net(1), then: OnLost::Exit }));
    assert_eq!(b.m.wake_at(), None);

    let mut b = Rig::holding(OnLost::Keep);
    assert!(
        matches!(b.give(gone(1, 20)), Some(Call::Create { again: false, .. })),
        "whatever the config says"
    );
}

#[test]
fn a_narrower_pool_leaves_the_subnet_that_is_held() {
    let mut b = Rig::holding(OnLost::Exit);
    assert_eq!(
        b.give(Input::Config(Ok(narrower(r#","SubnetMin":"10.5.2.0","SubnetMax":"10.5.3.0""#)))),
        None
    );
    assert_eq!(b.said(), [Notice::Config(ConfigNews::Applied(vec!["SubnetMin"]))]);
    assert_eq!((b.held(), b.m.status().config_drift), (Some(net(1)), false));
    b.give(Input::Config(Err("no JSON".to_owned())));
    assert!(b.m.status().config_drift);
}
