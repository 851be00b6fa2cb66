//! The guide's policy in the lab, under either firewall: what is true of it must be true of both,
//! so that a test that fails under fwbpf alone fails for the right reason.

use anyhow::{Context, Result};
use fw_user::policy::model::Family;

use crate::lab::{Firewall, Fwbpf, Iptables, Peers, ServerLab, fwbpf_binary, ready, saved};

/// The guide's IPv4 rules, three lines of which iptables itself refuses.
pub const RULES_V4: &str = include_str!("../../examples/guide.rules.v4");

/// The IPv6 half.
pub const RULES_V6: &str = include_str!("../../examples/guide.rules.v6");

/// What the guide does for IPv4's containers, for IPv6's.
pub const MASQUERADE_V6: &str = "*nat\n\
    :PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";

/// A firewall by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The reference.
    Iptables,
    /// What is tested.
    Fwbpf,
}

/// A lab with a firewall in the server.
pub struct GuideLab {
    /// The hosts.
    pub lab: ServerLab,
    /// The firewall.
    pub firewall: Box<dyn Firewall>,
    /// Which it is.
    pub kind: Kind,
}

impl GuideLab {
    /// A lab for fwbpf with nothing loaded; `load` will be given these options each time.
    pub fn with_options(test: &str, options: &[&str]) -> Result<Self> {
        let lab = ServerLab::new(test, Peers::Real)?;
        let binary = fwbpf_binary().context("there is no fwbpf binary")?;
        let fwbpf = Fwbpf::new(lab.server.clone(), binary)?.with_load_options(options);
        Ok(Self {
            lab,
            firewall: Box::new(fwbpf),
            kind: Kind::Fwbpf,
        })
    }

    /// A lab with nothing loaded.
    pub fn empty(test: &str, kind: Kind) -> Result<Self> {
        let lab = ServerLab::new(&format!("{test}-{kind:?}"), Peers::Real)?;
        let firewall: Box<dyn Firewall> = match kind {
            Kind::Iptables => Box::new(Iptables::new(lab.server.clone())),
            Kind::Fwbpf => {
                let binary = fwbpf_binary().context("there is no fwbpf binary")?;
                Box::new(Fwbpf::new(lab.server.clone(), binary)?)
            }
        };
        Ok(Self {
            lab,
            firewall,
            kind,
        })
    }

    /// A lab with the guide loaded, and masquerade for IPv6 too.
    pub fn new(test: &str, kind: Kind) -> Result<Self> {
        let guide = Self::empty(test, kind)?;
        guide.load_guide()?;
        Ok(guide)
    }

    /// Loads the guide, and masquerade for IPv6.
    pub fn load_guide(&self) -> Result<()> {
        let v6 = format!("{RULES_V6}{MASQUERADE_V6}");
        self.load(RULES_V4, &v6)
    }

    /// Loads rules of the guide's kind.
    pub fn load(&self, v4: &str, v6: &str) -> Result<()> {
        let v4 = match self.kind {
            Kind::Iptables => corrected(v4),
            Kind::Fwbpf => v4.to_string(),
        };
        self.firewall
            .load(&[(Family::Ipv4, &v4), (Family::Ipv6, v6)])
            .with_context(|| format!("{} loads the rules", self.firewall.name()))
    }

    /// What `fwbpf status --json` says; nothing is to be known of iptables.
    pub fn status(&self) -> Result<String> {
        self.firewall.status()
    }

    /// Packets and bytes of a rule.
    pub fn count(&self, family: Family, rule: &str) -> Result<(u64, u64)> {
        saved::count(&self.firewall.save(family)?, rule)
    }

    /// The rules and counters of both IP versions.
    pub fn save(&self) -> Result<String> {
        Ok(self.firewall.save(Family::Ipv4)? + &self.firewall.save(Family::Ipv6)?)
    }
}

/// Runs a test under both firewalls. Says what is missing if one of them cannot be had.
pub fn under_both(test: &str, claim: impl Fn(&GuideLab) -> Result<()>) {
    for kind in [Kind::Iptables, Kind::Fwbpf] {
        under(test, kind, &claim);
    }
}

/// Runs a test under fwbpf, for claims that iptables does not make.
pub fn under_fwbpf(test: &str, claim: impl Fn(&GuideLab) -> Result<()>) {
    under(test, Kind::Fwbpf, &claim);
}

/// Runs a test in the lab's server with nothing loaded yet. Says what is missing if it cannot run.
pub fn with_fwbpf(
    test: &str,
    programs: &[&'static str],
    claim: impl Fn(&ServerLab, &Fwbpf) -> Result<()>,
) {
    if !ready(test, programs, true) {
        return;
    }
    let run = || {
        let lab = ServerLab::new(test, Peers::Real)?;
        let binary = fwbpf_binary().context("there is no fwbpf binary")?;
        let fwbpf = Fwbpf::new(lab.server.clone(), binary)?;
        claim(&lab, &fwbpf)
    };
    if let Err(error) = run() {
        panic!("{test}: {error:#}");
    }
}

fn under(test: &str, kind: Kind, claim: &impl Fn(&GuideLab) -> Result<()>) {
    const REFERENCE: [&str; 4] = [
        "ping",
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
        "conntrack",
    ];
    let (programs, fwbpf) = match kind {
        Kind::Iptables => (&REFERENCE[..], false),
        Kind::Fwbpf => (&REFERENCE[..1], true),
    };
    if !ready(&format!("{test} under {kind:?}"), programs, fwbpf) {
        return;
    }
    if let Err(error) = GuideLab::new(test, kind).and_then(|guide| claim(&guide)) {
        panic!("{test} under {kind:?}: {error:#}");
    }
}

/// The three lines in their evident meaning, as iptables must be given them.
pub fn corrected(rules: &str) -> String {
    rules
        .replace(":PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n# refused by iptables: the nat table has no FORWARD chain\n:FORWARD ACCEPT [0:0]\n",
                 ":PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n")
        .replace("-j masquerade", "-j MASQUERADE")
        .replace("-A OUTPUT --dport 25", "-A OUTPUT -p tcp --dport 25")
}
