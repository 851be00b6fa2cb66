//! Where the fast path may be on: only where it does what the slow way would do.
//!
//! It bypasses what the stack has between ingress and egress. So it is off while anything is there
//! that could act on a packet: netfilter hooks, IPsec policies, other people's tc programs. At XDP
//! it is on only between hardware: frames that a veth hands over may have checksums yet to be
//! filled in, which nobody would do behind an XDP redirect.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aya::maps::MapError;
use fw_common::abi::device::Device;
use serde::{Deserialize, Serialize};

use super::attach::{self, Via};
use super::bypassed;
use super::load::Maps;
use super::state::{Fact, StateDir};
use super::sync::{touch, write_near};
use crate::host::{Host, Interface};

/// Where the fast path is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// Wherever it does what the slow way would do.
    #[default]
    Auto,
    /// On every interface that can, whatever it bypasses; at XDP even between veth interfaces.
    On,
    /// Nowhere.
    Off,
}

impl FastPath {
    /// As `--fast-path` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// What the load of a generation asked for; `auto` if that is not noted.
    pub fn of(state: &StateDir, generation: u32) -> Self {
        match state.term(Fact::FastPath, generation).as_deref() {
            Some("on") => Self::On,
            Some("off") => Self::Off,
            _ => Self::Auto,
        }
    }
}

/// Where the fast path belongs, and why not elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Places {
    /// By interface index.
    pub interfaces: BTreeMap<u32, Place>,
}

/// The fast path of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// At tc.
    pub tc: bool,
    /// At XDP.
    pub xdp: bool,
    /// Why it is not on, or not at XDP where an XDP program is.
    pub why_not: Option<String>,
}

impl Places {
    /// Looks around in this network namespace.
    pub fn make(state: &StateDir, host: &Host, mode: FastPath, via: Via) -> Result<Self> {
        let obstacle = match mode {
            FastPath::Auto => bypassed::obstacle(),
            FastPath::On => None,
            FastPath::Off => Some("switched off with --fast-path".to_owned()),
        };
        let mut interfaces = BTreeMap::new();
        for interface in host.layer3() {
            let place = match &obstacle {
                Some(why) => Place {
                    why_not: Some(why.clone()),
                    ..Place::default()
                },
                None => place(state, interface, mode, via)?,
            };
            interfaces.insert(interface.index, place);
        }
        Ok(Self { interfaces })
    }

    /// Writes what the plan says into the interfaces' records and the table of XDP's targets.
    pub fn apply(&self, maps: &mut Maps) -> Result<()> {
        let mut changed = false;
        for (index, place) in &self.interfaces {
            let old = match maps.devices.get(index, 0) {
                Ok(old) => old,
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error).context("cannot read an interface's record"),
            };
            let mut new = old;
            new.flags &= !(Device::FAST | Device::FAST_XDP);
            if place.tc {
                new.flags |= Device::FAST;
            }
            if place.xdp {
                new.flags |= Device::FAST_XDP;
            }
            if new != old {
                changed = true;
                maps.devices
                    .insert(index, new, 0)
                    .context("cannot write an interface's record")?;
                write_near(maps, *index, &new).context("cannot write an interface's record")?;
            }
        }
        let wanted: BTreeSet<u32> = self
            .interfaces
            .iter()
            .filter(|(_, place)| place.xdp)
            .map(|(index, _)| *index)
            .collect();
        if !wanted.is_empty() || !maps.xdp_devices.is_empty()? {
            set_targets(maps, &wanted)?;
        }
        if changed {
            touch(maps)?;
        }
        Ok(())
    }
}

/// Makes these interfaces the ones that XDP may send frames out of.
fn set_targets(maps: &Maps, wanted: &BTreeSet<u32>) -> Result<()> {
    let mut targets = maps.xdp_devices.open()?;
    let present: BTreeSet<u32> = targets
        .keys()
        .collect::<Result<_, _>>()
        .context("cannot list XDP's targets")?;
    for index in wanted.difference(&present) {
        targets
            .insert(*index, *index, None, 0)
            .with_context(|| format!("cannot make interface {index} a target of XDP"))?;
    }
    for index in present.difference(wanted) {
        match targets.remove(*index) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).context("cannot remove a target of XDP"),
        }
    }
    Ok(())
}

fn place(state: &StateDir, interface: &Interface, mode: FastPath, via: Via) -> Result<Place> {
    let why_not = if interface.is_loopback() {
        Some("loopback".to_owned())
    } else if interface.l2_len() != Some(14) {
        Some("not Ethernet".to_owned())
    } else if mode == FastPath::Auto && attach::is_followed(interface, via)? {
        Some("another tc program stands behind the firewall's at ingress".to_owned())
    } else {
        None
    };
    if why_not.is_some() {
        return Ok(Place {
            why_not,
            ..Place::default()
        });
    }
    let has_xdp = attach::hooks(state, interface.index)?
        .iter()
        .any(|hook| hook == attach::XDP);
    let xdp = has_xdp && (interface.hardware || mode == FastPath::On);
    Ok(Place {
        tc: true,
        xdp,
        why_not: (has_xdp && !xdp).then(|| {
            "not at XDP: frames of a virtual interface may lack their checksums".to_owned()
        }),
    })
}
