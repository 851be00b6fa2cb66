//! Chains that a program made and goes on changing, kept in a file: from then on they are what the
//! program wanted at one moment.

use super::Findings;

use crate::policy::model::{Origin, Table};
use crate::policy::save::called;

/// A program with the beginnings and ends of its chains' names.
struct Owner {
    name: &'static str,
    begin: &'static [&'static str],
    end: &'static [&'static str],
    /// What to do.
    help: &'static str,
}

const LEAVE_OUT: &str = "leave its chains and the jumps to them out: it makes them anew in iptables, beside fwbpf, and changes them there";
const SWITCH_OFF: &str =
    "switch it off, so that nobody looks for the rules there, and change this file from now on";

const OWNERS: &[Owner] = &[
    Owner {
        name: "Docker",
        begin: &["DOCKER"],
        end: &[],
        help: "start dockerd with `--iptables=false`, leave its chains and the jumps to them out, and accept what containers send and get: README.md has the lines",
    },
    Owner {
        name: "fail2ban",
        begin: &["f2b-", "fail2ban-"],
        end: &[],
        help: LEAVE_OUT,
    },
    Owner {
        name: "ufw",
        begin: &["ufw-", "ufw6-"],
        end: &[],
        help: SWITCH_OFF,
    },
    Owner {
        name: "firewalld",
        begin: &[],
        end: &["_ZONES", "_direct"],
        help: SWITCH_OFF,
    },
    Owner {
        name: "libvirt",
        begin: &["LIBVIRT_"],
        end: &[],
        help: LEAVE_OUT,
    },
    Owner {
        name: "Kubernetes",
        begin: &["KUBE-", "CNI-", "cali-", "FLANNEL-"],
        end: &[],
        help: LEAVE_OUT,
    },
    Owner {
        name: "Tailscale",
        begin: &["ts-"],
        end: &[],
        help: LEAVE_OUT,
    },
    Owner {
        name: "CrowdSec",
        begin: &["CROWDSEC_", "crowdsec-"],
        end: &[],
        help: LEAVE_OUT,
    },
];

pub(super) fn lint(findings: &mut Findings<'_>) {
    for owner in OWNERS {
        let mut names: Vec<&str> = Vec::new();
        let mut first: Option<Origin> = None;
        let rulesets = findings.policy.rulesets();
        for table in rulesets.flat_map(|(_, ruleset)| ruleset.tables().map(|(_, table)| table)) {
            owner.find(table, &mut names, &mut first);
        }
        names.sort_unstable();
        names.dedup();
        let said = match names[..] {
            [] => continue,
            [one] => format!("the chain {one} is {}'s", owner.name),
            [one, other] => format!("the chains {one} and {other} are {}'s", owner.name),
            [one, .., last] => format!(
                "{} chains from {one} to {last} are {}'s",
                names.len(),
                owner.name
            ),
        };
        let text = format!(
            "{said}, frozen when the rules were saved: {} changes those in iptables, not these",
            owner.name
        );
        findings.warn("frozen-chains", first, text, owner.help);
    }
}

impl Owner {
    /// Notes this owner's chains in a table, and the first rule in one or on the way to one.
    fn find<'t>(&self, table: &'t Table, names: &mut Vec<&'t str>, first: &mut Option<Origin>) {
        for chain in &table.chains {
            let own = chain.policy.is_none() && self.owns(&chain.name);
            if own {
                names.push(&chain.name);
            }
            for rule in &chain.rules {
                let order = |origin: &Origin| (origin.file, origin.line);
                let towards = called(rule).is_some_and(|name| self.owns(name));
                let sooner = first.is_none_or(|known| order(&rule.origin) < order(&known));
                if (own || towards) && sooner {
                    *first = Some(rule.origin);
                }
            }
        }
    }

    fn owns(&self, chain: &str) -> bool {
        self.begin.iter().any(|begin| chain.starts_with(begin))
            || self.end.iter().any(|end| chain.ends_with(end))
    }
}
