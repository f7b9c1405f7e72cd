//! Tests of the whole machine: lists beside a watch.

use super::rig::*;

#[test]
fn a_change_during_a_list_is_neither_lost_nor_taken_back() {
    let mut b = Rig::holding(OnLost::Exit);
    let fourth = |revision| Entry { key: SubnetKey::v4(net(77)), ..entry(77, THEM, revision) };
    // The watch fails by compaction, so a list follows.
    b.give(Input::WatchFailed(Error::Compacted));
    assert_eq!(b.sleep(), Call::List);
    b.give(list(20, &[entry(1, US, 11), entry(3, THEM, 9)]));
    assert_eq!(b.watches, [10, 20]);
    b.give(Input::WatchStarted);
    b.now = b.m.wake_at().unwrap();
    while b.give(Input::Tick) != Some(Call::List) {
        let sent = b.now;
        b.give(updated(Ok(entry(1, US, 21))));
        b.now = b.m.wake_at().unwrap();
        assert!(b.now > sent);
    }
    b.said();
    // This change is newer than the list's answer, which does not have it.
    b.give(set(fourth(40)));
    assert_eq!(b.said().len(), 1);
    b.give(list(39, &[entry(1, US, 21), entry(3, THEM, 9)]));
    assert_eq!(b.said(), []);
    // This change is older than the list's answer, which knows better: the peer came and went.
    b.give(set(Entry { key: SubnetKey::v4(net(78)), ..entry(78, THEM, 38) }));
    assert_eq!((b.said(), b.m.status().peers), (vec![], 2));
}

#[test]
fn lists_on_the_timer_repair_what_the_watch_lost() {
    let mut b = Rig::holding(OnLost::Exit);
    let start = b.now;
    let mut own = entry(1, US, 11);
    loop {
        match b.sleep() {
            Call::List => break,
            Call::Update { .. } => {
                own.revision += 1;
                b.give(updated(Ok(own.clone())));
            }
            other => panic!("{other:?}"),
        }
    }
    let waited = b.now - start;
    assert!(waited >= Duration::from_secs(240) && waited <= Duration::from_secs(360), "{waited:?}");
    b.said();
    b.give(list(50, &[own, entry(2, THEM, 30)]));
    assert!(matches!(&b.said()[..], [Notice::Peers(events)] if events.len() == 2));
    assert_eq!(b.m.status().counters.repairs, 2);
}

#[test]
fn a_watch_that_breaks_resumes_where_it_was() {
    let mut b = Rig::holding(OnLost::Exit);
    b.give(set(entry(2, THEM, 17)));
    let start = b.now;
    for _ in 0..8 {
        b.give(Input::WatchFailed(down()));
        let watches = b.watches.len();
        while b.watches.len() == watches {
            b.now = b.m.wake_at().unwrap();
            assert_eq!(b.give(Input::Tick), None);
        }
        assert_eq!(b.watches.last(), Some(&17));
    }
    let waited = b.now - start;
    assert!(waited > Duration::from_secs(5) && waited < Duration::from_secs(20), "{waited:?}");
    let lost = b.said().into_iter().filter(|notice| matches!(notice, Notice::StoreLost { .. })).count();
    assert_eq!(lost, 1);
    b.give(Input::WatchStarted);
    assert!(matches!(b.said()[..], [Notice::StoreBack { .. }]));
}

/// A machine that has seen the event of its own write at 11, and that of a peer at 17.
fn with_seen() -> Rig {
    let mut b = Rig::holding(OnLost::Exit);
    b.give(set(entry(1, US, 11)));
    b.give(set(entry(2, THEM, 17)));
    b.said();
    b
}

/// The watch breaks, and is asked for again.
fn break_watch(b: &mut Rig) {
    assert_eq!(b.give(Input::WatchFailed(down())), None);
    let watches = b.watches.len();
    while b.watches.len() == watches {
        b.now = b.m.wake_at().unwrap();
        assert_eq!(b.give(Input::Tick), None, "nothing but the watch is asked for");
    }
}

/// A restart of the store costs no list, if the store shows what the watch has brought.
#[test]
fn a_store_that_proves_itself_is_not_listed() {
    let mut b = with_seen();
    for outage in 0..3 {
        break_watch(&mut b);
        assert_eq!((b.watches.last(), b.seen.as_ref().map(Seen::from)), (Some(&17), Some(17)));
        let back = b.now;
        b.give(Input::WatchStarted);
        // The next call is the renewal, or the list on the timer.
        match b.sleep() {
            Call::Update { .. } => drop(b.give(updated(Ok(entry(1, US, 11))))),
            other => panic!("{other:?}"),
        }
        assert!(b.now > back + Duration::from_secs(10), "outage {outage}: {:?}", b.now - back);
        b.give(set(entry(2, THEM, 17)));
    }
    assert_eq!((b.held(), b.m.status().peers), (Some(net(1)), 2));
}

/// What the store does not show leads to a list at once, and what was known before proves nothing any more.
#[test]
fn a_store_that_is_another_one_is_listed_at_once() {
    let mut b = with_seen();
    // An outage of minutes: the back-off has grown.
    for _ in 0..12 {
        break_watch(&mut b);
    }
    assert!(b.seen.is_some());
    let back = b.now;
    b.give(Input::WatchFailed(Error::Compacted));
    assert_eq!(b.sleep(), Call::List);
    assert!(b.now <= back + Duration::from_secs(1), "{:?}", b.now - back);
    b.give(list(30, &[entry(1, US, 11), entry(3, THEM, 9)]));
    assert_eq!((b.m.status().peers, b.watches.last()), (1, Some(&30)));
    assert_eq!(b.seen, None);
    b.give(Input::WatchStarted);
    b.outage();
    assert_eq!(b.sleep(), Call::List, "nothing was seen since the list");
}

/// Deletions and reservations since are part of what the store has to show.
#[test]
fn what_was_deleted_has_to_be_shown_too() {
    let mut b = with_seen();
    b.give(gone(2, 18));
    b.give(set(reservation(2, THEM, 19)));
    break_watch(&mut b);
    let seen = b.seen.clone().unwrap();
    assert_eq!((seen.from(), seen.to(), b.watches.last()), (17, 19, Some(&19)));
}

/// Our own key is to be shown, too: a write whose event has not come is not.
#[test]
fn an_own_write_that_was_not_seen_is_looked_at() {
    let mut b = with_seen();
    while !matches!(b.sleep(), Call::Update { .. }) {}
    b.give(updated(Ok(entry(1, US, 20))));
    break_watch(&mut b);
    assert_eq!(b.seen, None);
    b.give(Input::WatchStarted);
    assert_eq!(b.sleep(), Call::List);
}

/// A list that finds something that the watch has not brought ends the proof: nobody knows what else was missed.
#[test]
fn a_list_that_repairs_ends_the_proof() {
    for (third, proves) in [(2, true), (77, false)] {
        let mut b = with_seen();
        let own = list_under_way(&mut b, 11);
        b.give(list(40, &[own, entry(third, THEM, 17), entry(3, THEM, 9)]));
        break_watch(&mut b);
        assert_eq!(b.seen.is_some(), proves);
    }
}

/// Calls fail while the watch runs: the store need not be the one of the watch any more. It has to prove that it is,
/// and has a few seconds for that.
#[test]
fn failed_calls_are_followed_by_a_proof_or_a_list() {
    for proves in [true, false] {
        let mut b = with_seen();
        while !matches!(b.sleep(), Call::Update { .. }) {}
        b.give(updated(Err(down())));
        while !matches!(b.sleep(), Call::Update { .. }) {}
        let back = b.now;
        b.give(updated(Ok(entry(1, US, 11))));
        let watches = b.watches.len();
        while b.watches.len() == watches {
            b.now = b.m.wake_at().unwrap();
            assert_eq!(b.give(Input::Tick), None);
        }
        assert!(b.seen.is_some() && b.now <= back + Duration::from_secs(1));
        let limit = back + Duration::from_secs(5);
        if proves {
            b.give(Input::WatchStarted);
            while !matches!(b.sleep(), Call::Update { .. } | Call::List) {}
            assert!(b.now > limit, "{:?}", b.now - back);
        } else {
            assert_eq!(b.sleep(), Call::List);
            assert!(b.now <= limit, "{:?}", b.now - back);
        }
    }
}

#[test]
fn a_restored_store_is_noticed_and_followed_from_its_own_revision() {
    let mut b = Rig::holding(OnLost::Exit);
    b.give(set(entry(2, THEM, 500)));
    loop {
        match b.sleep() {
            Call::List => break,
            _ => drop(b.give(updated(Ok(entry(1, US, 600))))),
        }
    }
    b.said();
    assert_eq!(created_key(b.give(list(7, &[entry(3, THEM, 5)]))), net(1));
    assert_eq!(b.said()[0], Notice::StoreReset);
    assert_eq!(b.watches.last(), Some(&7));
    b.give(created(Ok(entry(1, US, 8))));
    assert_eq!(b.held(), Some(net(1)));
    b.give(Input::WatchStarted);
    b.give(set(entry(2, THEM, 9)));
    assert_eq!(b.m.status().peers, 2);
}

/// Waits until a list is on its way. Renewals go through, from this revision on.
fn list_under_way(b: &mut Rig, mut revision: Revision) -> Entry {
    let mut own = entry(1, US, 11);
    while b.sleep() != Call::List {
        own = entry(1, US, revision);
        revision += 1;
        b.give(updated(Ok(own.clone())));
    }
    b.said();
    own
}

#[test]
fn a_list_from_before_the_end_of_an_outage_does_not_replace_the_one_after_it() {
    let mut b = Rig::holding(OnLost::Exit);
    let own = list_under_way(&mut b, 20);
    b.outage();
    let back = b.now;
    // This is the store as it was before the outage; it may have been restored since.
    assert_eq!(b.give(list(50, &[own, entry(3, THEM, 9)])), None);
    assert_eq!(b.sleep(), Call::List);
    assert!(b.now <= back + Duration::from_secs(1), "{:?}", b.now - back);
}

#[test]
fn a_watch_that_starts_long_after_its_list_is_followed_by_another_list() {
    let mut b = Rig::new(OnLost::Exit, Some(net(1)));
    b.give(Input::Tick);
    // The host sleeps, and the store is restored meanwhile.
    b.now += Duration::from_secs(30);
    b.give(list(10, &[reservation(1, US, 4)]));
    let woken = b.now;
    assert_eq!(b.give(Input::WatchStarted), None);
    assert_eq!(b.sleep(), Call::List);
    assert!(b.now <= woken + Duration::from_secs(1), "{:?}", b.now - woken);
}

#[test]
fn what_the_watch_saw_of_a_store_is_not_replayed_over_the_restored_one() {
    let mut b = Rig::holding(OnLost::Exit);
    list_under_way(&mut b, 20);
    b.give(set(entry(2, THEM, 51)));
    b.give(set(entry(2, THEM, 52)));
    assert_eq!((b.said().len(), b.m.status().peers), (1, 2));
    b.give(list(9, &[entry(3, THEM, 9), entry(1, US, 5)]));
    assert_eq!((b.m.status().peers, b.said()[0].clone()), (1, Notice::StoreReset));
}

#[test]
fn an_outage_of_a_day_is_cheap_and_changes_nothing() {
    let mut b = Rig::with(Settings::default(), None);
    b.give(Input::Tick);
    b.give(list(10, &[entry(3, THEM, 9)]));
    b.give(created(Ok(entry(1, US, 11))));
    b.give(Input::WatchStarted);
    b.said();
    b.give(Input::WatchFailed(down()));
    let start = b.now;
    let mut wakes = 0;
    while b.now < start + Duration::from_secs(3600) {
        b.now = b.m.wake_at().unwrap();
        let watches = b.watches.len();
        match b.give(Input::Tick) {
            Some(Call::List) => drop(b.give(Input::Reply(Reply::Listed(Err(down()))))),
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        if b.watches.len() > watches {
            b.give(Input::WatchFailed(down()));
        }
        wakes += 1;
    }
    assert!(wakes < 3000, "{wakes} wakes in an hour");
    assert_eq!((b.held().is_some(), b.m.status().peers), (true, 1));
    let said = b.said();
    assert!(matches!(said[0], Notice::StoreLost { .. }));
    assert!(said[1..].iter().all(|notice| matches!(notice, Notice::StoreStillLost { .. })), "{said:?}");
    assert!((59..=60).contains(&(said.len() - 1)), "{} lines in an hour", said.len());
}

/// A watch that was let in before a password changed goes on to bring events while every call is refused.
#[test]
fn an_event_ends_no_outage_of_calls() {
    let mut b = Rig::holding(OnLost::Exit);
    assert!(matches!(b.sleep(), Call::Update { .. }));
    b.give(updated(Err(Error::Denied("no".to_owned()))));
    assert!(matches!(b.said()[..], [Notice::StoreLost { .. }]));
    let wakes = b.m.wake_at();
    for revision in 20..25 {
        b.give(set(entry(3, THEM, revision)));
        assert!(b.said().iter().all(|notice| !matches!(notice, Notice::StoreBack { .. })));
        assert!(b.m.status().store_out && b.m.wake_at() == wakes, "the next call comes earlier");
    }
    assert!(matches!(b.sleep(), Call::Update { .. }));
    b.give(updated(Ok(entry(1, US, 30))));
    assert!(b.said().iter().any(|notice| matches!(notice, Notice::StoreBack { .. })));
}
