//! What a run came to, and how the store is broken in the checker's own test.

use std::ops::AddAssign;

/// How often what happened in a run, to see that something did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Summary {
    pub(super) acquired: u64,
    pub(super) renewed: u64,
    pub(super) regained: u64,
    pub(super) lost: u64,
    pub(super) revoked: u64,
    pub(super) conflicts: u64,
    pub(super) races: u64,
    pub(super) repairs: u64,
    pub(super) withheld: u64,
    pub(super) compactions: u64,
    pub(super) late: u64,
    pub(super) restores: u64,
    pub(super) resets: u64,
    pub(super) cached: u64,
    pub(super) lapsed: u64,
    /// How often a node got another address.
    pub(super) readdressed: u64,
    /// How often the store gave another address of a node to its peers.
    pub(super) published: u64,
    /// How often the store has shown that it is the same, so that no list was needed.
    pub(super) proven: u64,
    /// How often it was another one, or had forgotten.
    pub(super) unproven: u64,
    pub(super) refused: u64,
    pub(super) asked: u64,
    pub(super) takeovers: u64,
    pub(super) moves: u64,
    /// How often a node heard that another one has its NodeID.
    pub(super) namesakes: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.acquired += other.acquired;
        self.renewed += other.renewed;
        self.regained += other.regained;
        self.lost += other.lost;
        self.revoked += other.revoked;
        self.conflicts += other.conflicts;
        self.races += other.races;
        self.repairs += other.repairs;
        self.withheld += other.withheld;
        self.compactions += other.compactions;
        self.late += other.late;
        self.restores += other.restores;
        self.resets += other.resets;
        self.cached += other.cached;
        self.lapsed += other.lapsed;
        self.readdressed += other.readdressed;
        self.published += other.published;
        self.proven += other.proven;
        self.unproven += other.unproven;
        self.refused += other.refused;
        self.asked += other.asked;
        self.takeovers += other.takeovers;
        self.moves += other.moves;
        self.namesakes += other.namesakes;
    }
}

impl Summary {
    pub(crate) fn assert_eventful(&self) {
        let Self { acquired, renewed, regained, lost, revoked, conflicts, races, repairs, .. } = *self;
        let all = [acquired, renewed, regained, lost, revoked, conflicts, races, repairs];
        assert!(all.iter().all(|count| *count > 20), "{self:?}");
        assert!(self.compactions > 20 && self.late > 20 && self.withheld > 0, "{self:?}");
        let names = [self.refused, self.asked, self.takeovers, self.moves, self.namesakes];
        assert!(names.iter().all(|count| *count > 20), "{self:?}");
        assert!(self.restores > 20 && self.resets > 20, "{self:?}");
        assert!(self.cached > 20 && self.lapsed > 5, "{self:?}");
        assert!(self.readdressed > 20 && self.published > 20, "{self:?}");
        assert!(self.proven > 20 && self.unproven > 20, "{self:?}");
    }
}

/// A store that does not do what we rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    None,
    /// A create overwrites a key that is there.
    BlindCreate,
    /// A renewal overwrites any value, as flannel's does.
    BlindUpdate,
    /// A renewed lease lasts shorter than asked for.
    ShortTtl,
}
