//! What each generation of flannel derives or refuses, for every network that is in use. The two models are flannel's
//! own steps, with flannel's arithmetic (wrapping numbers of 32 bits), so that they share no line with ours.

use super::*;
use crate::subnet::Generation;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::net::Ipv4Addr;

/// A config's fields as numbers; 0 is a field that is left out.
#[derive(Debug, Clone, Copy)]
struct Fields {
    base: u32,
    prefix: u32,
    len: u32,
    min: u32,
    max: u32,
}

/// `SubnetLen`, `SubnetMin`, `SubnetMax`; `None` if flannel refuses the config or never leases a subnet of it.
type Derived = Option<(u32, u32, u32)>;

impl Fields {
    fn text(&self) -> String {
        let mut text = format!(r#"{{"Network":"{}/{}""#, Ipv4Addr::from(self.base), self.prefix);
        if self.len > 0 {
            text += &format!(r#","SubnetLen":{}"#, self.len);
        }
        for (name, bound) in [("SubnetMin", self.min), ("SubnetMax", self.max)] {
            if bound > 0 {
                text += &format!(r#","{name}":"{}""#, Ipv4Addr::from(bound));
            }
        }
        text + "}"
    }

    fn holds(&self, address: u32) -> bool {
        address >> (32 - self.prefix) == self.base >> (32 - self.prefix)
    }

    /// The bounds as both generations derive them, unless one that is given lies outside.
    fn bounds(&self, len: u32) -> Derived {
        let size = 1_u32 << (32 - len);
        let min = if self.min == 0 { self.base.wrapping_add(size) } else { self.min };
        let next = self.base.wrapping_add(1 << (32 - self.prefix));
        let max = if self.max == 0 { next.wrapping_sub(size) } else { self.max };
        let outside = [self.min, self.max].iter().any(|bound| *bound != 0 && !self.holds(*bound));
        (!outside).then_some((len, min, max))
    }
}

/// flannel v0.6.2, `subnet/config.go` and the loop of `allocateSubnet`.
fn v0_6_2(f: Fields) -> Derived {
    let len = match f.len {
        0 if f.prefix < 24 => 24,
        0 => f.prefix + 1,
        given if given < f.prefix => return None,
        given => given,
    };
    // Its own keys end in `-32` then; it panics on the first list that shows one.
    if len > 31 {
        return None;
    }
    // A loop that begins behind its end is `out of subnets`, every second.
    f.bounds(len).filter(|(_, min, max)| min <= max)
}

/// flannel v0.28.9, `pkg/subnet/config.go`, of a config without IPv6.
fn v0_28_9(f: Fields) -> Derived {
    let len = match f.len {
        0 if f.prefix > 28 => return None,
        0 if f.prefix <= 22 => 24,
        0 => f.prefix + 2,
        given if given > 30 || given < f.prefix + 2 => return None,
        given => given,
    };
    let size = 1_u32 << (32 - len);
    let aligned = |(_, min, max): &(u32, u32, u32)| min % size == 0 && max % size == 0;
    f.bounds(len).filter(aligned).filter(|(_, min, max)| min <= max)
}

/// Every config of the table: all prefixes, `SubnetLen` left out and given, bounds left out, on and off the boundary
/// of a subnet, at the edges of the network and outside of it.
fn table() -> impl Iterator<Item = Fields> {
    (8..=30).flat_map(|prefix| {
        let base = 0x0A00_0000_u32;
        let size = 1_u32 << (32 - prefix);
        let bounds = [0, base, base + 1, base + size / 2, base + size / 2 + 3, base + size - 1, base + size];
        let lens = [0].into_iter().chain(6..=34);
        lens.flat_map(move |len| {
            bounds.into_iter().flat_map(move |min| {
                bounds.into_iter().map(move |max| Fields { base, prefix, len, min, max })
            })
        })
    })
}

/// What our config derives, and whether it leases a subnet that fits at all.
fn ours(generation: Generation, fields: Fields) -> Derived {
    let config = Config::parse_for(generation, &fields.text()).ok()?;
    let picked = pick(&config, &[], &mut StdRng::seed_from_u64(1)).unwrap();
    assert!(config.fits(picked) && config.network.contains(&picked), "{fields:?}: {picked}");
    Some((config.subnet_len.into(), config.subnet_min.into(), config.subnet_max.into()))
}

#[test]
fn every_network_is_derived_or_refused_as_that_flannel_does_it() {
    let (mut both, mut taken) = (0, [0, 0]);
    for fields in table() {
        for (i, (generation, model)) in
            [(Generation::V2, v0_6_2(fields)), (Generation::V3, v0_28_9(fields))].into_iter().enumerate()
        {
            assert_eq!(ours(generation, fields), model, "{generation:?} {}", fields.text());
            taken[i] += usize::from(model.is_some());
        }
        both += 1;
    }
    assert!(taken[0] > taken[1] && taken[1] > 1000, "{taken:?} of {both}");
}

/// The subnets that the loop of flannel's `allocateSubnet` steps through.
fn leased_by(derived: (u32, u32, u32)) -> Vec<Ipv4Net> {
    let (len, min, max) = derived;
    let step = 1_u64 << (32 - len);
    let bases = (0..100).map(|i| u64::from(min) + i * step).take_while(|base| *base <= max.into());
    let net = |base| Ipv4Net::new(u32::try_from(base).unwrap().into(), u8::try_from(len).unwrap()).unwrap();
    bases.map(net).collect()
}

#[test]
fn what_that_flannel_has_leased_fits_and_is_what_we_would_lease() {
    for fields in table() {
        for (generation, model) in [(Generation::V2, v0_6_2(fields)), (Generation::V3, v0_28_9(fields))] {
            let Some(derived) = model else { continue };
            let config = Config::parse_for(generation, &fields.text()).unwrap();
            let leased = leased_by(derived);
            for subnet in &leased {
                assert_eq!(config.misfit(*subnet), None, "{generation:?} {subnet} {}", fields.text());
            }
            // All but one are taken: we take that one, with the very base that flannel gives it.
            let (last, rest) = leased.split_last().unwrap();
            if leased.len() < 100 {
                assert_eq!(
                    pick(&config, rest, &mut StdRng::seed_from_u64(1)),
                    Ok(*last),
                    "{}",
                    fields.text()
                );
                assert!(pick(&config, &leased, &mut StdRng::seed_from_u64(1)).is_err(), "{}", fields.text());
            }
        }
    }
}

#[test]
fn the_networks_of_old_that_the_newer_defaults_would_renumber() {
    let old = |text| {
        let c = Config::parse_for(Generation::V2, text).unwrap();
        (c.subnet_len, c.subnet_min.to_string(), c.subnet_max.to_string(), c.pool())
    };
    assert_eq!(old(r#"{"Network":"10.3.0.0/23"}"#), (24, "10.3.1.0".into(), "10.3.1.0".into(), 1));
    assert_eq!(old(r#"{"Network":"10.3.0.0/24"}"#), (25, "10.3.0.128".into(), "10.3.0.128".into(), 1));
    let half = r#"{"Network":"10.3.0.0/24","SubnetLen":25}"#;
    assert_eq!(old(half), (25, "10.3.0.128".into(), "10.3.0.128".into(), 1));
    let one = r#"{"Network":"10.3.0.0/24","SubnetLen":24,"SubnetMin":"10.3.0.0"}"#;
    assert_eq!(old(one), (24, "10.3.0.0".into(), "10.3.0.0".into(), 1));
    let odd = r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.4.7","SubnetMax":"10.3.9.255"}"#;
    assert_eq!(old(odd), (24, "10.3.4.7".into(), "10.3.9.255".into(), 6));
    for text in [half, one, odd] {
        assert!(Config::parse(text).is_err(), "{text}");
    }
}

#[test]
fn refusals_through_v2_name_the_remedy() {
    let error = |text: &str| Config::parse_for(Generation::V2, text).unwrap_err().to_string();
    let skipped = error(r#"{"Network":"10.3.0.0/24","SubnetLen":24}"#);
    assert!(
        skipped.contains("the first subnet is skipped") && skipped.contains("SubnetMin 10.3.0.0"),
        "{skipped}"
    );
    assert!(error(r#"{"Network":"10.3.0.0/31"}"#).contains("room for 2 subnets of /31"));
    assert!(error(r#"{"Network":"10.3.0.0/24","SubnetLen":23}"#).contains("must be 24 or more"));
    assert!(error(r#"{"Network":"10.3.0.0/24","SubnetLen":32}"#).contains("must be 31 or less"));
    assert!(
        error(r#"{"Network":"255.255.255.0/24","SubnetLen":24}"#).contains("the first subnet is skipped")
    );
}
