//! Whole networks of machines over one fake store, in virtual time, from a seed.

mod check;
mod kept;
mod names;
mod nemesis;
mod restore;
pub(crate) mod store;
mod summary;
mod world;

use std::time::Instant;
use summary::{Sabotage, Summary};
use world::World;

/// Runs one seed by hand and tells everything: `FLANNELD_SIM_SEED=7 cargo test --lib lease::tests::sim -- --nocapture`.
const SEED: &str = "FLANNELD_SIM_SEED";
/// How many seeds to run, from 0 on: `FLANNELD_SIM_SEEDS=100000`.
const SEEDS: &str = "FLANNELD_SIM_SEEDS";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, verbose: bool) -> Summary {
    let mut world = World::new(seed, verbose);
    match world.run() {
        Ok(summary) => summary,
        Err(broken) => panic!("seed {seed}: {broken}\nrepeat with {SEED}={seed}"),
    }
}

/// No two live nodes ever hold overlapping subnets, every hold is backed by the store, and once the faults
/// stop every node holds a subnet, knows all peers, and reservations are as they were. A store that is
/// restored from an older state excuses a node until it has looked: see `restore`.
#[test]
fn one_owner_at_any_instant() {
    if let Some(seed) = number(SEED) {
        println!("{:?}", run(seed, true));
        return;
    }
    let start = Instant::now();
    let seeds = number(SEEDS).unwrap_or(600);
    let mut total = Summary::default();
    for seed in 0..seeds {
        total += run(seed, false);
    }
    println!("{seeds} seeds in {:.1?}: {total:?}", start.elapsed());
    // A simulation in which nothing happens proves nothing, so the faults must have had effects.
    if seeds >= 100 {
        total.assert_eventful();
    }
}

/// The checker finds a store that breaks its promises.
#[test]
fn the_checker_is_not_blind() {
    for (sabotage, seeds, least) in
        [(Sabotage::BlindCreate, 80, 20), (Sabotage::BlindUpdate, 600, 3), (Sabotage::ShortTtl, 40, 10)]
    {
        let caught = (0..seeds).filter(|seed| {
            let mut world = World::new(*seed, false);
            world.sabotage(sabotage);
            world.run().is_err()
        });
        let caught = caught.count();
        println!("{sabotage:?}: found out in {caught} of {seeds} runs");
        assert!(caught >= least, "{sabotage:?}: found out in {caught} of {seeds} runs only");
    }
}
