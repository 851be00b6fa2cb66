//! Interfaces and hooks.
//!
//! tcx where the kernel has it (6.6): first at ingress and last at egress, so that the firewall
//! sees packets as they come from the wire and as they go to it, and other programs' work in
//! between. On older kernels a clsact filter, first and last by priority. XDP only in the driver:
//! the generic hook would gain nothing over tcx.

mod clsact;
mod tcx;
mod xdp;

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail};
use aya::programs::{SchedClassifier, TcAttachType};
use serde::{Deserialize, Serialize};

use super::load::Programs;
use super::state::{Fact, StateDir, remove_if_present};
use super::{probe, sys};
use crate::host::{Host, Interface};

/// Where XDP early drop is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// On interfaces with hardware behind them.
    #[default]
    Auto,
    /// On every interface whose driver can, veth included.
    Native,
    /// Nowhere.
    Off,
}

/// What the programs are attached to, as a person asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Hook {
    /// As it is; at first by tcx if the kernel has it.
    #[default]
    Auto,
    /// tcx, which Linux has since 6.6.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// What the programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// tcx links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// How an interface is guarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Whether it was attached just now.
    pub new: bool,
    /// What is not as it should be, for people.
    pub problems: Vec<String>,
}

const INGRESS: &str = "ingress";
const EGRESS: &str = "egress";
/// How pins spell the XDP hook.
pub const XDP: &str = "xdp";

impl XdpMode {
    /// As `--xdp` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Off => "off",
        }
    }

    /// What the load of a generation asked for; `auto` if that is not noted.
    pub fn of(state: &StateDir, generation: u32) -> Self {
        match state.term(Fact::Xdp, generation).as_deref() {
            Some("native") => Self::Native,
            Some("off") => Self::Off,
            _ => Self::Auto,
        }
    }
}

impl Via {
    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// What the firewall in this directory is attached to; nothing if it is not.
    pub fn of(state: &StateDir) -> Result<Option<Self>> {
        Ok(state
            .links()?
            .into_iter()
            .find(|(_, hook, _)| hook == INGRESS || hook == EGRESS)
            .map(|(_, _, path)| match clsact::Record::read(&path) {
                Some(_) => Self::Clsact,
                None => Self::Tcx,
            }))
    }

    /// What to attach to. A running firewall is not moved from one to the other: for a moment its
    /// programs would see each packet twice, or not at all.
    pub fn choose(state: &StateDir, asked: Hook) -> Result<Self> {
        let present = Self::of(state)?;
        let chosen = match (asked, present) {
            (Hook::Auto, Some(present)) => present,
            (Hook::Auto, None) if probe::has_tcx() => Self::Tcx,
            (Hook::Clsact | Hook::Auto, _) => Self::Clsact,
            (Hook::Tcx, _) if !probe::has_tcx() => bail!(
                "this kernel ({}) has no tcx, which came with Linux 6.6; use `--hook clsact`, or \
                 `--hook auto`, which knows",
                probe::kernel_version()
            ),
            (Hook::Tcx, _) => Self::Tcx,
        };
        match present {
            Some(present) if present != chosen => bail!(
                "the firewall is attached by {}, and --hook asks for {}: `fwbpf unload` first, \
                 then load again",
                present.name(),
                chosen.name()
            ),
            Some(_) | None => Ok(chosen),
        }
    }
}

/// Makes sure that the programs are on every interface that they belong on, and nowhere else. Interfaces that
/// vanish meanwhile are left out.
pub fn attach_all(
    state: &StateDir,
    host: &Host,
    programs: &mut Programs,
    via: Via,
    xdp: XdpMode,
) -> Result<Vec<Attachment>> {
    release_strays(state, host)?;
    let mut attachments = Vec::new();
    for interface in host.guarded() {
        if interface.l2_len().is_none() {
            continue;
        }
        // XDP knows nothing of what a bridge does with a frame.
        let is_port = host.ports().any(|(port, _)| port.index == interface.index);
        let xdp = if is_port { XdpMode::Off } else { xdp };
        match attach(state, interface, programs, via, xdp) {
            Ok(attachment) => attachments.push(attachment),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot attach to {}", interface.name));
            }
        }
    }
    Ok(attachments)
}

/// Detaches everything, at once and before any pin is removed.
pub fn detach_all(state: &StateDir, host: &Host) -> Result<()> {
    for (index, hook, path) in state.links()? {
        detach(host, index, &hook, &path)?;
    }
    Ok(())
}

/// Whether somebody else's program comes after the firewall's at an interface's ingress.
pub fn is_followed(interface: &Interface, via: Via) -> Result<bool> {
    let own = match via {
        Via::Tcx => {
            let (_, programs) = SchedClassifier::query_tcx(&interface.name, TcAttachType::Ingress)?;
            if programs.len() > 1 {
                return Ok(true);
            }
            0
        }
        Via::Clsact => 1,
    };
    Ok(clsact::filters(interface, TcAttachType::Ingress)?.len() > own)
}

/// The hooks that are pinned for an interface: `ingress`, `egress`, `xdp`.
pub fn hooks(state: &StateDir, index: u32) -> Result<Vec<String>> {
    Ok(state
        .links()?
        .into_iter()
        .filter(|(link, _, _)| *link == index)
        .map(|(_, hook, _)| hook)
        .collect())
}

fn attach(
    state: &StateDir,
    interface: &Interface,
    programs: &mut Programs,
    via: Via,
    xdp: XdpMode,
) -> Result<Attachment> {
    let mut new = false;
    let mut problems = Vec::new();
    for (program, hook, direction) in [
        (&mut programs.ingress, INGRESS, TcAttachType::Ingress),
        (&mut programs.egress, EGRESS, TcAttachType::Egress),
    ] {
        let pin = state.link(interface.index, hook);
        new |= match via {
            Via::Tcx => tcx::attach(program, interface, direction, &pin)?,
            Via::Clsact => clsact::attach(state, program.open()?, interface, direction, &pin)?,
        };
        if clsact::Record::read(&pin).is_some_and(|record| record.is_displaced(direction)) {
            problems.push(format!(
                "somebody else's filter has the place next to the wire at {hook}: what it accepts \
                 or redirects, the firewall does not see"
            ));
        }
    }
    if let Err(error) = xdp::attach(state, interface, &mut programs.xdp, xdp) {
        if is_gone(&error) {
            return Err(error);
        }
        // The firewall is whole without XDP, which only drops earlier what tcx would drop.
        problems.push(format!("no XDP early drop: {error:#}"));
    }
    Ok(Attachment {
        interface: interface.name.clone(),
        index: interface.index,
        new,
        problems,
    })
}

/// Removes the attachments of interfaces that are gone, or that became the port of a bond, or of a bridge
/// that hands nothing over, where only the master is guarded.
fn release_strays(state: &StateDir, host: &Host) -> Result<()> {
    for (index, hook, path) in state.links()? {
        if !host.guarded().any(|interface| interface.index == index) {
            detach(host, index, &hook, &path)?;
        }
    }
    Ok(())
}

fn detach(host: &Host, index: u32, hook: &str, path: &Path) -> Result<()> {
    match clsact::Record::read(path) {
        Some(record) => {
            if let Some(interface) = host.interfaces.iter().find(|i| i.index == index) {
                clsact::detach(interface, direction(hook), record)
                    .with_context(|| format!("cannot detach from {}", interface.name))?;
            }
            remove_if_present(path)
        }
        None => detach_link(path),
    }
}

fn detach_link(pin: &Path) -> Result<()> {
    let link = sys::open_pin(pin).with_context(|| format!("cannot open {}", pin.display()))?;
    match sys::detach_link(link.as_fd()) {
        // ENOLINK: the interface is gone, and its attachments with it.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOLINK)) => {
            return Err(error).with_context(|| format!("cannot detach {}", pin.display()));
        }
        Ok(()) | Err(_) => {}
    }
    remove_if_present(pin)
}

fn direction(hook: &str) -> TcAttachType {
    match hook {
        EGRESS => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    }
}

fn is_gone(error: &Error) -> bool {
    os_error(error) == Some(libc::ENODEV)
}

fn os_error(error: &Error) -> Option<i32> {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .find_map(io::Error::raw_os_error)
}
