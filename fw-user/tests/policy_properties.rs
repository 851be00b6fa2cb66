//! Properties of the reader and the printers: nothing panics, and what is printed is read back.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use fw_user::policy::model::{Counters, Family, Policy};
use fw_user::policy::{
    CounterId, LintContext, LoadOptions, SourceFile, arbitrary, lint, load, print_save, print_toml,
};

proptest! {
    /// Printed and read again, a policy is the same but for lines.
    #[test]
    fn print_then_parse_is_the_identity(policy in arbitrary::policy()) {
        let files: Vec<_> = policy
            .rulesets()
            .filter(|(_, ruleset)| ruleset.tables().next().is_some())
            .map(|(family, _)| {
                let text = print_save(&policy, family, Some(&|id| counters(&policy, id)));
                SourceFile::new(family.name(), text.as_bytes(), Some(family))
            })
            .collect();
        let loaded = load(&files, LoadOptions { strict: true });
        let loaded = loaded.map_err(|errors| TestCaseError::fail(errors.render(false)))?;
        for family in [Family::Ipv4, Family::Ipv6] {
            let tables = |policy: &Policy| without_places(policy, family);
            prop_assert_eq!(tables(&loaded.policy), tables(&policy));
        }
        // Identities do not depend on where a rule was written, and are all different.
        let identities = |policy: &Policy| policy.identities().into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        let names = identities(&policy);
        prop_assert_eq!(&identities(&loaded.policy), &names);
        prop_assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), names.len());
        // Hashes are equal where texts are, apart from the occurrence.
        let hashes = policy.identity_hashes();
        prop_assert_eq!(&loaded.policy.identity_hashes(), &hashes);
        let once = |text: &String| text.rsplit_once(" #").map_or(text.clone(), |(text, _)| text.to_owned());
        let mut pairs: Vec<(u128, String)> = hashes.into_iter().zip(names.iter().map(once)).collect();
        pairs.sort();
        pairs.dedup();
        for side in [pairs.iter().map(|(hash, _)| hash.to_string()).collect::<std::collections::HashSet<_>>(), pairs.iter().map(|(_, text)| text.clone()).collect()] {
            prop_assert_eq!(side.len(), pairs.len());
        }
        for (id, text) in policy.identities() {
            prop_assert_eq!(policy.identity(id), text);
        }
        lint(&policy, &LintContext::default());
    }

    /// What is converted to policy.toml prints as the same text again.
    #[test]
    fn toml_is_canonical(policy in arbitrary::policy()) {
        let Ok(text) = print_toml(&policy) else { return Ok(()) };
        let file = SourceFile::new("policy.toml", text.as_bytes(), None);
        let loaded = load(&[file], LoadOptions::default());
        let loaded = loaded.map_err(|errors| TestCaseError::fail(errors.render(false)))?;
        prop_assert_eq!(print_toml(&loaded.policy), Ok(text));
    }

    /// Bytes that nobody would write.
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), toml in any::<bool>()) {
        read(&bytes, toml);
    }

    /// The corpus with pieces cut out, doubled, or exchanged for other pieces of it.
    #[test]
    fn mutated_files_are_read_without_panic(
        which in any::<prop::sample::Index>(),
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..40_usize), 1..6),
    ) {
        let corpus = corpus();
        let (toml, mut bytes) = corpus[which.index(corpus.len())].clone();
        for (from, to, length) in cuts {
            let start = from.index(bytes.len());
            let end = (start + length).min(bytes.len());
            let piece = bytes[start..end].to_vec();
            let at = to.index(bytes.len());
            if length % 2 == 0 {
                bytes.splice(at..at, piece);
            } else {
                bytes.splice(start..end, []);
            }
            if bytes.is_empty() {
                break;
            }
        }
        read(&bytes, toml);
    }
}

/// Every rule file that policy.toml has words for, converted and read again, has the same rules.
#[test]
fn rule_files_convert_to_toml() {
    let rules = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n\
        -A INPUT -i lo -j ACCEPT\n\
        -A INPUT -p PROTO -j ACCEPT\n\
        -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
        -A INPUT -p tcp -m multiport --dports 80,443,8000:8100 -m comment --comment \"the web\" -j ACCEPT\n\
        -A INPUT -p PROTO -m KIND -m limit --limit 7/sec --limit-burst 20 -j ACCEPT\n\
        -A INPUT -p tcp -m tcp --dport 23 -m limit --limit 3/min -j LOG --log-prefix \"telnet: \" --log-level 6\n\
        -A INPUT -p tcp -m tcp --dport 23 -m comment --comment old -j DROP\n\
        -A INPUT -s ADDRESS -p udp -m udp --sport 53 -j DROP\n\
        COMMIT\n*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";
    let ipv4 = rules
        .replace("PROTO", "icmp")
        .replace("KIND", "icmp --icmp-type 8")
        .replace("ADDRESS", "192.0.2.0/24");
    let ipv6 = rules
        .replace("PROTO", "ipv6-icmp")
        .replace("KIND", "icmp6 --icmpv6-type 128")
        .replace("ADDRESS", "2001:db8::/32");
    let files = [
        SourceFile::new("a", ipv4.as_bytes(), Some(Family::Ipv4)),
        SourceFile::new("b", ipv6.as_bytes(), Some(Family::Ipv6)),
    ];
    let original = load(&files, LoadOptions { strict: true })
        .expect("the rules are right")
        .policy;
    let text = print_toml(&original).expect("policy.toml has words for all of it");
    let file = SourceFile::new("policy.toml", text.as_bytes(), None);
    let converted = load(&[file], LoadOptions::default())
        .expect("it is read again")
        .policy;
    for family in [Family::Ipv4, Family::Ipv6] {
        let printed = |policy: &Policy| print_save(policy, family, None);
        assert_eq!(printed(&converted), printed(&original), "{text}");
    }
    assert!(text.contains("types = [\"echo-request\"]"), "{text}");
    assert!(text.contains("log = { prefix = \"telnet: \""), "{text}");
    let refused = ipv4.replace("-j ACCEPT", "-m ttl --ttl-eq 5 -j ACCEPT");
    let files = [
        SourceFile::new("a", refused.as_bytes(), Some(Family::Ipv4)),
        files[1].clone(),
    ];
    let policy = load(&files, LoadOptions::default())
        .expect("the rules are right")
        .policy;
    let error = print_toml(&policy).expect_err("there are no words for hop counts");
    assert!(error.to_string().contains("--ttl-eq 5"), "{error}");
}

fn counters(policy: &Policy, id: CounterId) -> Counters {
    let of_policy = || {
        policy
            .chain(id)
            .and_then(|chain| chain.policy.as_ref()?.counters)
    };
    let of_rule = policy.rule(id).and_then(|rule| rule.counters);
    of_rule.or_else(of_policy).unwrap_or_default()
}

fn without_places(policy: &Policy, family: Family) -> Option<fw_user::policy::model::Ruleset> {
    let mut ruleset = policy
        .ruleset(family)
        .filter(|ruleset| ruleset.tables().next().is_some())?
        .clone();
    let tables = [
        &mut ruleset.filter,
        &mut ruleset.nat,
        &mut ruleset.mangle,
        &mut ruleset.raw,
        &mut ruleset.security,
    ];
    for table in tables.into_iter().flatten() {
        for chain in &mut table.chains {
            if let Some(policy) = &mut chain.policy {
                policy.origin = None;
            }
            for rule in &mut chain.rules {
                rule.origin.line = 0;
                rule.origin.file = 0;
            }
        }
    }
    Some(ruleset)
}

/// Reads bytes as each sort of file, and does with the outcome what the program does.
fn read(bytes: &[u8], toml: bool) {
    let families = [None, Some(Family::Ipv4), Some(Family::Ipv6)];
    for (strict, family) in [false, true]
        .into_iter()
        .flat_map(|strict| families.map(|family| (strict, family)))
    {
        let name = if toml { "policy.toml" } else { "rules" };
        match load(
            &[SourceFile::new(name, bytes, family)],
            LoadOptions { strict },
        ) {
            Ok(loaded) => {
                lint(&loaded.policy, &LintContext::default());
                let _ = print_toml(&loaded.policy);
            }
            Err(errors) => assert!(!errors.render(false).is_empty()),
        }
    }
}

fn corpus() -> Vec<(bool, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/policy");
    let mut files: Vec<_> = [root.clone(), root.join("iptables")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("the corpus is there"))
        .map(|entry| entry.expect("the folder is readable").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        (
            path.extension().is_some_and(|ending| ending == "toml"),
            fs::read(path).expect("readable"),
        )
    };
    files
        .iter()
        .map(read)
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect()
}
