//! What a rule's words refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::patterns::Patterns;
use super::zones::Zones;
use crate::policy::model::{Family, Policy};

/// The words' meaning, for the rules of one table.
pub(super) struct Scope<'a> {
    pub policy: &'a Policy,
    pub family: Family,
    pub patterns: &'a Patterns,
    /// The sets that rules change.
    pub changed: &'a BTreeSet<&'a str>,
    /// The policy's zones.
    pub zones: &'a Zones,
    /// The ids of the table's chains.
    pub chains: &'a BTreeMap<&'a str, u32>,
}
