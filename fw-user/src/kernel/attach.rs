//! Interfaces and hooks.
//!
//! tcx where the kernel has it (6.6): first at ingress and last at egress, so that the firewall
//! sees packets as they come from the wire and as they go to it, and other programs' work in
//! between. On older kernels a clsact filter, first and last by priority. XDP only in the driver:
//! the generic hook would gain nothing over tcx.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Error, Result};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::xdp::{XdpLink, XdpMode as AyaXdpMode};
use aya::programs::{Link as _, LinkOrder, SchedClassifier, TcAttachType, Xdp};
use serde::{Deserialize, Serialize};

use super::load::Programs;
use super::state::{StateDir, remove_if_present};
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
const XDP: &str = "xdp";

/// What a `link_*` entry points at when a clsact filter, which cannot be pinned, is meant.
const CLSACT: &str = "clsact";
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

impl XdpMode {
    /// As `--xdp` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Off => "off",
        }
    }

    /// The mode of this name; `auto` for any other text.
    pub fn from_name(name: &str) -> Self {
        match name {
            "native" => Self::Native,
            "off" => Self::Off,
            _ => Self::Auto,
        }
    }
}

/// Makes sure that the programs are on every layer-3 interface, and nowhere else. Interfaces that
/// vanish meanwhile are left out.
pub fn attach_all(
    state: &StateDir,
    host: &Host,
    programs: &mut Programs,
    xdp: XdpMode,
) -> Result<Vec<Attachment>> {
    release_strays(state, host)?;
    let mut attachments = Vec::new();
    for interface in host.layer3() {
        if interface.l2_len().is_none() {
            continue;
        }
        match attach(state, interface, programs, xdp) {
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
    xdp: XdpMode,
) -> Result<Attachment> {
    let mut new = false;
    for (program, hook, direction) in [
        (&mut programs.ingress, INGRESS, TcAttachType::Ingress),
        (&mut programs.egress, EGRESS, TcAttachType::Egress),
    ] {
        let pin = state.link(interface.index, hook);
        new |= if probe::has_tcx() {
            attach_tcx(program, interface, direction, &pin)?
        } else {
            attach_clsact(program, interface, direction, &pin)?
        };
    }
    let mut problems = Vec::new();
    if let Err(error) = attach_xdp(state, interface, &mut programs.xdp, xdp) {
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

/// Whether it attached anew.
fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<bool> {
    let id = program.info()?.id();
    let attached = || -> Result<bool> {
        let (_, programs) = SchedClassifier::query_tcx(&interface.name, direction)?;
        Ok(programs.iter().any(|program| program.id() == id))
    };
    if pin.exists() {
        // The pin may hold an older program, or the link of an interface that had this index
        // before: such a link belongs to no interface any more and cannot be updated.
        if attached()? || update_tcx(program, pin).is_ok() && attached()? {
            return Ok(false);
        }
        remove_if_present(pin)?;
    }
    let order = match direction {
        TcAttachType::Egress => LinkOrder::last(),
        TcAttachType::Ingress | TcAttachType::Custom(_) => LinkOrder::first(),
    };
    let id = program.attach_with_options(
        &interface.name,
        direction,
        TcAttachOptions::TcxOrder(order),
    )?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(pin)?;
    Ok(true)
}

fn update_tcx(program: &mut SchedClassifier, pin: &Path) -> Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
    program.take_link(id)?;
    Ok(())
}

/// Adds or replaces the filter; whether it is a new one.
fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<bool> {
    let priority = clsact_priority(direction);
    let new = !is_clsact(pin);
    let replaced =
        SchedClassifierLink::attached(&interface.name, direction, priority, CLSACT_HANDLE, None)
            .map_err(Error::from)
            .and_then(|link| Ok(program.attach_to_link(link)?));
    let id = match replaced {
        Ok(id) => id,
        Err(_) => {
            // The qdisc may be there already; if it is not, attaching says so.
            let _ = qdisc_add_clsact(&interface.name);
            program.attach_with_options(
                &interface.name,
                direction,
                TcAttachOptions::Netlink(NlOptions {
                    priority,
                    handle: CLSACT_HANDLE,
                    classid: None,
                }),
            )?
        }
    };
    // Dropping the link would detach the filter, which nothing else keeps a handle of.
    std::mem::forget(program.take_link(id)?);
    if new {
        remove_if_present(pin)?;
        symlink(CLSACT, pin).with_context(|| format!("cannot write {}", pin.display()))?;
    }
    Ok(new)
}

fn attach_xdp(
    state: &StateDir,
    interface: &Interface,
    program: &mut Xdp,
    mode: XdpMode,
) -> Result<()> {
    let pin = state.link(interface.index, XDP);
    let wanted = match mode {
        XdpMode::Off => false,
        XdpMode::Auto => interface.hardware,
        // The loopback interface has no driver that could run XDP.
        XdpMode::Native => !interface.is_loopback(),
    };
    if !wanted {
        return if pin.exists() {
            detach_link(&pin)
        } else {
            Ok(())
        };
    }
    let id = program.info()?.id();
    if pin.exists() {
        let attached = interface.xdp.is_some_and(|xdp| xdp.id == id);
        if attached || update_xdp(program, &pin).is_ok() {
            return Ok(());
        }
        remove_if_present(&pin)?;
    }
    let id = program
        .attach_to_if_index(interface.index, AyaXdpMode::Driver)
        .map_err(|error| explain_xdp(Error::from(error)))?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&pin)?;
    Ok(())
}

fn update_xdp(program: &mut Xdp, pin: &Path) -> Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(XdpLink::try_from(link)?)?;
    program.take_link(id)?;
    Ok(())
}

fn explain_xdp(error: Error) -> Error {
    match os_error(&error) {
        Some(libc::EOPNOTSUPP) => error.context("the driver has no native XDP"),
        Some(libc::EBUSY) | Some(libc::EEXIST) => {
            error.context("another XDP program is on this interface")
        }
        _ => error,
    }
}

/// Removes the attachments of interfaces that are gone, or that became the port of a bridge or
/// bond, where the master is guarded instead.
fn release_strays(state: &StateDir, host: &Host) -> Result<()> {
    for (index, hook, path) in state.links()? {
        if !host.layer3().any(|interface| interface.index == index) {
            detach(host, index, &hook, &path)?;
        }
    }
    Ok(())
}

fn detach(host: &Host, index: u32, hook: &str, path: &Path) -> Result<()> {
    if !is_clsact(path) {
        return detach_link(path);
    }
    let direction = match hook {
        EGRESS => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    };
    if let Some(interface) = host.interfaces.iter().find(|i| i.index == index) {
        let link = SchedClassifierLink::attached(
            &interface.name,
            direction,
            clsact_priority(direction),
            CLSACT_HANDLE,
            None,
        );
        match link.map_err(Error::from).and_then(|l| Ok(l.detach()?)) {
            Err(error) if !is_gone(&error) && os_error(&error) != Some(libc::ENOENT) => {
                return Err(error)
                    .with_context(|| format!("cannot detach from {}", interface.name));
            }
            Ok(()) | Err(_) => {}
        }
    }
    remove_if_present(path)
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

fn is_clsact(pin: &Path) -> bool {
    fs::read_link(pin).is_ok_and(|target| target == Path::new(CLSACT))
}

fn clsact_priority(direction: TcAttachType) -> u16 {
    match direction {
        TcAttachType::Egress => u16::MAX,
        TcAttachType::Ingress | TcAttachType::Custom(_) => 1,
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
