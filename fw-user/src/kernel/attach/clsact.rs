//! Filters of a clsact qdisc, for kernels before tcx.
//!
//! Nothing keeps hold of a filter but its interface, and it has no pin. So the state directory has
//! a symbolic link in the place of a pin, whose target says what was made: which filter it is, and
//! whether the qdisc was ours. Other users' filters and qdiscs are left alone; ours is replaced in
//! one step, since the kernel swaps the program of a filter (`cls_bpf_change`, net/sched/cls_bpf.c).
//!
//! The record comes before what it tells of, and goes after it. So whenever a load or a removal dies,
//! the next one finds all that there may be: a record of what is not there does no harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{Link as _, SchedClassifier, TcAttachType};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle as Parent, TcMessage};

use super::{EGRESS, INGRESS, is_gone, os_error};
use crate::host::{Interface, netlink};
use crate::kernel::state::{StateDir, remove_if_present};

/// The number of our filter, among those of a priority: "fw" in ASCII.
const HANDLE: TcHandle = TcHandle::new(0, 0x6677);

/// How many priorities are tried: one can be taken by a filter of another kind than `bpf`.
const PRIORITIES: u16 = 16;

/// What the target of the symbolic link begins with.
const WORD: &str = "clsact";
const OWN_QDISC: &str = "own-qdisc";

/// What was made at an interface, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    priority: u16,
    own_qdisc: bool,
}

impl Record {
    /// What is recorded in the place of this pin; nothing if it is a real pin, or none.
    pub fn read(pin: &Path) -> Option<Self> {
        let target = fs::read_link(pin)
            .ok()?
            .into_os_string()
            .into_string()
            .ok()?;
        let mut words = target.split(' ');
        (words.next() == Some(WORD)).then_some(())?;
        Some(Self {
            priority: words.next()?.parse().ok()?,
            own_qdisc: words.next() == Some(OWN_QDISC),
        })
    }

    /// Whether somebody else has the place next to the wire.
    pub fn is_displaced(self, direction: TcAttachType) -> bool {
        self.priority != priority(direction, 0)
    }

    fn write(self, pin: &Path) -> Result<()> {
        remove_if_present(pin)?;
        symlink(self.text(), pin).with_context(|| format!("cannot write {}", pin.display()))
    }

    fn text(self) -> String {
        let Self {
            priority,
            own_qdisc,
        } = self;
        if own_qdisc {
            format!("{WORD} {priority} {OWN_QDISC}")
        } else {
            format!("{WORD} {priority}")
        }
    }
}

/// Makes sure that the filter is there with this program, and says whether it is a new one.
pub fn attach(
    state: &StateDir,
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<bool> {
    if let Some(record) = Record::read(pin) {
        // The record may be of an interface that had this index before.
        if filters(interface, direction)?.contains(&(record.priority, HANDLE.into())) {
            let id = program.attach_to_link(link(interface, direction, record)?)?;
            keep(program.take_link(id)?);
            return Ok(false);
        }
        remove_if_present(pin)?;
    }
    let other = match direction {
        TcAttachType::Egress => INGRESS,
        TcAttachType::Ingress | TcAttachType::Custom(_) => EGRESS,
    };
    let present = has_clsact(interface)?;
    let mut record = Record {
        priority: priority(direction, 0),
        // If it is there, it is ours if we made it for the other direction.
        own_qdisc: !present
            || Record::read(&state.link(interface.index, other))
                .is_some_and(|other| other.own_qdisc),
    };
    record.write(pin)?;
    let made = if present {
        Ok(())
    } else {
        match qdisc_add_clsact(&interface.name).map_err(Error::from) {
            Ok(()) => Ok(()),
            // Somebody else was faster.
            Err(error) if os_error(&error) == Some(libc::EEXIST) => {
                record.own_qdisc = false;
                has_clsact(interface).map(drop)
            }
            Err(error) => Err(error.context("cannot add a clsact qdisc")),
        }
    };
    if let Err(error) = made.and_then(|()| add(program, interface, direction, record, pin)) {
        // A record that stays would say that the interface is guarded, unless something of it is left.
        if detach(interface, direction, record).is_ok() || is_gone(&error) {
            remove_if_present(pin)?;
        }
        return Err(error);
    }
    Ok(true)
}

/// Adds the filter: first at ingress and last at egress, as far as others leave room.
fn add(
    program: &mut SchedClassifier,
    interface: &Interface,
    direction: TcAttachType,
    record: Record,
    pin: &Path,
) -> Result<()> {
    for turn in 0..PRIORITIES {
        let priority = priority(direction, turn);
        let record = Record { priority, ..record };
        if Record::read(pin) != Some(record) {
            record.write(pin)?;
        }
        let added = program.attach_with_options(
            &interface.name,
            direction,
            TcAttachOptions::Netlink(NlOptions {
                priority,
                handle: HANDLE,
                classid: None,
            }),
        );
        match added.map_err(Error::from) {
            Ok(id) => {
                keep(program.take_link(id)?);
                return Ok(());
            }
            // A filter of another kind has the priority, or one of the same number.
            Err(error)
                if matches!(os_error(&error), Some(libc::EINVAL | libc::EEXIST))
                    && turn + 1 < PRIORITIES => {}
            Err(error) => {
                return Err(error.context("cannot add a filter to the clsact qdisc"));
            }
        }
    }
    bail!("all priorities are taken")
}

fn priority(direction: TcAttachType, turn: u16) -> u16 {
    match direction {
        TcAttachType::Egress => u16::MAX - turn,
        TcAttachType::Ingress | TcAttachType::Custom(_) => 1 + turn,
    }
}

/// Removes the filter, and with the last of all filters the qdisc, if that was ours.
pub fn detach(interface: &Interface, direction: TcAttachType, record: Record) -> Result<()> {
    if filters(interface, direction)?.contains(&(record.priority, HANDLE.into())) {
        link(interface, direction, record)?.detach()?;
    }
    if !record.own_qdisc {
        return Ok(());
    }
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        if !filters(interface, direction)?.is_empty() {
            return Ok(());
        }
    }
    remove_qdisc(interface)
}

fn link(
    interface: &Interface,
    direction: TcAttachType,
    record: Record,
) -> Result<SchedClassifierLink> {
    Ok(SchedClassifierLink::attached(
        &interface.name,
        direction,
        record.priority,
        HANDLE,
        None,
    )?)
}

/// Dropping the link would detach the filter.
fn keep(link: SchedClassifierLink) {
    std::mem::forget(link);
}

/// Priority and number of every filter in that direction; none if there is no such qdisc.
pub fn filters(interface: &Interface, direction: TcAttachType) -> Result<Vec<(u16, u32)>> {
    let index = interface.index as i32;
    let messages: Vec<TcMessage> = netlink(async |handle| {
        let mut handle = handle.traffic_filter(index);
        let request = match direction {
            TcAttachType::Egress => handle.get().egress(),
            TcAttachType::Ingress | TcAttachType::Custom(_) => handle.get().ingress(),
        };
        request.execute().try_collect().await
    })
    .with_context(|| format!("cannot list the filters of {}", interface.name))?;
    Ok(messages
        .iter()
        .map(|message| {
            let header = &message.header;
            // tcm_info: the priority, and the protocol that is filtered.
            ((header.info >> 16) as u16, header.handle.into())
        })
        // A priority's chain is listed, too, without a number.
        .filter(|(_, number)| *number != 0)
        .collect())
}

/// Whether the interface has a clsact qdisc, be it ours or not. An error if its place is taken by an ingress
/// qdisc: that takes a filter for egress, too, and runs it at ingress (`ingress_tcf_block`,
/// net/sched/sch_ingress.c).
fn has_clsact(interface: &Interface) -> Result<bool> {
    let index = interface.index as i32;
    let messages: Vec<TcMessage> =
        netlink(async |handle| handle.qdisc().get().execute().try_collect().await)
            .with_context(|| format!("cannot list the qdiscs of {}", interface.name))?;
    let Some(found) = messages
        .iter()
        .find(|message| message.header.index == index && message.header.parent == Parent::CLSACT)
    else {
        return Ok(false);
    };
    let is_clsact =
        |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact");
    if !found.attributes.iter().any(is_clsact) {
        bail!(
            "an ingress qdisc is in the place of a clsact qdisc, and has no egress: what leaves could not be \
             filtered. `tc qdisc del dev {} ingress` removes it, with its filters; the next load then puts a \
             clsact qdisc there, whose ingress takes such filters as well",
            interface.name
        );
    }
    Ok(true)
}

fn remove_qdisc(interface: &Interface) -> Result<()> {
    let index = interface.index as i32;
    let removed = netlink(async |handle| {
        let mut request = handle.qdisc().del(index);
        let header = &mut request.message_mut().header;
        header.parent = Parent::CLSACT;
        header.handle = Parent::from(0xffff_0000);
        match request.execute().await {
            // Somebody removed it already.
            Err(rtnetlink::Error::NetlinkError(message))
                if matches!(-message.raw_code(), libc::EINVAL | libc::ENOENT) =>
            {
                Ok(())
            }
            other => other,
        }
    });
    removed.with_context(|| format!("cannot remove the clsact qdisc of {}", interface.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let pin = folder.path().join("link_3_egress");
        assert_eq!(Record::read(&pin), None);
        for own_qdisc in [true, false] {
            let record = Record {
                priority: 65_535,
                own_qdisc,
            };
            record.write(&pin).unwrap();
            assert_eq!(Record::read(&pin), Some(record));
        }
        for stranger in ["clsact", "clsact x", "net:[1]", "/sys/fs/bpf/clsact 1"] {
            fs::remove_file(&pin).unwrap();
            symlink(stranger, &pin).unwrap();
            assert_eq!(Record::read(&pin), None, "{stranger}");
        }
    }
}
