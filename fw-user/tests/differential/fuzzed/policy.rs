//! Both readers of policies: nothing panics, and what is read is printed and read again as the same.

use std::collections::HashSet;

use fw_user::compile::{Slots, compile};
use fw_user::policy::model::{Counters, Family, Policy};
use fw_user::policy::{
    CounterId, LintContext, LoadOptions, SourceFile, lint, load, print_save, print_toml,
};

use super::Input;

/// A rule file. The first byte says for which IP version, and whether strictly.
pub fn rules(bytes: &[u8]) {
    let mut input = Input(bytes);
    let choice = input.byte();
    let family = [None, Some(Family::Ipv4), Some(Family::Ipv6)][usize::from(choice & 3) % 3];
    let strict = choice & 4 != 0;
    read(&SourceFile::new("rules", input.0, family), strict);
}

/// A policy.toml.
pub fn document(bytes: &[u8]) {
    read(&SourceFile::new("policy.toml", bytes, None), false);
}

fn read(file: &SourceFile, strict: bool) {
    let loaded = match load(std::slice::from_ref(file), LoadOptions { strict }) {
        Ok(loaded) => loaded,
        Err(errors) => {
            assert!(!errors.errors.is_empty());
            assert!(!errors.render(false).is_empty());
            return;
        }
    };
    let policy = loaded.policy;
    lint(&policy, &LintContext::default());
    let identities = policy.identities();
    let texts: HashSet<&String> = identities.iter().map(|(_, text)| text).collect();
    assert_eq!(texts.len(), identities.len(), "two rules of one identity");
    let _ = compile(&policy, &Slots::fresh(&policy), 1, &[]);
    survives_save(&policy);
    survives_toml(&policy);
}

fn survives_save(policy: &Policy) {
    let files: Vec<SourceFile> = policy
        .rulesets()
        .filter(|(_, ruleset)| ruleset.tables().next().is_some())
        .map(|(family, _)| {
            let text = print_save(policy, family, Some(&|id| counters(policy, id)));
            SourceFile::new(family.name(), text.as_bytes(), Some(family))
        })
        .collect();
    let again = match load(&files, LoadOptions { strict: true }) {
        Ok(loaded) => loaded.policy,
        Err(errors) => panic!("printed, and refused:\n{}", errors.render(false)),
    };
    for family in [Family::Ipv4, Family::Ipv6] {
        assert_eq!(meaning(&again, family), meaning(policy, family));
    }
}

fn survives_toml(policy: &Policy) {
    let Ok(text) = print_toml(policy) else {
        return;
    };
    let file = SourceFile::new("policy.toml", text.as_bytes(), None);
    let again = match load(&[file], LoadOptions::default()) {
        Ok(loaded) => loaded.policy,
        Err(errors) => panic!("printed, and refused:\n{}\n{text}", errors.render(false)),
    };
    assert_eq!(print_toml(&again).as_deref(), Ok(text.as_str()));
}

fn counters(policy: &Policy, id: CounterId) -> Counters {
    let of_policy = || {
        let chain = policy.chain(id)?;
        chain.policy.as_ref()?.counters
    };
    let of_rule = policy.rule(id).and_then(|rule| rule.counters);
    of_rule.or_else(of_policy).unwrap_or_default()
}

/// A family's rules, without the places where they were written and what was counted on them.
fn meaning(policy: &Policy, family: Family) -> serde_json::Value {
    let ruleset = policy.ruleset(family);
    let ruleset = ruleset.filter(|ruleset| ruleset.tables().next().is_some());
    let mut value = serde_json::to_value(ruleset).expect("a model");
    strip(&mut value);
    value
}

fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|name, _| name != "origin" && name != "counters");
            fields.values_mut().for_each(strip);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}
