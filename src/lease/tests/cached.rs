//! Tests of the whole machine: a start with what an earlier run knew.

use super::rig::*;
use crate::lease::{Basis, Cached};

const LEFT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_millis(300);

fn peer(third: u8) -> Lease {
    Lease { subnet: net(third), attrs: LeaseAttrs::new(THEM) }
}

/// A machine whose earlier run held 10.5.1.0/24, written at revision 11, for another minute, with one peer.
fn kept(on_lost: OnLost) -> Rig {
    kept_by(on_lost, |_| {})
}

fn kept_by(on_lost: OnLost, change: impl FnOnce(&mut Cached)) -> Rig {
    let mut b = Rig::new(on_lost, Some(net(1)));
    let deadline = Some(b.now + LEFT);
    let mut cached = Cached { entry: entry(1, US, 11), deadline, peers: vec![entry(2, THEM, 0)] };
    change(&mut cached);
    b.m = b.m.with_cached(cached, b.now + PATIENCE);
    b
}

/// The same after the store has failed to answer its first list.
fn running(on_lost: OnLost) -> Rig {
    let mut b = kept(on_lost);
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    assert_eq!(b.give(Input::Reply(Reply::Listed(Err(down())))), None);
    assert_eq!((b.held(), basis(&b)), (Some(net(1)), Basis::Cache));
    b.said();
    b
}

fn basis(b: &Rig) -> Basis {
    b.m.status().basis
}

/// The next list gets this answer.
fn lists(b: &mut Rig, revision: Revision, entries: &[Entry]) -> Option<Call> {
    assert_eq!(b.sleep(), Call::List);
    b.give(list(revision, entries))
}

#[test]
fn a_silent_store_is_waited_for_a_moment() {
    let mut b = kept(OnLost::Exit);
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    assert_eq!((b.held(), b.m.wake_at()), (None, Some(b.now + PATIENCE)));
    b.now += PATIENCE;
    assert_eq!(b.give(Input::Tick), None, "the first list is still on its way");
    let deadline = Some(b.now - PATIENCE + LEFT);
    let begun = Notice::Acquired { subnet: net(1), how: How::Cached, deadline };
    assert_eq!(b.said(), [begun, Notice::Peers(vec![Event::Added(peer(2))])]);
    assert_eq!((b.held(), b.m.status().deadline, basis(&b)), (Some(net(1)), deadline, Basis::Cache));
    // The answer to the list comes after all.
    let call = b.give(list(20, &[entry(1, US, 11), entry(2, THEM, 9)]));
    assert_eq!(updated_entry(call), entry(1, US, 11));
    assert_eq!((b.said(), basis(&b), b.watches.clone()), (vec![], Basis::Store, vec![20]));
}

#[test]
fn a_store_that_fails_is_not_waited_for() {
    for error in [down(), Error::Denied("no".to_owned())] {
        let mut b = kept(OnLost::Exit);
        b.give(Input::Tick);
        b.give(Input::Reply(Reply::Listed(Err(error))));
        assert_eq!(b.held(), Some(net(1)));
        assert!(matches!(
            b.said()[..],
            [Notice::StoreLost { .. }, Notice::Acquired { how: How::Cached, .. }, Notice::Peers(_)]
        ));
    }
}

#[test]
fn the_word_of_the_store_comes_before_what_was_kept() {
    let mut b = kept(OnLost::Exit);
    b.give(Input::Tick);
    // Our key is gone, and the subnet is somebody else's.
    let subnet = created_key(b.give(list(20, &[entry(1, THEM, 15)])));
    assert_ne!(subnet, net(1));
    b.now += 2 * PATIENCE;
    assert_eq!(b.give(Input::Tick), None);
    let forgotten = Notice::Forgotten { subnet: net(1) };
    assert_eq!((b.held(), b.said(), basis(&b)), (None, vec![forgotten], Basis::Store));
}

#[test]
fn what_was_kept_is_forgotten_when_the_store_has_it_no_more() {
    let forgotten = [Notice::Forgotten { subnet: net(1) }];
    let reserved = |cached: &mut Cached| {
        cached.entry = reservation(1, US, 11);
        cached.deadline = None;
    };
    for (what, listed, reserves, is_forgotten) in [
        ("gone", vec![], false, true),
        ("somebody else's", vec![entry(1, THEM, 15)], false, true),
        ("an older copy, of a restored store", vec![entry(1, US, 9)], false, true),
        ("as it was", vec![entry(1, US, 11)], false, false),
        ("renewed since, with a lost answer", vec![entry(1, US, 15)], false, false),
        ("a reservation since", vec![reservation(1, US, 15)], false, false),
        ("a reservation that is gone", vec![], true, true),
        ("a reservation no longer", vec![entry(1, US, 15)], true, true),
    ] {
        let mut b = kept_by(OnLost::Exit, |cached| {
            if reserves {
                reserved(cached);
            }
        });
        b.give(Input::Tick);
        b.give(list(20, &listed));
        let said = b.said();
        assert_eq!(said.starts_with(&forgotten), is_forgotten, "{what}: {said:?}");
    }
    // The first list shows it, its renewal gets no answer, and the second list does not show it.
    let mut b = kept(OnLost::Exit);
    b.give(Input::Tick);
    assert_eq!(updated_entry(b.give(list(20, &[entry(1, US, 11)]))), entry(1, US, 11));
    b.give(updated(Err(down())));
    b.said();
    assert_eq!(created_key(lists(&mut b, 21, &[])), net(1));
    assert!(b.said().contains(&forgotten[0]));
    b.give(created(Err(Error::Exists)));
    lists(&mut b, 22, &[]);
    assert_eq!(b.said(), [], "once");
}

#[test]
fn what_has_ended_is_not_used() {
    let mut b = kept_by(OnLost::Exit, |cached| cached.deadline = Some(Duration::from_secs(1000)));
    b.give(Input::Tick);
    b.give(Input::Reply(Reply::Listed(Err(down()))));
    assert_eq!((b.held(), basis(&b)), (None, Basis::Store));
    // A reservation has no end.
    let mut b = kept_by(OnLost::Exit, |cached| {
        cached.entry = reservation(1, US, 11);
        cached.deadline = None;
    });
    b.give(Input::Tick);
    b.give(Input::Reply(Reply::Listed(Err(down()))));
    assert_eq!((b.held(), b.m.status().deadline), (Some(net(1)), None));
    b.said();
    assert_eq!(lists(&mut b, 20, &[reservation(1, US, 11), entry(2, THEM, 9)]), None, "nothing to write");
    assert_eq!((b.held(), basis(&b)), (Some(net(1)), Basis::Store));
}

#[test]
fn peers_of_no_use_are_refused_as_those_of_the_store_are() {
    let mut b = kept_by(OnLost::Exit, |cached| {
        cached.peers = vec![entry(2, THEM, 0), entry(3, US, 0), entry(1, THEM, 0)];
    });
    b.give(Input::Tick);
    b.give(Input::Reply(Reply::Listed(Err(down()))));
    assert!(b.said().contains(&Notice::Peers(vec![Event::Added(peer(2))])));
}

#[test]
fn a_store_that_is_back_is_compared_with_what_was_kept_and_the_lease_renewed() {
    let mut b = running(OnLost::Exit);
    let deadline = b.m.status().deadline;
    let call = lists(&mut b, 20, &[entry(1, US, 11), entry(3, THEM, 9)]);
    assert_eq!(updated_entry(call), entry(1, US, 11));
    assert_eq!((b.watches.clone(), basis(&b), b.m.status().deadline), (vec![20], Basis::Store, deadline));
    let said = b.said();
    assert!(said.contains(&Notice::Peers(vec![Event::Added(peer(3)), Event::Removed(peer(2))])), "{said:?}");
    let sent = b.now;
    b.now += Duration::from_secs(1);
    b.give(updated(Ok(entry(1, US, 21))));
    assert_eq!(b.said(), [Notice::Renewed { subnet: net(1), deadline: Some(sent + TTL) }]);
    assert_eq!(b.give(Input::WatchStarted), None);
}

#[test]
fn a_lease_whose_renewal_is_due_is_renewed_before_the_list() {
    let mut b =
        kept_by(OnLost::Exit, |cached| cached.deadline = Some(Duration::from_secs(1000) + MARGIN / 2));
    b.give(Input::Tick);
    b.give(Input::Reply(Reply::Listed(Err(down()))));
    b.said();
    assert_eq!(updated_entry(Some(b.sleep())), entry(1, US, 11));
    assert_eq!(b.give(updated(Ok(entry(1, US, 30)))), Some(Call::List), "once, then the peers");
    assert_eq!(basis(&b), Basis::Store);
    assert_eq!(b.give(list(31, &[entry(1, US, 30), entry(2, THEM, 9)])), None);
}

#[test]
fn a_key_that_is_gone_meanwhile_is_created_again() {
    let mut b = running(OnLost::Exit);
    assert_eq!(created_key(lists(&mut b, 20, &[entry(2, THEM, 9)])), net(1));
    assert!(b.said().contains(&Notice::Revoked { subnet: net(1) }));
    b.give(created(Ok(entry(1, US, 21))));
    assert!(matches!(b.said()[..], [Notice::Acquired { how: How::Regained, .. }]));
    assert_eq!(basis(&b), Basis::Store);
}

#[test]
fn a_store_that_was_restored_meanwhile_is_noticed() {
    let mut b = running(OnLost::Exit);
    let call = lists(&mut b, 9, &[entry(1, US, 5), entry(2, THEM, 4)]);
    assert_eq!(updated_entry(call), entry(1, US, 5));
    let said = b.said();
    assert!(
        said.contains(&Notice::StoreReset) && said.contains(&Notice::Lost { subnet: net(1) }),
        "{said:?}"
    );
}

#[test]
fn a_subnet_that_was_taken_meanwhile_is_a_conflict() {
    for (then, end) in [(OnLost::Exit, true), (OnLost::Keep, false), (OnLost::Reacquire, false)] {
        let mut b = running(then);
        let call = lists(&mut b, 20, &[entry(1, THEM, 15)]);
        assert!(b.said().contains(&Notice::Conflict { subnet: net(1), owner: THEM, node: None, then }));
        assert_eq!((b.held(), call.is_none() && b.m.wake_at().is_none()), (None, end));
        assert_eq!(call, (then == OnLost::Reacquire).then_some(Call::List));
    }
}

/// The deadline of the earlier run passes while the store is away.
fn lapsed(on_lost: OnLost) -> Rig {
    let mut b = running(on_lost);
    let deadline = b.m.status().deadline.unwrap();
    loop {
        b.sleep();
        if b.held().is_none() {
            break;
        }
        b.give(Input::Reply(Reply::Listed(Err(down()))));
    }
    assert_eq!((b.now, basis(&b)), (deadline, Basis::Lapsed));
    let said = b.said();
    assert!(
        said.ends_with(&[Notice::Lapsed { subnet: net(1) }, Notice::Peers(vec![Event::Removed(peer(2))])]),
        "{said:?}"
    );
    b
}

#[test]
fn nothing_is_forwarded_beyond_the_deadline_of_an_earlier_run() {
    let mut b = lapsed(OnLost::Exit);
    // The list shows the key as it was. It is ours only when a write has gone through, and only then peers come.
    let call = b.give(list(30, &[entry(1, US, 11), entry(3, THEM, 9)]));
    assert_eq!(updated_entry(call), entry(1, US, 11));
    let said = b.said();
    assert!(!said.iter().any(|notice| matches!(notice, Notice::Peers(_))), "{said:?}");
    assert_eq!((b.held(), basis(&b)), (None, Basis::Lapsed));
    let sent = b.now;
    b.give(updated(Ok(entry(1, US, 31))));
    let regained = Notice::Acquired { subnet: net(1), how: How::Regained, deadline: Some(sent + TTL) };
    assert_eq!(b.said(), [regained, Notice::Peers(vec![Event::Added(peer(3))])]);
    assert_eq!((b.held(), basis(&b)), (Some(net(1)), Basis::Store));
    b.give(Input::WatchStarted);
    assert_eq!(b.give(set(entry(2, THEM, 32))), None);
    assert_eq!(b.said(), [Notice::Peers(vec![Event::Added(peer(2))])]);
}

#[test]
fn a_subnet_that_was_taken_after_the_deadline_is_what_the_operator_says() {
    let conflict = |then| Notice::Conflict { subnet: net(1), owner: THEM, node: None, then };
    let mut b = lapsed(OnLost::Exit);
    assert_eq!(b.give(list(30, &[entry(1, THEM, 29), entry(3, THEM, 9)])), None);
    assert!(b.said().ends_with(&[conflict(OnLost::Exit)]));
    assert_eq!(b.m.wake_at(), None);

    let mut b = lapsed(OnLost::Keep);
    b.give(list(30, &[entry(1, THEM, 29), entry(3, THEM, 9)]));
    assert!(b.said().ends_with(&[conflict(OnLost::Keep), Notice::Peers(vec![Event::Added(peer(3))])]));

    let mut b = lapsed(OnLost::Reacquire);
    assert_eq!(b.give(list(30, &[entry(1, THEM, 29), entry(3, THEM, 9)])), Some(Call::List));
    assert!(b.said().ends_with(&[conflict(OnLost::Reacquire)]));
    let subnet = created_key(b.give(list(30, &[entry(1, THEM, 29), entry(3, THEM, 9)])));
    assert_eq!(subnet, net(2));
    b.give(created(Ok(entry(2, US, 31))));
    let said = b.said();
    assert!(matches!(said[0], Notice::Acquired { how: How::Fresh, .. }), "{said:?}");
    assert!(
        matches!(&said[1], Notice::Peers(events) if events.iter().all(|event| matches!(event, Event::Added(_)))),
        "{said:?}"
    );
}

#[test]
fn a_run_that_the_store_has_confirmed_forwards_on_when_its_lease_ends() {
    let mut b = running(OnLost::Exit);
    lists(&mut b, 20, &[entry(1, US, 11), entry(2, THEM, 9)]);
    b.give(updated(Ok(entry(1, US, 21))));
    b.give(Input::WatchStarted);
    b.said();
    while b.held().is_some() {
        if matches!(b.sleep(), Call::Update { .. }) {
            b.give(updated(Err(down())));
        }
    }
    let said = b.said();
    assert!(said.contains(&Notice::Lost { subnet: net(1) }), "{said:?}");
    assert!(
        !said.iter().any(|notice| matches!(notice, Notice::Peers(_) | Notice::Lapsed { .. })),
        "{said:?}"
    );
}
