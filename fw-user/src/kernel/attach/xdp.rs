//! XDP links, pinned: in the driver only.

use std::path::Path;

use anyhow::{Error, Result};
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaXdpMode};

use super::{XDP, XdpMode, detach_link, os_error};
use crate::host::Interface;
use crate::kernel::load::Pinned;
use crate::kernel::state::{StateDir, remove_if_present};

/// Puts the program where `mode` wants it, and takes it away elsewhere.
pub fn attach(
    state: &StateDir,
    interface: &Interface,
    program: &mut Pinned<Xdp>,
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
    let id = program.id();
    if pin.exists() {
        let attached = interface.xdp.is_some_and(|xdp| xdp.id == id);
        if attached || update(program.open()?, &pin).is_ok() {
            return Ok(());
        }
        remove_if_present(&pin)?;
    }
    let program = program.open()?;
    let id = program
        .attach_to_if_index(interface.index, AyaXdpMode::Driver)
        .map_err(|error| explain(Error::from(error)))?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&pin)?;
    Ok(())
}

fn update(program: &mut Xdp, pin: &Path) -> Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(XdpLink::try_from(link)?)?;
    program.take_link(id)?;
    Ok(())
}

fn explain(error: Error) -> Error {
    match os_error(&error) {
        Some(libc::EOPNOTSUPP) => error.context("the driver has no native XDP"),
        Some(libc::EBUSY) | Some(libc::EEXIST) => {
            error.context("another XDP program is on this interface")
        }
        _ => error,
    }
}
