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
