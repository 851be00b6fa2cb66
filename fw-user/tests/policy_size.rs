//! Large and ill-natured policies are read and checked in reasonable time.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fw_user::policy::model::Family;
use fw_user::policy::{LintContext, LoadOptions, SourceFile, SshSession, lint, load, print_save};

#[test]
fn a_hundred_thousand_rules() {
    let mut text = String::from("*filter\n:INPUT DROP [0:0]\n");
    for number in 0..100_000 {
        let (high, low) = (number / 256 % 256, number % 256);
        let _ = writeln!(
            text,
            "-A INPUT -s 10.{high}.{low}.0/24 -p tcp -m tcp --dport {low} -j DROP"
        );
    }
    text.push_str("COMMIT\n");
    let policy = within(Duration::from_secs(30), || read(&text));
    let input = &policy
        .ipv4
        .as_ref()
        .and_then(|ruleset| ruleset.filter.as_ref())
        .expect("filter is there")
        .chains[0];
    assert_eq!(input.rules.len(), 100_000);
    assert_eq!(input.rules[99_999].origin.line, 100_002);
    let printed = within(Duration::from_secs(30), || {
        print_save(&policy, Family::Ipv4, None)
    });
    assert_eq!(printed.lines().count(), 100_005);
    within(Duration::from_secs(30), || lint(&policy, &context()));
    within(Duration::from_secs(30), || policy.identities());
}

/// Each chain calls the next one twice: a walk over all ways would take 2^60 steps.
#[test]
fn chains_that_double() {
    let mut text = String::from("*filter\n:INPUT DROP [0:0]\n");
    for number in 0..60 {
        let _ = writeln!(text, ":c{number} - [0:0]");
    }
    text.push_str("-A INPUT -j c0\n");
    for number in 0..59 {
        let next = number + 1;
        let _ = writeln!(text, "-A c{number} -j c{next}\n-A c{number} -j c{next}");
    }
    text.push_str("COMMIT\n");
    within(Duration::from_secs(30), || lint(&read(&text), &context()));
}

fn read(text: &str) -> fw_user::policy::model::Policy {
    let file = SourceFile::new("rules.v4", text.as_bytes(), None);
    load(&[file], LoadOptions { strict: true })
        .expect("the rules are right")
        .policy
}

fn context() -> LintContext {
    LintContext {
        ssh: SshSession::parse("203.0.113.9 50000 198.51.100.10 22"),
    }
}

fn within<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let outcome = work();
    let took = start.elapsed();
    assert!(took < limit, "took {took:?}");
    println!("took {took:?}");
    outcome
}
