//! How rules ask sets, and what sets begin with.

use fw_common::abi::blob::{Condition, EffectFields, SetAddition};
use fw_common::abi::set::{SetEntry, SetInfo, SetKey, WHOLE, shape};

use super::scope::Scope;
use super::{Limits, Place};
use crate::policy::model::{Policy, Rule, SetChange, SetMatch, Side};
use crate::policy::set::{Part, SetDefinition, SetElement, SetKind, Shape};

/// The condition that a packet is in a set.
pub(super) fn in_set(
    asked: &SetMatch,
    rule: &Rule,
    scope: &Scope<'_>,
) -> Result<Condition, Limits> {
    let (set, mut bits) = named(&asked.name, &asked.sides, rule, scope)?;
    if asked.return_nomatch {
        // Of types without exceptions the flag means nothing.
        if set.kind.has_nomatch() {
            bits |= shape::RETURN_NOMATCH;
        }
    }
    if set.timeout.is_some() || scope.changed.contains(set.name.as_str()) {
        bits |= shape::VOLATILE;
    }
    Ok(Condition::InSet {
        place: set.place,
        shape: bits,
    })
}

/// What the target SET does.
pub(super) fn change(
    change: &SetChange,
    rule: &Rule,
    scope: &Scope<'_>,
) -> Result<EffectFields, Limits> {
    let changed = |(name, sides): &(String, Vec<Side>)| {
        let (set, mut bits) = named(name, sides, rule, scope)?;
        // An address becomes a prefix as long as the longest in the set, which comes and goes.
        let Shape { first, second, .. } = set.kind.shape();
        if [first, second].contains(&Some(Part::Prefix)) {
            return Err(Limits::SetOfPrefixes {
                place: Place::of(scope.policy, rule.origin),
                set: name.clone(),
                kind: set.kind.name(),
            });
        }
        if set.kind == SetKind::HashIp {
            bits |= shape::NOT_NULL;
        }
        Ok((set, bits))
    };
    let add = change.add.as_ref().map(changed).transpose()?;
    let add = add.map(|(set, shape)| SetAddition {
        place: set.place,
        shape,
        exist: change.exist,
        // As the kernel does it (`set_target_v2`, net/netfilter/xt_set.c).
        timeout: change.timeout.map(|seconds| seconds.min(u32::MAX / 1000)),
        range: set.range.unwrap_or((0, u32::MAX)),
    });
    let delete = change.delete.as_ref().map(changed).transpose()?;
    let delete = delete.map(|(set, shape)| (set.place, shape));
    Ok(EffectFields::Sets { add, delete })
}

/// The set that a rule names, and how it is asked.
fn named<'a>(
    name: &str,
    sides: &[Side],
    rule: &Rule,
    scope: &Scope<'a>,
) -> Result<(&'a SetDefinition, u32), Limits> {
    let set = find(name, rule, scope.policy)?;
    if set.kind != SetKind::BitmapPort && set.family != scope.family {
        return Err(Limits::SetFamily {
            place: Place::of(scope.policy, rule.origin),
            set: set.name.clone(),
            family: set.family.title(),
        });
    }
    let mut bits = bits(set, sides);
    // A set that has more parts than the rule names sides contains nothing (`ip_set_test`,
    // net/netfilter/ipset/ip_set_core.c), and takes nothing.
    if sides.len() < set.kind.dimension() {
        bits |= shape::NEVER;
    }
    Ok((set, bits))
}

/// The set of that name.
fn find<'a>(name: &str, rule: &Rule, policy: &'a Policy) -> Result<&'a SetDefinition, Limits> {
    policy.set(name).ok_or_else(|| Limits::UnknownSet {
        place: Place::of(policy, rule.origin),
        set: name.to_owned(),
    })
}

/// Which of a packet's ends the parts of elements are compared with.
fn bits(set: &SetDefinition, sides: &[Side]) -> u32 {
    let Shape {
        first,
        port,
        second,
    } = set.kind.shape();
    let mut sides = sides.iter();
    let mut side = || sides.next() == Some(&Side::Source);
    let mut bits = 0;
    let mut take = |there: bool, bit: u32, source: u32| {
        if there {
            bits |= bit | if side() { source } else { 0 };
        }
    };
    take(first.is_some(), shape::FIRST, shape::FIRST_SOURCE);
    take(port, shape::PORT, shape::PORT_SOURCE);
    take(second.is_some(), shape::SECOND, shape::SECOND_SOURCE);
    if set.kind == SetKind::BitmapPort {
        bits |= shape::ANY_TRANSPORT;
    }
    bits
}

/// What elements and lengths a set begins with, as the datapath reads them.
pub fn contents(
    set: &SetDefinition,
    elements: &[SetElement],
    now: u64,
) -> (SetInfo, Vec<(SetKey, SetEntry)>) {
    let mut info = SetInfo {
        timeout: u64::from(set.timeout.unwrap_or(0)) * SECOND,
        flags: if set.timeout.is_some() {
            SetInfo::TIMEOUTS
        } else {
            0
        },
        ..SetInfo::default()
    };
    let shape = set.kind.shape();
    for (address, part) in [shape.first, shape.second].into_iter().enumerate() {
        if part != Some(Part::Prefix) {
            let length = set.netmask.filter(|_| address == 0);
            info.add_length(address, length.unwrap_or(WHOLE));
        }
    }
    let mut entries = Vec::with_capacity(elements.len());
    for element in elements {
        set_lengths(&mut info, set, &element.key);
        entries.push((element.key, set_entry(set, element, now)));
    }
    (info, entries)
}

/// A second in nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Says that the set has elements of the lengths of this one.
pub fn set_lengths(info: &mut SetInfo, set: &SetDefinition, key: &SetKey) {
    let shape = set.kind.shape();
    if shape.first == Some(Part::Prefix) {
        info.add_length(0, key.first_length);
    }
    if shape.second == Some(Part::Prefix) {
        info.add_length(1, key.second_length);
    }
}

/// An element as the datapath reads it.
pub fn set_entry(set: &SetDefinition, element: &SetElement, now: u64) -> SetEntry {
    let seconds = match set.timeout {
        Some(usual) => element.timeout.unwrap_or(usual),
        None => 0,
    };
    SetEntry {
        expires: match seconds {
            0 => 0,
            seconds => now + u64::from(seconds) * SECOND,
        },
        flags: if element.nomatch {
            SetEntry::NOMATCH
        } else {
            0
        },
        reserved: 0,
    }
}
