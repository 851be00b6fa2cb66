//! Who is compared: each in a host of its own, loaded once, measured in turn.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fw_user::policy::model::Family;
use serde::Serialize;

use super::lab::{Ends, HOST, PathLab};
use super::station::Station;
use crate::lab::{Firewall as _, Fwbpf, Namespace, fwbpf_binary, run};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// The kernel without any firewall.
    NoFirewall,
    /// The kernel's original tables.
    IptablesLegacy,
    /// iptables' commands in front of nftables.
    IptablesNft,
    /// nftables, as someone would write it who knows its sets and maps.
    Nft,
    /// fwbpf with XDP.
    FwbpfXdp,
    /// fwbpf at tcx alone.
    FwbpfTcx,
    /// An XDP program that drops.
    FloorDrop,
    /// An XDP program that looks up one flow, asks for the route, rewrites and redirects.
    FloorForward,
    /// A tcx program at both hooks that looks each packet's connection up.
    FloorTrack,
}

impl Contender {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoFirewall => "no firewall",
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
            Self::Nft => "nft",
            Self::FwbpfXdp => "fwbpf, XDP",
            Self::FwbpfTcx => "fwbpf, tcx only",
            Self::FloorDrop => "floor: XDP_DROP",
            Self::FloorForward => "floor: XDP forward",
            Self::FloorTrack => "floor: tcx look-up",
        }
    }

    /// Whether rules mean anything to it.
    pub fn has_rules(self) -> bool {
        !matches!(
            self,
            Self::NoFirewall | Self::FloorDrop | Self::FloorForward | Self::FloorTrack
        )
    }
}

/// The same policy in the languages of all.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// iptables-save, and the same for IPv6.
    pub save: Vec<(Family, String)>,
    /// nft's best form.
    pub nft: String,
}

/// A firewall in a namespace: rules in, counts out.
pub struct Loaded {
    contender: Contender,
    namespace: Arc<Namespace>,
    fwbpf: Option<Fwbpf>,
    fast_path: &'static str,
    files: tempfile::TempDir,
}

impl Loaded {
    /// Nothing yet.
    pub fn new(contender: Contender, namespace: Arc<Namespace>) -> Result<Self> {
        let fwbpf = match contender {
            Contender::FwbpfXdp | Contender::FwbpfTcx => {
                let binary = fwbpf_binary().context("there is no fwbpf binary")?;
                Some(Fwbpf::new(Arc::clone(&namespace), binary)?)
            }
            _ => None,
        };
        Ok(Self {
            contender,
            namespace,
            fwbpf,
            fast_path: "on",
            files: tempfile::tempdir()?,
        })
    }

    /// Has fwbpf itself say where its fast path is exact, and so on: frames of real sockets have
    /// unfinished checksums, which a veth's XDP would redirect as they are.
    #[must_use]
    pub fn with_exact_fast_path(mut self) -> Self {
        self.fast_path = "auto";
        self
    }

    /// Loads a policy as a whole, and says how long its own command took.
    pub fn load(&self, policy: &Policy) -> Result<Duration> {
        let mut commands = Vec::new();
        match self.contender {
            Contender::NoFirewall
            | Contender::FloorDrop
            | Contender::FloorForward
            | Contender::FloorTrack => {}
            Contender::IptablesLegacy | Contender::IptablesNft => {
                for (family, text) in &policy.save {
                    let mut command = self.namespace.command(self.restore(*family));
                    if self.contender == Contender::IptablesLegacy {
                        command.args(["-w", "60"]);
                    }
                    command.arg(self.write(extension(*family), text)?);
                    commands.push(command);
                }
            }
            Contender::Nft => {
                let text = format!("flush ruleset\n{}", policy.nft);
                let mut command = self.namespace.command("nft");
                command.arg("-f").arg(self.write("nft", &text)?);
                commands.push(command);
            }
            Contender::FwbpfXdp | Contender::FwbpfTcx => {
                let fwbpf = self.fwbpf.as_ref().context("made with one")?;
                let xdp = if self.contender == Contender::FwbpfXdp {
                    "native"
                } else {
                    "off"
                };
                let mut command = fwbpf.command();
                command.args(["load", "--xdp", xdp, "--fast-path", self.fast_path]);
                for (family, text) in &policy.save {
                    command.arg(self.write(extension(*family), text)?);
                }
                commands.push(command);
            }
        }
        let started = Instant::now();
        for command in &mut commands {
            run(command).with_context(|| format!("{} loads", self.contender.name()))?;
        }
        Ok(started.elapsed())
    }

    /// Takes the firewall away.
    pub fn clear(&self) -> Result<()> {
        match self.contender {
            Contender::NoFirewall
            | Contender::FloorDrop
            | Contender::FloorForward
            | Contender::FloorTrack => Ok(()),
            Contender::IptablesLegacy | Contender::IptablesNft => {
                const OPEN: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
                     COMMIT\n*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n\
                     :POSTROUTING ACCEPT\nCOMMIT\n";
                for family in [Family::Ipv4, Family::Ipv6] {
                    let mut command = self.namespace.command(self.restore(family));
                    run(command.arg(self.write("open", OPEN)?))?;
                }
                Ok(())
            }
            Contender::Nft => {
                run(self.namespace.command("nft").args(["flush", "ruleset"])).map(drop)
            }
            Contender::FwbpfXdp | Contender::FwbpfTcx => {
                self.fwbpf.as_ref().context("made with one")?.clear()
            }
        }
    }

    /// How many packets the INPUT chain's last rule, which drops, has counted. `None`: nothing
    /// there counts.
    pub fn dropped(&self, family: Family) -> Result<Option<u64>> {
        if self.contender == Contender::Nft {
            let mut command = self.namespace.command("nft");
            let table = match family {
                Family::Ipv4 => "ip",
                Family::Ipv6 => "ip6",
            };
            command.args(["list", "counter", table, "guide", "flooded"]);
            let text = run(&mut command)?;
            return Ok(Some(number_after(&text, "packets ")?));
        }
        self.counted(family, "-A INPUT -j DROP")
    }

    /// How many packets the INPUT chain's rule for established flows has counted. `None`: nothing
    /// there counts.
    pub fn established(&self, family: Family) -> Result<Option<u64>> {
        self.counted(
            family,
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        )
    }

    fn counted(&self, family: Family, rule: &str) -> Result<Option<u64>> {
        let text = match self.contender {
            Contender::NoFirewall
            | Contender::FloorDrop
            | Contender::FloorForward
            | Contender::FloorTrack
            | Contender::Nft => return Ok(None),
            Contender::IptablesLegacy | Contender::IptablesNft => {
                run(self.namespace.command(self.save(family)).arg("-c"))?
            }
            Contender::FwbpfXdp | Contender::FwbpfTcx => {
                let fwbpf = self.fwbpf.as_ref().context("made with one")?;
                let flag = match family {
                    Family::Ipv4 => "--ipv4",
                    Family::Ipv6 => "--ipv6",
                };
                run(fwbpf.command().args(["show", "--save", flag]))?
            }
        };
        let line = text
            .lines()
            .rfind(|line| line.trim_end().ends_with(rule))
            .with_context(|| format!("there is no rule `{rule}` among the rules saved"))?;
        Ok(Some(number_after(line, "[")?))
    }

    /// fwbpf's own command line, if this is fwbpf.
    pub fn fwbpf(&self) -> Option<Command> {
        self.fwbpf.as_ref().map(Fwbpf::command)
    }

    /// Where fwbpf's pins are, if this is fwbpf.
    pub fn state_dir(&self) -> Option<&Path> {
        self.fwbpf.as_ref().map(Fwbpf::state_dir)
    }

    fn restore(&self, family: Family) -> &'static str {
        match (self.contender, family) {
            (Contender::IptablesNft, Family::Ipv4) => "iptables-nft-restore",
            (Contender::IptablesNft, Family::Ipv6) => "ip6tables-nft-restore",
            (_, Family::Ipv4) => "iptables-legacy-restore",
            (_, Family::Ipv6) => "ip6tables-legacy-restore",
        }
    }

    fn save(&self, family: Family) -> &'static str {
        match (self.contender, family) {
            (Contender::IptablesNft, Family::Ipv4) => "iptables-nft-save",
            (Contender::IptablesNft, Family::Ipv6) => "ip6tables-nft-save",
            (_, Family::Ipv4) => "iptables-legacy-save",
            (_, Family::Ipv6) => "ip6tables-legacy-save",
        }
    }

    fn write(&self, extension: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.path().join(format!("rules.{extension}"));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn extension(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "v4",
        Family::Ipv6 => "v6",
    }
}

fn number_after(text: &str, mark: &str) -> Result<u64> {
    let Some((_, rest)) = text.split_once(mark) else {
        bail!("expected a number after `{mark}` in\n{text}");
    };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .with_context(|| format!("expected a number after `{mark}` in\n{text}"))
}

/// A contender on a path of its own, ready to be measured.
pub struct Arena {
    /// Who.
    pub contender: Contender,
    /// The firewall.
    pub loaded: Loaded,
    /// The generator and the sink at wan.
    pub wan: Station,
    /// The generator and the sink at lan.
    pub lan: Station,
    /// The floor's program on the host.
    pub floor: Option<Station>,
    /// The path. Last, so that it goes last.
    pub lab: PathLab,
}

impl Arena {
    /// Makes the path and loads the policy.
    pub fn new(contender: Contender, object: &[u8], policy: &Policy) -> Result<Self> {
        let lab = PathLab::new(contender.name(), Ends::Generated)?;
        let wan = lab.wan_station(object)?;
        let lan = lab.lan_station(object)?;
        let floor = match contender {
            Contender::FloorDrop => Some(("eth0", "floor_drop")),
            Contender::FloorForward => Some(("docker0", "floor_forward")),
            _ => None,
        };
        let floor = match floor {
            Some((interface, program)) => {
                let mut station = Station::new(Arc::clone(&lab.host), interface, object)?;
                station.masquerade_as(HOST)?;
                station.attach(program)?;
                Some(station)
            }
            None => None,
        };
        let loaded = Loaded::new(contender, Arc::clone(&lab.host))?;
        loaded.load(policy)?;
        Ok(Self {
            contender,
            loaded,
            wan,
            lan,
            floor,
            lab,
        })
    }

    /// Packets that the host has received at an interface.
    pub fn received(&self, interface: &str) -> Result<u64> {
        let text = self
            .lab
            .host
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        // "  eth0: bytes packets errs ..."
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))
            .with_context(|| format!("there is no {interface} in\n{text}"))?;
        let packets = line
            .split_whitespace()
            .nth(1)
            .context("/proc/net/dev has columns")?;
        Ok(packets.parse()?)
    }
}

/// The family of an address.
pub fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}
