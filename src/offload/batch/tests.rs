//! Trains against their input.

#![allow(clippy::cast_possible_truncation, reason = "lengths of test packets fit their fields")]

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

const LIMITS: Limits = Limits { max_segments: 64, max_segment_size: 1472, enabled: true };

/// Places packets of the given lengths for one key, and gives (segment size, count, bytes) of each train.
fn trains(limits: Limits, lengths: &[usize]) -> Vec<(u16, usize, usize)> {
    let mut trains = Trains::new(lengths.len(), limits);
    for len in lengths {
        trains.place(1u8, *len).unwrap().fill(1);
    }
    trains.iter().map(|(_, train)| (train.segment_size(), train.count(), train.bytes().len())).collect()
}

#[test]
fn a_shorter_packet_seals_and_a_longer_one_does_not_join() {
    assert_eq!(trains(LIMITS, &[100, 100, 60, 60]), [(100, 3, 260), (60, 1, 60)]);
    assert_eq!(trains(LIMITS, &[60, 100, 100]), [(60, 1, 60), (100, 2, 200)]);
}

#[test]
fn limits_hold() {
    assert_eq!(trains(LIMITS, &[1472; 46]), [(1472, 44, 64_768), (1472, 2, 2944)]);
    let few = Limits { max_segments: 3, ..LIMITS };
    assert_eq!(trains(few, &[50; 7]), [(50, 3, 150), (50, 3, 150), (50, 1, 50)]);
    let off = Limits { enabled: false, ..LIMITS };
    assert_eq!(trains(off, &[50, 50]), [(50, 1, 50), (50, 1, 50)]);
    assert_eq!(trains(LIMITS, &[1473, 1473, 1472]), [(1473, 1, 1473), (1473, 1, 1473), (1472, 1, 1472)]);
    assert_eq!(trains(LIMITS, &[65_535]), [(65_535, 1, 65_535)]);
}

#[test]
fn trains_come_home() {
    let mut trains = Trains::new(2, LIMITS);
    assert!(trains.place(1u8, 20).is_some());
    assert!(trains.place(2, 20).is_some());
    assert!(trains.place(3, 20).is_none(), "both are used");
    assert!(trains.place(1, 20).is_some(), "an open train still takes more");
    assert_eq!((trains.open(), trains.available()), (2, 0));
    let open: Vec<_> = trains.iter().map(|(key, train)| (key, train.count())).collect();
    assert_eq!(open, [(1, 2), (2, 1)]);
    trains.clear();
    assert!(trains.is_empty());
    let room = trains.place(3, 20).unwrap();
    room.fill(9);
    let (key, train) = trains.iter().next().unwrap();
    assert_eq!((key, train.bytes()), (3, &[9u8; 20][..]));
    assert!(trains.place(1, 70_000).is_none());
}

#[test]
fn a_packet_placed_alone_stays_alone() {
    let mut trains = Trains::new(3, LIMITS);
    trains.place(1u8, 100).unwrap().fill(1);
    trains.place_alone(1, 100).unwrap().fill(2);
    trains.place(1, 100).unwrap().fill(3);
    let open: Vec<_> = trains.iter().map(|(_, train)| (train.bytes()[0], train.count())).collect();
    assert_eq!(open, [(1, 1), (2, 1), (3, 1)]);
    assert!(trains.place_alone(1, 100).is_none(), "all are used");
}

#[test]
fn a_train_by_itself() {
    let mut train = Train::new(LIMITS);
    assert!(train.is_empty() && train.accepts(1400));
    for (len, byte) in [(700, 1), (700, 2), (9, 3)] {
        assert!(train.accepts(len));
        train.reserve(len).fill(byte);
        train.commit(len);
    }
    assert!(!train.accepts(9) && !train.accepts(700));
    let packets: Vec<_> = train.packets().map(|packet| (packet.len(), packet[0])).collect();
    assert_eq!(packets, [(700, 1), (700, 2), (9, 3)]);
    train.clear();
    assert!(train.is_empty() && train.bytes().is_empty() && train.packets().next().is_none());
}

#[test]
fn splitting() {
    let split = |len, stride| split(len, stride).collect::<Vec<_>>();
    assert_eq!(split(2500, Some(1000)), [0..1000, 1000..2000, 2000..2500]);
    assert_eq!(split(2000, Some(1000)), [0..1000, 1000..2000]);
    assert_eq!(split(40, Some(1000)), vec![0..40]);
    assert_eq!(split(40, None), vec![0..40]);
    assert_eq!(split(40, Some(0)), vec![0..40]);
    assert_eq!(split(0, None), vec![0..0]);
    assert_eq!(split(0, Some(5)), vec![0..0]);
}

proptest! {
    /// Every key's packets come out in order, whole, in trains that the kernel takes.
    #[test]
    fn trains_equal_the_input(
        steps in proptest::collection::vec((0u8..6, prop_oneof![Just(1472usize), Just(90), 20usize..1600, Just(30_000)]), 0..300),
        pool in 1usize..12, max_segments in 1u16..70, max_segment_size in 60u16..1500, enabled in any::<bool>(),
    ) {
        let limits = Limits { max_segments, max_segment_size, enabled };
        let mut trains = Trains::new(pool, limits);
        let mut expected: HashMap<u8, Vec<Vec<u8>>> = HashMap::new();
        let mut sent: HashMap<u8, Vec<Vec<u8>>> = HashMap::new();
        let mut flush = |trains: &mut Trains<u8>| {
            for (key, train) in trains.iter() {
                let size = usize::from(train.segment_size());
                assert!(train.count() == 1 || enabled && size <= usize::from(max_segment_size));
                assert!(train.bytes().len() <= TRAIN_BYTES && train.count() <= usize::from(max_segments));
                let packets: Vec<_> = train.bytes().chunks(size).map(<[u8]>::to_vec).collect();
                assert_eq!(packets.len(), train.count());
                sent.entry(key).or_default().extend(packets);
            }
            trains.clear();
        };
        for (i, (key, len)) in steps.iter().enumerate() {
            let fill = (i % 256) as u8;
            let placed = trains.place(*key, *len).map(|room| room.fill(fill)).is_some();
            if !placed {
                flush(&mut trains);
                trains.place(*key, *len).unwrap().fill(fill);
            }
            expected.entry(*key).or_default().push(vec![fill; *len]);
        }
        flush(&mut trains);
        prop_assert_eq!(sent, expected);
    }

    #[test]
    fn splitting_covers_every_byte(len in 0usize..70_000, stride in proptest::option::of(any::<u16>())) {
        let mut next = 0;
        for range in split(len, stride).take(70_001) {
            prop_assert_eq!(range.start, next);
            prop_assert!(range.end > range.start || len == 0);
            next = range.end;
        }
        prop_assert_eq!(next, len);
    }
}
