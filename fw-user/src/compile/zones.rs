//! The zones that a policy names, and the place of each among them.

use fw_common::abi::blob::{Cell, MAX_ZONES};

use super::{Limits, Place};
use crate::policy::change::Change;
use crate::policy::model::{Policy, Target};

/// The zones of a policy by their places; zone 0, which needs none, is in the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Zones([u16; MAX_ZONES + 1]);

impl Zones {
    /// The zones that the policy's rules name. Where a zone's place is depends on the zone, so that it is
    /// mostly the same in the next policy: a packet may be on its way meanwhile.
    pub fn of(policy: &Policy) -> Result<Self, Limits> {
        let mut zones = Self::default();
        for rule in policy.rules() {
            let Target::Change(Change::Zone(zone)) = rule.target else {
                continue;
            };
            let first = usize::from(zone) % MAX_ZONES;
            let mut places = (0..MAX_ZONES).map(|next| 1 + (first + next) % MAX_ZONES);
            match places.find(|place| zones.0[*place] == zone || zones.0[*place] == 0) {
                Some(place) => zones.0[place] = zone,
                None => {
                    let place = Place::of(policy, rule.origin);
                    return Err(Limits::Zones { place, zone });
                }
            }
        }
        Ok(zones)
    }

    /// The place of a zone.
    pub fn place_of(&self, zone: u16) -> u32 {
        let found = self.0.iter().position(|known| *known == zone);
        found.unwrap_or_default() as u32
    }

    /// The cell: two in a word.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        let (pairs, _) = self.0.as_chunks();
        for (word, [low, high]) in cell.w.iter_mut().zip(pairs) {
            *word = u32::from(*high) << 16 | u32::from(*low);
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Chain, Origin, Rule, Ruleset, Table};

    fn zones(named: impl IntoIterator<Item = u16>) -> Result<Zones, Limits> {
        let rules = named
            .into_iter()
            .map(|zone| Rule {
                source: None,
                destination: None,
                in_interface: None,
                out_interface: None,
                protocol: None,
                matches: Vec::new(),
                target: Target::Change(Change::Zone(zone)),
                counters: None,
                origin: Origin { file: 0, line: 7 },
            })
            .collect();
        let chain = Chain {
            name: "PREROUTING".into(),
            policy: None,
            rules,
        };
        Zones::of(&Policy {
            ipv4: Some(Ruleset {
                raw: Some(Table {
                    chains: vec![chain],
                }),
                ..Ruleset::default()
            }),
            ..Policy::default()
        })
    }

    #[test]
    fn each_zone_has_a_place() {
        let zones = zones([5, 36, 0, 65_535, 5, 31]).expect("few zones");
        assert_eq!(zones.place_of(0), 0);
        let cell = zones.encode();
        let mut places = Vec::new();
        for zone in [5, 36, 65_535, 31] {
            let place = zones.place_of(zone);
            assert!((1..=31).contains(&place), "{zone}");
            let word = cell.w[(place / 2) as usize];
            assert_eq!((word >> (place % 2 * 16)) as u16, zone);
            assert!(!places.contains(&place));
            places.push(place);
        }
        assert_eq!(cell.w[0] as u16, 0);
    }

    #[test]
    fn one_zone_too_many_is_refused() {
        assert!(zones(0..=31).is_ok());
        let error = zones(100..132).expect_err("too many");
        assert!(
            error.to_string().contains("zone 131 is number 32"),
            "{error}"
        );
    }
}
