//! Tests of the whole machine: leases that look like ours and may be another living host's.

use super::rig::*;
use crate::lease::{Basis, Cached};
use crate::subnet::NodeId;
use std::net::Ipv4Addr;

const PATIENCE: Duration = Duration::from_secs(60);

fn named(ip: Ipv4Addr, node: &str) -> LeaseAttrs {
    LeaseAttrs { node_id: Some(node.parse().unwrap()), ..LeaseAttrs::new(ip) }
}

fn lease(third: u8, attrs: &LeaseAttrs, revision: Revision) -> Entry {
    let value = attrs.encode(Generation::V3);
    Entry { attrs: attrs.clone(), value, ..entry(third, attrs.public_ip, revision) }
}

fn asked(third: u8, attrs: &LeaseAttrs, by: &str, revision: Revision) -> Entry {
    lease(third, &LeaseAttrs { asked_by: NodeId::published(by), ..attrs.clone() }, revision)
}

fn settings(force_takeover: bool) -> Settings {
    let mut settings = Settings::new(TTL, Some(MARGIN), OnLost::Exit).unwrap();
    settings.force_takeover = force_takeover;
    settings
}

/// The machine of the node `ours` at our address, before the list that shows it this lease.
fn starting() -> Rig {
    let mut b = Rig::of(named(US, "ours"), settings(false), None);
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    b
}

/// The same, which has found this lease of our address and asks the link about it.
fn doubting(found: &Entry) -> Rig {
    let mut b = starting();
    assert_eq!(b.give(list(10, std::slice::from_ref(found))), None);
    assert_eq!(b.probes, [US]);
    assert!(matches!(b.said()[..], [Notice::Doubted { .. }]));
    b
}

/// Nobody answers on the link, so the question goes into the store.
fn asking(found: &Entry) -> Rig {
    let mut b = doubting(found);
    b.now += Duration::from_secs(1);
    assert_eq!(b.give(Input::Probed { address: US, mac: None }), Some(Call::List));
    asks(b, found)
}

/// The next list shows this lease again, and its owner is asked in the store.
fn asks(mut b: Rig, found: &Entry) -> Rig {
    let question = LeaseAttrs { asked_by: NodeId::published("ours"), ..found.attrs.clone() };
    let call = b.give(list(10, std::slice::from_ref(found)));
    assert_eq!(call, Some(Call::Update { held: found.clone(), attrs: question, ttl: TTL }));
    assert_eq!(b.give(updated(Ok(asked(1, &found.attrs, "ours", 11)))), None);
    b
}

fn rival(owner: LeaseAttrs, claim: Claim) -> Box<Rival> {
    Box::new(Rival { subnet: net(1), owner, ours: named(US, "ours"), claim })
}

#[test]
fn a_second_host_with_our_address_is_refused_while_it_answers() {
    let theirs = named(US, "theirs");
    let mut b = asking(&lease(1, &theirs, 5));
    let sent = b.now;
    assert_eq!(b.sleep(), Call::List);
    assert!(b.now <= sent + Duration::from_secs(2));
    assert_eq!(b.give(list(12, &[lease(1, &theirs, 12)])), None);
    let rival = rival(theirs, Claim::Address);
    assert_eq!(b.said(), [Notice::Claimed { rival: rival.clone(), sign: Sign::Written }]);
    assert_eq!((b.m.wake_at(), b.held()), (None, None));
    let text = rival.to_string();
    assert!(["10.5.1.0/24", "192.0.2.1", "theirs", "ours"].iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn an_answer_on_the_link_is_enough_and_nothing_is_written() {
    let theirs = named(US, "theirs");
    let mut b = doubting(&lease(1, &theirs, 5));
    let mac = "02:00:00:00:00:09".to_owned();
    assert_eq!(b.give(Input::Probed { address: US, mac: Some(mac.clone()) }), None);
    let sign = Sign::Arp(mac);
    assert_eq!(b.said(), [Notice::Claimed { rival: rival(theirs, Claim::Address), sign }]);
    assert_eq!(b.m.wake_at(), None);
}

#[test]
fn a_reinstalled_host_takes_its_lease_after_a_minute_of_silence() {
    let theirs = named(US, "theirs");
    let mut b = asking(&lease(1, &theirs, 5));
    let sent = b.now;
    let mut lists = 0;
    let question = asked(1, &theirs, "ours", 11);
    let call = loop {
        assert_eq!(b.sleep(), Call::List);
        lists += 1;
        if let Some(call) = b.give(list(20, std::slice::from_ref(&question))) {
            break call;
        }
    };
    assert_eq!(call, Call::Update { held: question, attrs: named(US, "ours"), ttl: TTL });
    assert!(
        b.now >= sent + PATIENCE && b.now < sent + PATIENCE + Duration::from_secs(1),
        "{:?}",
        b.now - sent
    );
    assert!(lists < 10, "{lists} lists");
    b.give(updated(Ok(lease(1, &named(US, "ours"), 21))));
    let said = b.said();
    assert!(
        matches!(&said[0], Notice::TakenOver { subnet, from } if *subnet == net(1) && from.node_id == theirs.node_id)
    );
    assert!(matches!(said[1], Notice::Acquired { how: How::Reused, .. }));
    assert_eq!(said.len(), 2, "one line more than usual: {said:?}");
}

#[test]
fn an_owner_that_wakes_at_the_last_moment_keeps_its_lease() {
    let theirs = named(US, "theirs");
    let mut b = asking(&lease(1, &theirs, 5));
    loop {
        assert_eq!(b.sleep(), Call::List);
        if b.give(list(20, &[asked(1, &theirs, "ours", 11)])).is_some() {
            break;
        }
    }
    // It has written between our look and our write.
    assert_eq!(b.give(updated(Err(Error::Conflict))), None);
    assert_eq!(b.sleep(), Call::List);
    assert_eq!(b.give(list(22, &[lease(1, &theirs, 22)])), None);
    assert!(matches!(b.said()[..], [Notice::Claimed { sign: Sign::Written, .. }]));
}

#[test]
fn a_question_that_stands_is_not_written_again() {
    let theirs = named(US, "theirs");
    for asker in ["ours", "third"] {
        let mut b = doubting(&asked(1, &theirs, asker, 5));
        assert_eq!(b.give(Input::Probed { address: US, mac: None }), Some(Call::List));
        assert_eq!(b.give(list(10, &[asked(1, &theirs, asker, 5)])), None);
        assert_eq!(b.sleep(), Call::List);
        b.give(list(12, &[lease(1, &theirs, 12)]));
        assert!(matches!(b.said()[..], [Notice::Claimed { .. }]));
    }
}

#[test]
fn takeover_can_be_forced() {
    let theirs = named(US, "theirs");
    let mut b = Rig::of(named(US, "ours"), settings(true), None);
    b.give(Input::Tick);
    let found = lease(1, &theirs, 5);
    let call = b.give(list(10, std::slice::from_ref(&found)));
    assert_eq!(call, Some(Call::Update { held: found, attrs: named(US, "ours"), ttl: TTL }));
    assert_eq!(b.probes, [] as [Ipv4Addr; 0]);
    b.give(updated(Ok(lease(1, &named(US, "ours"), 11))));
    assert!(matches!(b.said()[..], [Notice::TakenOver { .. }, Notice::Acquired { .. }]));
}

#[test]
fn a_host_whose_address_has_changed_keeps_its_subnet() {
    let before = named(THEM, "ours");
    // Whoever answers for the old address now may have nothing to do with the lease, so the link is not asked.
    let mut b = asks(starting(), &lease(1, &before, 5));
    assert_eq!(b.probes, [] as [Ipv4Addr; 0]);
    assert!(matches!(b.said()[..], [Notice::Doubted { .. }]));
    let sent = b.now;
    let question = asked(1, &before, "ours", 11);
    let call = loop {
        assert_eq!(b.sleep(), Call::List);
        if let Some(call) = b.give(list(11, std::slice::from_ref(&question))) {
            break call;
        }
    };
    assert_eq!(call, Call::Update { held: question, attrs: named(US, "ours"), ttl: TTL });
    assert!(b.now - sent <= Duration::from_secs(6), "{:?}", b.now - sent);
    b.give(updated(Ok(lease(1, &named(US, "ours"), 12))));
    assert_eq!(b.held(), Some(net(1)));
    // A copy of its disk that runs elsewhere answers, and is not robbed.
    let mut b = asks(starting(), &lease(1, &before, 5));
    b.said();
    assert_eq!(b.sleep(), Call::List);
    b.give(list(12, &[lease(1, &before, 12)]));
    let rival = rival(before, Claim::Name);
    assert_eq!(b.said(), [Notice::Claimed { rival: rival.clone(), sign: Sign::Written }]);
    assert!(rival.remedy().contains("node-id"), "{}", rival.remedy());
}

#[test]
fn a_lease_of_our_own_is_enough_although_a_copy_of_us_lives_elsewhere() {
    let mut b = starting();
    let (ours, copys) = (lease(2, &named(US, "ours"), 7), lease(1, &named(THEM, "ours"), 5));
    let call = b.give(list(10, &[copys.clone(), ours.clone()]));
    assert_eq!(call, Some(Call::Update { held: ours, attrs: named(US, "ours"), ttl: TTL }));
    b.give(updated(Ok(lease(2, &named(US, "ours"), 11))));
    let by = Box::new(copys.attrs);
    let said = b.said();
    assert!(said.contains(&Notice::Namesake { subnet: net(1), by }), "{said:?}");
    assert_eq!(b.held(), Some(net(2)));
    // It stays a peer, and is told of once.
    assert_eq!(b.m.peers().count(), 1);
    b.give(Input::WatchStarted);
    b.give(set(lease(1, &named(THEM, "ours"), 12)));
    assert_eq!(b.said(), []);
    // A second host with our address is asked all the same.
    let mut b = starting();
    let (ours, theirs) = (lease(2, &named(US, "ours"), 7), lease(1, &named(US, "theirs"), 5));
    assert_eq!(b.give(list(10, &[theirs, ours])), None);
    assert_eq!(b.probes, [US]);
}

#[test]
fn a_question_without_an_answer_is_forgotten_when_we_have_a_lease() {
    let copys = lease(1, &named(THEM, "ours"), 5);
    let mut b = starting();
    assert!(matches!(b.give(list(10, std::slice::from_ref(&copys))), Some(Call::Update { .. })));
    b.give(updated(Err(down())));
    assert_eq!(b.sleep(), Call::List);
    // An earlier run's creation has arrived late.
    let ours = lease(2, &named(US, "ours"), 11);
    let call = b.give(list(11, &[copys, ours.clone()]));
    assert_eq!(call, Some(Call::Update { held: ours, attrs: named(US, "ours"), ttl: TTL }));
    b.give(updated(Ok(lease(2, &named(US, "ours"), 12))));
    assert_eq!(b.held(), Some(net(2)));
}

/// The machine of the node `ours`, which holds 10.5.1.0/24, written at revision 11.
fn holding() -> Rig {
    holding_or(OnLost::Exit)
}

fn holding_or(on_lost: OnLost) -> Rig {
    let ours = named(US, "ours");
    let mut settings = settings(false);
    settings.on_lost = on_lost;
    let mut b = Rig::of(ours.clone(), settings, Some(net(1)));
    b.give(Input::Tick);
    assert!(matches!(b.give(list(10, &[entry(3, THEM, 9)])), Some(Call::Create { .. })));
    b.give(created(Ok(lease(1, &ours, 11))));
    b.give(Input::WatchStarted);
    b.said();
    b
}

#[test]
fn whoever_asks_is_answered_within_a_second_and_named() {
    let ours = named(US, "ours");
    let mut b = holding();
    for (round, by) in [(0, "second"), (1, "second"), (2, "third")] {
        let question = asked(1, &ours, by, 20 + 2 * round);
        let seen = b.now;
        assert_eq!(b.give(set(question.clone())), None);
        assert_eq!(b.sleep(), Call::Update { held: question, attrs: ours.clone(), ttl: TTL });
        assert!(b.now <= seen + Duration::from_secs(1));
        b.give(updated(Ok(lease(1, &ours, 21 + 2 * round))));
        let said = b.said();
        let asked = |notice: &Notice| matches!(notice, Notice::Asked { by: who, .. } if who.as_str() == by);
        assert_eq!(said.iter().filter(|notice| asked(notice)).count(), usize::from(round != 1), "{said:?}");
        assert_eq!(b.held(), Some(net(1)));
    }
    assert_eq!(b.m.status().counters.overwrites, 0);
}

#[test]
fn a_flannel_with_our_address_is_outbid_calmly_and_told_of() {
    let mut b = holding();
    let start = b.now;
    let mut rounds = 0;
    while b.now < start + Duration::from_secs(50) {
        let seen = b.now;
        let theirs = entry(1, US, 20 + 2 * rounds);
        assert_eq!(b.give(set(theirs.clone())), None);
        assert_eq!(b.sleep(), Call::Update { held: theirs, attrs: named(US, "ours"), ttl: TTL });
        assert!(b.now - seen > Duration::from_secs(2));
        b.give(updated(Ok(lease(1, &named(US, "ours"), 21 + 2 * rounds))));
        rounds += 1;
    }
    let by = Box::new(LeaseAttrs::new(US));
    let said: Vec<_> = b.said().into_iter().filter(|one| !matches!(one, Notice::Renewed { .. })).collect();
    assert_eq!(said, [Notice::Overwritten { subnet: net(1), by }]);
    assert_eq!(b.m.status().counters.overwrites, rounds);
}

#[test]
fn a_copy_that_writes_our_lease_is_outbid_once_and_then_has_it() {
    for then in [OnLost::Exit, OnLost::Keep, OnLost::Reacquire] {
        let (ours, copys) = (named(US, "ours"), named(THEM, "ours"));
        let mut b = holding_or(then);
        let seen = b.now;
        let first = lease(1, &copys, 20);
        assert_eq!(b.give(set(first.clone())), None);
        let by = Box::new(copys.clone());
        assert!(b.said().contains(&Notice::Overwritten { subnet: net(1), by: by.clone() }));
        assert_eq!(b.held(), None, "the copy may hold it");
        assert_eq!(b.sleep(), Call::List);
        assert!(b.now - seen > Duration::from_secs(2));
        let call = b.give(list(20, &[first.clone(), entry(3, THEM, 9)]));
        assert_eq!(call, Some(Call::Update { held: first, attrs: ours.clone(), ttl: TTL }));
        b.give(updated(Ok(lease(1, &ours, 21))));
        assert_eq!(b.held(), Some(net(1)));
        b.said();
        // It writes again, so it lives.
        b.now += Duration::from_secs(5);
        b.give(set(lease(1, &copys, 22)));
        let conflict = Notice::Conflict { subnet: net(1), owner: THEM, node: copys.node_id.clone(), then };
        let said = b.said();
        assert!(said.starts_with(&[Notice::Namesake { subnet: net(1), by }, conflict]), "{said:?}");
        assert_eq!(b.held(), None);
        assert_eq!(b.m.status().counters.overwrites, 1);
        if then == OnLost::Keep {
            // It is left alone as long as it renews.
            b.now += Duration::from_secs(3600);
            let renewed = lease(1, &copys, 23);
            assert_eq!(b.give(set(renewed.clone())), Some(Call::List), "one is due");
            assert_eq!(b.give(list(23, &[renewed, entry(3, THEM, 9)])), None);
            assert_eq!((b.said(), b.held()), (vec![], None));
        }
    }
}

#[test]
fn what_a_restored_store_shows_of_our_earlier_address_is_written_over() {
    let (ours, before) = (named(US, "ours"), named(THEM, "ours"));
    let mut b = holding();
    b.outage();
    assert_eq!(b.sleep(), Call::List);
    // Our renewals are void, and the value is of before this run.
    let copy = lease(1, &before, 6);
    let call = b.give(list(8, &[copy.clone(), entry(3, THEM, 4)]));
    assert_eq!(call, Some(Call::Update { held: copy, attrs: ours.clone(), ttl: TTL }));
    assert_eq!(b.held(), None);
    b.give(updated(Ok(lease(1, &ours, 9))));
    assert_eq!(b.held(), Some(net(1)));
    // It was told, and the same copy does not count twice.
    assert_eq!(b.m.status().counters.overwrites, 1);
}

#[test]
fn a_host_that_moves_to_an_address_with_a_lease_takes_nothing_from_it() {
    let moved = Ipv4Addr::new(192, 0, 2, 11);
    let mut b = holding();
    let stranger = lease(3, &named(moved, "theirs"), 15);
    b.give(set(stranger.clone()));
    assert_eq!(b.m.peers().count(), 1);
    let call = b.give(Input::Publish(LeaseAttrs::new(moved)));
    let ours = named(moved, "ours");
    assert_eq!(
        call,
        Some(Call::Update { held: lease(1, &named(US, "ours"), 11), attrs: ours.clone(), ttl: TTL })
    );
    assert_eq!(b.give(updated(Ok(lease(1, &ours, 16)))), Some(Call::List));
    b.said();
    assert_eq!(b.give(list(16, &[lease(1, &ours, 16), stranger.clone()])), None);
    // Nothing is sent to ourselves as a peer, and the operator hears who is there.
    let said = b.said();
    let named =
        |notice: &Notice| matches!(notice, Notice::Refused { reason, .. } if reason.contains("theirs"));
    assert!(said.iter().any(named), "{said:?}");
    assert_eq!((b.m.peers().count(), b.held()), (0, Some(net(1))));
    // Should we begin anew, its owner is asked as at any start.
    let mut b = Rig::of(ours, settings(false), None);
    b.give(Input::Tick);
    assert_eq!(b.give(list(17, &[stranger])), None);
    assert_eq!(b.probes, [moved]);
}

#[test]
fn a_move_ends_the_questions_of_the_old_address() {
    let theirs = named(US, "theirs");
    let moved = Ipv4Addr::new(192, 0, 2, 11);
    let mut b = asking(&lease(1, &theirs, 5));
    b.said();
    b.give(Input::Publish(LeaseAttrs::new(moved)));
    assert_eq!(b.sleep(), Call::List);
    // It has answered, and we ask for something else by now.
    let call = b.give(list(12, &[lease(1, &theirs, 12)]));
    assert!(matches!(call, Some(Call::Create { attrs, .. }) if attrs == named(moved, "ours")));
    assert_eq!(b.said(), []);
}

#[test]
fn hosts_that_are_alike_to_the_last_byte_do_not_answer_each_other_for_ever() {
    let ours = named(US, "ours");
    let mut b = holding();
    let (start, mut revision, mut writes) = (b.now, 20, 0);
    b.give(set(lease(1, &ours, revision)));
    while b.now < start + Duration::from_secs(600) {
        match b.sleep() {
            Call::Update { .. } => {
                writes += 1;
                b.give(updated(Ok(lease(1, &ours, revision + 1))));
                revision += 2;
                // The other one has seen our write, and writes the same.
                b.give(set(lease(1, &ours, revision)));
            }
            Call::List => drop(b.give(list(revision, &[lease(1, &ours, revision), entry(3, THEM, 9)]))),
            other => panic!("{other:?}"),
        }
    }
    // The renewals, and as many answers.
    assert!(writes <= 20, "{writes} writes in ten minutes");
}

#[test]
fn a_host_that_was_forced_out_is_told_by_whom() {
    let mut b = holding();
    b.give(set(lease(1, &named(US, "theirs"), 20)));
    let node = NodeId::published("theirs");
    assert_eq!(b.said(), [Notice::Conflict { subnet: net(1), owner: US, node, then: OnLost::Exit }]);
}

#[test]
fn an_older_copy_of_a_reservation_without_our_name_is_not_held_until_it_is_written() {
    let mut b = holding();
    let reserved = |attrs: &LeaseAttrs, revision| Entry { lease: None, ..lease(1, attrs, revision) };
    b.give(set(reserved(&named(US, "ours"), 20)));
    b.outage();
    assert_eq!(b.sleep(), Call::List);
    b.said();
    let copy = reserved(&LeaseAttrs::new(US), 5);
    let call = b.give(list(8, &[copy.clone(), entry(3, THEM, 4)]));
    assert_eq!(call, Some(Call::Update { held: copy, attrs: named(US, "ours"), ttl: TTL }));
    assert_eq!(b.held(), None);
}

/// The machine of the node `ours`, whose earlier run at another address held 10.5.1.0/24. The store is silent so far.
fn moved_without_store() -> (Rig, Entry) {
    let mut b = Rig::of(named(US, "ours"), settings(false), Some(net(1)));
    let before = lease(1, &named(THEM, "ours"), 11);
    // It is due for renewal, and nothing is written before the store has shown it.
    let deadline = Some(b.now + Duration::from_secs(1));
    let cached = Cached { entry: before.clone(), deadline, peers: vec![entry(3, THEM, 0)] };
    b.m = b.m.with_cached(cached, b.now);
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    b.give(Input::Reply(Reply::Listed(Err(down()))));
    assert_eq!((b.held(), b.m.status().basis), (Some(net(1)), Basis::Cache));
    b.said();
    (b, before)
}

#[test]
fn what_was_kept_under_another_address_is_asked_about_before_it_is_written() {
    for answers in [false, true] {
        let (mut b, before) = moved_without_store();
        assert_eq!(b.sleep(), Call::List);
        let mut b = asks(b, &before);
        let said = b.said();
        assert!(said.iter().any(|notice| matches!(notice, Notice::Doubted { .. })), "{said:?}");
        let now = if answers { lease(1, &before.attrs, 12) } else { asked(1, &before.attrs, "ours", 11) };
        let call = loop {
            assert_eq!(b.sleep(), Call::List);
            match b.give(list(20, std::slice::from_ref(&now))) {
                None if b.m.wake_at().is_none() => break None,
                None => {}
                call => break call,
            }
        };
        let said = b.said();
        if answers {
            assert!(matches!(said[..], [Notice::Claimed { sign: Sign::Written, .. }]), "{said:?}");
        } else {
            assert_eq!(call, Some(Call::Update { held: now, attrs: named(US, "ours"), ttl: TTL }));
            b.give(updated(Ok(lease(1, &named(US, "ours"), 21))));
            assert_eq!((b.held(), b.m.status().basis), (Some(net(1)), Basis::Store));
        }
    }
}

#[test]
fn what_was_kept_under_another_address_ends_like_any_lease() {
    let (mut b, before) = moved_without_store();
    b.now += Duration::from_secs(2);
    assert_eq!(b.give(Input::Tick), Some(Call::List));
    assert_eq!((b.held(), b.m.status().basis), (None, Basis::Lapsed));
    // The store has the lease still: a copy may have renewed it.
    let call = b.give(list(20, std::slice::from_ref(&before)));
    let question = LeaseAttrs { asked_by: NodeId::published("ours"), ..before.attrs.clone() };
    assert_eq!(call, Some(Call::Update { held: before, attrs: question, ttl: TTL }));
}
