//! Names of hosts in rules.

use std::net::IpAddr;

use fw_user::policy::model::Family;
use fw_user::policy::{Hosts, LoadOptions, Loaded, PolicyErrors, SourceFile};
use fw_user::policy::{load_with_hosts, print_save};

/// `two.example` has two addresses in each IP version, `four.example` one of IPv4.
struct Zone;

impl Hosts for Zone {
    fn addresses(&self, name: &str, family: Family) -> Result<Vec<IpAddr>, String> {
        let found: &[&str] = match (name, family) {
            ("two.example", Family::Ipv4) => &["192.0.2.2", "192.0.2.1"],
            ("two.example", Family::Ipv6) => &["2001:db8::2", "2001:db8::1"],
            ("four.example", Family::Ipv4) => &["198.51.100.4"],
            _ => return Err("nobody knows it".into()),
        };
        Ok(found
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect())
    }
}

fn load(family: Family, rule: &str) -> Result<Loaded, PolicyErrors> {
    let text = format!("*filter\n{rule}\nCOMMIT\n");
    let file = SourceFile::new("rules", text, Some(family));
    load_with_hosts(&[file], LoadOptions { strict: true }, &Zone)
}

fn rules(family: Family, rule: &str) -> Vec<String> {
    let loaded = load(family, rule).expect("the names are known");
    let saved = print_save(&loaded.policy, family, None);
    let rules = saved.lines().filter(|line| line.starts_with("-A"));
    rules.map(str::to_owned).collect()
}

#[test]
fn a_name_is_all_of_its_addresses() {
    assert_eq!(
        rules(
            Family::Ipv4,
            "-A INPUT -s two.example -d four.example,10.0.0.0/8 -j DROP"
        ),
        [
            "-A INPUT -s 192.0.2.2/32 -d 198.51.100.4/32 -j DROP",
            "-A INPUT -s 192.0.2.2/32 -d 10.0.0.0/8 -j DROP",
            "-A INPUT -s 192.0.2.1/32 -d 198.51.100.4/32 -j DROP",
            "-A INPUT -s 192.0.2.1/32 -d 10.0.0.0/8 -j DROP",
        ]
    );
    assert_eq!(
        rules(Family::Ipv6, "-A OUTPUT -d two.example -j DROP"),
        [
            "-A OUTPUT -d 2001:db8::2/128 -j DROP",
            "-A OUTPUT -d 2001:db8::1/128 -j DROP"
        ]
    );
    assert_eq!(
        rules(Family::Ipv4, "-A INPUT ! -s four.example/24 -j DROP"),
        ["-A INPUT ! -s 198.51.100.0/24 -j DROP"]
    );
}

#[test]
fn the_warning_names_the_addresses() {
    let loaded = load(Family::Ipv4, "-A INPUT -s two.example -j DROP").expect("it is known");
    let said: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with(
            "rules:2: warning: the name `two.example` is taken for 192.0.2.2, 192.0.2.1\n"
        ),
        "{said:?}"
    );
}

#[test]
fn what_cannot_be_resolved_is_an_error_with_the_reason() {
    let all = "-A INPUT -s five.example -j DROP\n-A INPUT -s two.example -j DROP\n-A INPUT -d six.example -j DROP";
    let errors = load(Family::Ipv4, all)
        .expect_err("two names are unknown")
        .errors;
    let said: Vec<_> = errors
        .iter()
        .map(|error| (error.line, error.found.as_str(), error.message.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            (
                2,
                "five.example",
                "the name `five.example` cannot be resolved: nobody knows it"
            ),
            (
                4,
                "six.example",
                "the name `six.example` cannot be resolved: nobody knows it"
            ),
        ]
    );
    let errors = load(Family::Ipv6, "-A INPUT -s four.example -j DROP").expect_err("IPv4 only");
    assert_eq!(errors.errors.len(), 1);
    let errors = load(Family::Ipv4, "-A INPUT ! -s two.example -j DROP").expect_err("a list");
    assert_eq!(errors.errors[0].code, "negated-list");
}
