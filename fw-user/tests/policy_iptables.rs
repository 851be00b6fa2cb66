//! The reader and the printer against the real iptables-legacy, in a network namespace that lasts
//! as long as one child process.
//!
//! tests/policy/iptables holds lines (each loaded alone, into a filter table with the chains foo
//! and zzz) and whole tables. For each: what iptables-restore takes, `load` takes (strictly), and
//! prints what iptables-save prints; what it refuses, `load` calls wrong; and what `load` calls
//! unsupported, iptables-restore takes.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fw_user::command::names::SystemHosts;
use fw_user::policy::TableName;
use fw_user::policy::model::{Counters, Family, Match, Negatable, Policy, PortRange, Ports, Rule};
use fw_user::policy::{
    CounterId, Kind, LoadOptions, SourceFile, arbitrary, load_with_hosts, names, print_save,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

#[test]
fn lines_for_ipv4() {
    compare_with_iptables(Family::Ipv4, in_filter_table("lines.v4"), Saved::Compared);
}

#[test]
fn lines_for_ipv6() {
    compare_with_iptables(Family::Ipv6, in_filter_table("lines.v6"), Saved::Compared);
}

#[test]
fn tables() {
    let text = read("tables.v4");
    let tables = text.split("%%\n").map(str::to_owned).collect();
    compare_with_iptables(Family::Ipv4, tables, Saved::Compared);
}

/// Whole files, as Docker, ufw, firewalld and others write them.
#[test]
fn files_as_tools_write_them() {
    let entries = fs::read_dir(folder().join("../real")).expect("tests/policy/real exists");
    let paths: Vec<_> = entries
        .map(|entry| entry.expect("the folder is readable").path())
        .collect();
    for (family, ending) in [(Family::Ipv4, ".v4.rules"), (Family::Ipv6, ".v6.rules")] {
        let of_family = |path: &&PathBuf| path.to_string_lossy().ends_with(ending);
        let texts = paths.iter().filter(of_family).map(fs::read_to_string);
        let texts = texts.map(|text| text.expect("the file is readable"));
        compare_with_iptables(family, texts.collect(), Saved::Compared);
    }
}

/// iptables-save loses these matches; they are taken all the same.
#[test]
fn lines_that_iptables_save_loses() {
    compare_with_iptables(Family::Ipv4, in_filter_table("lossy.v4"), Saved::Lossy);
}

#[test]
fn every_protocol_by_number_and_by_name() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let numbers = (0..=255).map(|number| number.to_string());
        let all: Vec<String> = names::protocol_names()
            .map(str::to_owned)
            .chain(numbers)
            .collect();
        let line = |name| format!("*filter\n-A INPUT -p {name}\nCOMMIT\n");
        compare_with_iptables(family, all.into_iter().map(line).collect(), Saved::Compared);
    }
}

#[test]
fn to_ports_with_every_protocol() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let rule = |number, not| {
            format!("*nat\n-A POSTROUTING {not} -p {number} -j MASQUERADE --to-ports 9\nCOMMIT\n")
        };
        let rules = (1..=255).flat_map(|number| [rule(number, ""), rule(number, "!")]);
        compare_with_iptables(family, rules.collect(), Saved::Compared);
    }
}

#[test]
fn every_icmp_type_by_name() {
    for (family, option) in [
        (Family::Ipv4, "-p icmp --icmp-type"),
        (Family::Ipv6, "-p ipv6-icmp --icmpv6-type"),
    ] {
        let line = |name| format!("*filter\n-A INPUT {option} {name}\nCOMMIT\n");
        compare_with_iptables(
            family,
            names::icmp_names(family).map(line).collect(),
            Saved::Compared,
        );
    }
}

#[test]
fn every_service_by_name() {
    let line = |name| {
        format!(
            "*filter\n-A INPUT -p tcp --dport {name}\nCOMMIT\n%%\n*filter\n-A INPUT -p udp --dport {name}\nCOMMIT\n"
        )
    };
    let all: String = names::service_names()
        .map(line)
        .collect::<Vec<_>>()
        .join("%%\n");
    compare_with_iptables(
        Family::Ipv4,
        all.split("%%\n").map(str::to_owned).collect(),
        Saved::Compared,
    );
}

/// Policies at random, over the whole grammar: iptables takes what is printed and saves the same.
#[test]
fn policies_at_random() {
    let mut runner = TestRunner::deterministic();
    for family in [Family::Ipv4, Family::Ipv6] {
        let policies = (0..150).map(|_| arbitrary::policy().new_tree(&mut runner));
        let texts = policies.map(|tree| {
            let mut policy = tree.expect("the generator rejects little").current();
            drop_what_is_lost(&mut policy, family);
            print_with_counters(&policy, family)
        });
        compare_with_iptables(
            family,
            texts.filter(|text| !text.is_empty()).collect(),
            Saved::Compared,
        );
    }
}

/// Removes the rules with matches that iptables-save does not print.
fn drop_what_is_lost(policy: &mut Policy, family: Family) {
    let Some(ruleset) = policy.ruleset_mut(family) else {
        return;
    };
    let whole =
        |range: &Negatable<PortRange>| (range.value.first, range.value.last) == (0, u16::MAX);
    let ports = |ports: &Ports| {
        [ports.source, ports.destination]
            .iter()
            .flatten()
            .any(whole)
    };
    let lost = |rule: &Rule| {
        let interfaces = [&rule.in_interface, &rule.out_interface];
        interfaces
            .into_iter()
            .flatten()
            .any(|pattern| pattern.value.0 == "+")
            || rule.matches.iter().any(|each| match each {
                Match::Tcp(tcp) => {
                    let flags = tcp
                        .flags
                        .is_some_and(|flags| !flags.not && flags.value.mask == 0);
                    ports(&tcp.ports) || flags
                }
                Match::Udp(udp) => ports(udp),
                _ => false,
            })
    };
    let tables = [
        &mut ruleset.filter,
        &mut ruleset.nat,
        &mut ruleset.mangle,
        &mut ruleset.raw,
        &mut ruleset.security,
    ];
    for table in tables.into_iter().flatten() {
        for chain in &mut table.chains {
            chain.rules.retain(|rule| !lost(rule));
        }
    }
}

/// Whether iptables-save's output is to be what `print_save` prints.
#[derive(Clone, Copy, PartialEq)]
enum Saved {
    Compared,
    Lossy,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/policy/iptables")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).expect("the corpus is readable")
}

fn in_filter_table(name: &str) -> Vec<String> {
    let wrap = |line: &str| format!("*filter\n:foo - [0:0]\n:zzz - [0:0]\n{line}\nCOMMIT\n");
    read(name).lines().map(wrap).collect()
}

fn compare_with_iptables(family: Family, inputs: Vec<String>, saved: Saved) {
    let Some(outcomes) = run_iptables(family, &inputs) else {
        return;
    };
    let mut failures = String::new();
    for (input, outcome) in inputs.iter().zip(outcomes) {
        if let Err(difference) = compare(family, input, &outcome, saved) {
            let _ = writeln!(failures, "{input}  {difference}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
    println!("{} inputs compared with iptables", inputs.len());
}

fn compare(family: Family, input: &str, outcome: &Outcome, saved: Saved) -> Result<(), String> {
    let file = SourceFile::new("input", input.as_bytes(), Some(family));
    let options = LoadOptions { strict: true };
    match (
        load_with_hosts(&[file], options, &SystemHosts::default()),
        outcome,
    ) {
        (Ok(loaded), Outcome::Taken(expected)) => {
            let found = print_with_counters(&loaded.policy, family);
            let same = saved == Saved::Lossy || found == *expected;
            if same {
                Ok(())
            } else {
                Err(format!("is saved as\n{expected}but printed as\n{found}"))
            }
        }
        (Ok(_), Outcome::Refused(why)) => Err(format!("is taken, but iptables says: {why}")),
        (Err(errors), Outcome::Taken(_)) => {
            let unsupported = errors
                .errors
                .iter()
                .all(|error| error.kind == Kind::Unsupported);
            if unsupported {
                Ok(())
            } else {
                Err(format!("is wrong, but iptables takes it: {errors}"))
            }
        }
        (Err(errors), Outcome::Refused(why)) => {
            let wrong = errors.errors.iter().any(|error| error.kind == Kind::Wrong);
            if wrong {
                Ok(())
            } else {
                Err(format!(
                    "is unsupported ({errors}), but iptables says: {why}"
                ))
            }
        }
    }
}

fn print_with_counters(policy: &Policy, family: Family) -> String {
    let read = |id: CounterId| -> Counters {
        let of_policy = || {
            policy
                .chain(id)
                .and_then(|chain| chain.policy.as_ref()?.counters)
        };
        let found = if id.rule.is_some() {
            policy.rule(id).and_then(|rule| rule.counters)
        } else {
            of_policy()
        };
        found.unwrap_or_default()
    };
    print_save(policy, family, Some(&read))
}

enum Outcome {
    /// What iptables-save then printed, without comments.
    Taken(String),
    /// What iptables-restore said.
    Refused(String),
}

/// Loads each input with the real iptables; nothing, with a message, where that is impossible.
/// As `print_save` orders them.
const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

fn run_iptables(family: Family, inputs: &[String]) -> Option<Vec<Outcome>> {
    let tool = if family == Family::Ipv4 {
        "iptables"
    } else {
        "ip6tables"
    };
    let saves = |table: &str| format!("{tool}-legacy-save -t {table}");
    let works = TABLES.map(saves).join(" && ");
    let probe = Command::new("unshare")
        .args(["-n", "sh", "-c", &works])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        let message = format!("needs root, unshare and {tool}-legacy with its tables");
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("SKIPPED: {message}");
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut script = String::from("cd \"$1\" || exit 1\n");
    for (index, input) in inputs.iter().enumerate() {
        fs::write(folder.path().join(format!("{index}.in")), input)
            .expect("the folder is writable");
        let saves: String = TABLES
            .iter()
            .filter(|table| input.contains(&format!("*{table}")))
            .map(|table| format!("{tool}-legacy-save -c -t {table}; "))
            .collect();
        let _ = writeln!(
            script,
            "{tool}-legacy-restore <reset || exit 1
             if {tool}-legacy-restore -c <{index}.in >{index}.err 2>&1; then {{ {saves}true; }} >{index}.out; fi"
        );
    }
    let mut reset = String::new();
    for table in TableName::ALL {
        let _ = writeln!(reset, "*{table}");
        for chain in table.builtin_chains() {
            let _ = writeln!(reset, ":{chain} ACCEPT [0:0]");
        }
        reset.push_str("COMMIT\n");
    }
    fs::write(folder.path().join("reset"), reset).expect("the folder is writable");
    fs::write(folder.path().join("script"), script).expect("the folder is writable");
    let script = folder.path().join("script");
    let status = Command::new("unshare")
        .arg("-n")
        .arg("sh")
        .arg(script)
        .arg(folder.path())
        .status();
    assert!(
        status.expect("unshare runs").success(),
        "the reset between inputs failed"
    );
    let outcome =
        |index: usize| match fs::read_to_string(folder.path().join(format!("{index}.out"))) {
            Ok(text) => {
                let lines = text.lines().filter(|line| !line.starts_with('#'));
                Outcome::Taken(lines.map(|line| format!("{line}\n")).collect())
            }
            Err(_) => Outcome::Refused(
                fs::read_to_string(folder.path().join(format!("{index}.err"))).unwrap_or_default(),
            ),
        };
    Some((0..inputs.len()).map(outcome).collect())
}
