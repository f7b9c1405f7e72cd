//! The choice is compared with a naive one.

use super::*;
use crate::subnet::overlap;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::HashSet;
use std::time::{Duration, Instant};

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn config(text: &str) -> Config {
    Config::parse(text).unwrap()
}

/// The candidates by their definition, one step after the other.
fn naive(config: &Config, taken: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let mut free = Vec::new();
    let mut base = u64::from(u32::from(config.subnet_min));
    while base <= u64::from(u32::from(config.subnet_max)) && free.len() < MAX_CANDIDATES {
        let candidate = Ipv4Net::new(u32::try_from(base).unwrap().into(), config.subnet_len).unwrap();
        if taken.iter().all(|net| !overlap(candidate, *net)) {
            free.push(candidate);
        }
        base += config.subnet_size();
    }
    free
}

#[test]
fn a_full_pool_is_an_error_that_counts() {
    let config = config(r#"{"Network":"10.3.0.0/22"}"#);
    let taken = [net("10.3.1.0/24"), net("10.3.2.0/24"), net("10.3.3.0/24")];
    let error = pick(&config, &taken, &mut StdRng::seed_from_u64(1)).unwrap_err();
    assert_eq!(error.to_string(), "out of subnets: 3 leases take all 3 subnets");
    let wide = [net("10.0.0.0/8")];
    assert!(pick(&config, &wide, &mut StdRng::seed_from_u64(1)).is_err());
}

#[test]
fn every_candidate_is_picked_and_nothing_else() {
    let config = config(r#"{"Network":"10.3.0.0/16"}"#);
    let taken = [net("10.3.1.0/24"), net("10.3.4.128/25")];
    let mut rng = StdRng::seed_from_u64(7);
    let picked: HashSet<_> = (0..3000).map(|_| pick(&config, &taken, &mut rng).unwrap()).collect();
    assert_eq!(picked, naive(&config, &taken).into_iter().collect());
    assert_eq!(picked.len(), 100);
}

#[test]
fn the_end_of_the_address_space_is_no_trap() {
    let config = config(r#"{"Network":"255.255.255.0/24"}"#);
    let taken = [net("255.255.255.128/25"), net("255.255.255.64/26")];
    assert!(candidates(&config, &taken).is_empty());
    assert_eq!(candidates(&config, &taken[1..]), vec![net("255.255.255.128/26"), net("255.255.255.192/26")]);
}

#[test]
fn ten_thousand_leases_take_no_time() {
    let config = config(r#"{"Network":"10.0.0.0/8"}"#);
    let taken: Vec<_> =
        (1..=10_000u32).rev().map(|i| Ipv4Net::new((0x0A00_0000 + i * 256).into(), 24).unwrap()).collect();
    let start = Instant::now();
    let free = candidates(&config, &taken);
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(free[0], Ipv4Net::new((0x0A00_0000 + 10_001 * 256).into(), 24).unwrap());
    // A lease that covers a million subnets is stepped over at once.
    let short = self::config(r#"{"Network":"10.0.0.0/8","SubnetLen":30}"#);
    let start = Instant::now();
    assert_eq!(candidates(&short, &[net("10.0.0.0/9")])[0], net("10.128.0.0/30"));
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

proptest! {
    #[test]
    fn as_the_definition(prefix in 18u8..=24, extra in 2u8..=6, leases in proptest::collection::vec((0u32..1 << 15, 18u8..=31), 0..60), seed: u64) {
        let config = config(&format!(r#"{{"Network":"10.3.0.0/{prefix}","SubnetLen":{}}}"#, (prefix + extra).min(30)));
        let taken: Vec<_> = leases
            .iter()
            .map(|(offset, len)| Ipv4Net::new((0x0A03_0000 + offset).into(), *len).unwrap().trunc())
            .collect();
        let expected = naive(&config, &taken);
        prop_assert_eq!(&candidates(&config, &taken), &expected);
        match pick(&config, &taken, &mut StdRng::seed_from_u64(seed)) {
            Ok(picked) => prop_assert!(config.fits(picked) && expected.contains(&picked)),
            Err(error) => prop_assert!(expected.is_empty() && error.leases == taken.len()),
        }
    }
}
