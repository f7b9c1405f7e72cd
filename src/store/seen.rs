//! The newest changes that a watch has brought, by which a store shows that it is still the store that brought them.
//!
//! A revision proves nothing: a store that was restored from an older state counts on from there and hands the same
//! revisions out again. The id of an etcd lease proves much: a member makes it of its own id, the time of its start in
//! milliseconds and a counter, so two histories never share one. A write with such a lease at the same revision means
//! that both histories are the same up to it. What has no lease of its own (a deletion, a reservation) is compared from
//! there on, one change after the other.

use super::{Change, Entry, Revision};

/// The most changes that are compared. A store that has deleted more in a row is listed, which costs no more.
const MOST_CHANGES: usize = 1000;

/// The newest write with an etcd lease that a watch has brought, and every change that it has brought since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    first: Entry,
    after: Vec<Change>,
}

/// How what a store tells, from [`Seen::from`] on, stands to what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// All that was seen is there. What was told from this place on is news.
    All(usize),
    /// What was told so far is what was seen, and the rest has not been told.
    Part,
    /// It is another history.
    Other,
}

impl Seen {
    /// A write that can prove a history: one with the id of an etcd lease.
    pub fn new(entry: &Entry) -> Option<Self> {
        let has_id = entry.lease.is_some_and(|id| id != 0);
        has_id.then(|| Self { first: entry.clone(), after: Vec::new() })
    }

    /// What is seen after one more change; `None`: nothing proves it any more, until the next write with a lease.
    #[must_use]
    pub fn with(mut self, change: &Change) -> Option<Self> {
        match change {
            Change::Set(entry) if Self::new(entry).is_some() => Self::new(entry),
            // It has no revision to be known by.
            Change::Skipped(_) => None,
            Change::Set(_) | Change::Gone { .. } => {
                debug_assert!(revision(change) >= Some(self.to()), "changes come in the store's order");
                self.after.push(change.clone());
                (self.after.len() <= MOST_CHANGES).then_some(self)
            }
        }
    }

    /// The revision from which on a store has to tell its changes, this one included.
    pub fn from(&self) -> Revision {
        self.first.revision
    }

    /// The revision of the newest change that was seen.
    pub fn to(&self) -> Revision {
        self.after.last().and_then(revision).unwrap_or(self.first.revision)
    }

    /// Compares what was seen with all that a store has told, in its order.
    pub fn compare(&self, told: &[Change]) -> Shown {
        let is_first = |change: &Change| matches!(change, Change::Set(entry) if *entry == self.first);
        // Other changes of the same transaction may stand before it.
        let is_beside = |change: &Change| revision(change).is_none_or(|revision| revision <= self.from());
        let Some(start) = told.iter().position(is_first) else {
            return if told.iter().all(is_beside) { Shown::Part } else { Shown::Other };
        };
        let rest = &told[start + 1..];
        if !told[..start].iter().all(is_beside)
            || self.after.iter().zip(rest).any(|(seen, told)| seen != told)
        {
            Shown::Other
        } else if rest.len() < self.after.len() {
            Shown::Part
        } else {
            Shown::All(start + 1 + self.after.len())
        }
    }
}

fn revision(change: &Change) -> Option<Revision> {
    match change {
        Change::Set(entry) => Some(entry.revision),
        Change::Gone { revision, .. } => Some(*revision),
        Change::Skipped(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Skipped;
    use crate::store::keyspace::entry;

    fn put(third: u8, revision: Revision, lease: Option<u64>) -> Change {
        Change::Set(
            entry(&format!("10.5.{third}.0-24"), r#"{"PublicIP":"192.0.2.1"}"#, revision, lease).unwrap(),
        )
    }

    fn gone(third: u8, revision: Revision) -> Change {
        Change::Gone { key: format!("10.5.{third}.0-24").parse().unwrap(), revision }
    }

    fn seen(changes: &[Change]) -> Option<Seen> {
        let Change::Set(first) = &changes[0] else { panic!("{changes:?}") };
        changes[1..].iter().try_fold(Seen::new(first)?, Seen::with)
    }

    #[test]
    fn a_history_is_known_by_the_leases_in_it() {
        let put_7 = put(1, 7, Some(70));
        let seen_7 = seen(std::slice::from_ref(&put_7)).unwrap();
        assert_eq!((seen_7.from(), seen_7.to()), (7, 7));
        for (told, shown) in [
            (vec![], Shown::Part),
            (vec![put_7.clone()], Shown::All(1)),
            (vec![put_7.clone(), gone(1, 8)], Shown::All(1)),
            (vec![put(2, 7, Some(71)), put_7.clone()], Shown::All(2)),
            (vec![put(2, 7, Some(71))], Shown::Part),
            (vec![put(1, 7, Some(71)), gone(1, 8)], Shown::Other),
            (vec![put(1, 7, None), put(1, 8, Some(70))], Shown::Other),
            (vec![put(1, 8, Some(70))], Shown::Other),
            (vec![gone(1, 8), put_7.clone()], Shown::Other),
        ] {
            assert_eq!(seen_7.compare(&told), shown, "{told:?}");
        }
        // v2 has no ids, and a reservation has no lease.
        assert_eq!((seen(&[put(1, 7, Some(0))]), seen(&[put(1, 7, None)])), (None, None));
    }

    #[test]
    fn what_follows_is_compared_one_by_one() {
        let all = [put(1, 7, Some(70)), gone(2, 8), put(3, 9, None), gone(3, 9)];
        let seen_9 = seen(&all).unwrap();
        assert_eq!((seen_9.from(), seen_9.to()), (7, 9));
        assert_eq!(seen_9.compare(&all), Shown::All(4));
        assert_eq!(seen_9.compare(&[&all[..], &[gone(9, 12)]].concat()), Shown::All(4));
        assert_eq!(seen_9.compare(&all[..3]), Shown::Part);
        for other in [gone(2, 9), gone(3, 8), put(2, 8, None), put(2, 8, Some(1))] {
            assert_eq!(seen_9.compare(&[all[0].clone(), other]), Shown::Other);
        }
        let unreadable = Change::Skipped(Skipped { key: "x".to_owned(), reason: String::new() });
        assert_eq!(seen_9.compare(&[all[0].clone(), unreadable.clone()]), Shown::Other);
        assert_eq!(seen_9.clone().with(&unreadable), None);
        // A write with a lease proves all that came before it.
        let newest = put(1, 20, Some(71));
        assert_eq!(seen_9.with(&newest), seen(&[newest]));
    }

    #[test]
    fn there_is_an_end_to_what_is_compared() {
        let deletions = (0..).map(|i| gone(1, 8 + i));
        let mut seen = seen(&[put(1, 7, Some(70))]);
        for (count, deletion) in (1_usize..).zip(deletions).take(MOST_CHANGES + 1) {
            seen = seen.and_then(|seen| seen.with(&deletion));
            assert_eq!(seen.is_some(), count <= MOST_CHANGES);
        }
    }
}
