//! tcx links, pinned. First at ingress and last at egress.

use std::path::Path;

use anyhow::Result;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};

use crate::host::Interface;
use crate::kernel::load::Pinned;
use crate::kernel::state::remove_if_present;

/// Makes sure that the program is there, and says whether it attached anew.
pub fn attach(
    program: &mut Pinned<SchedClassifier>,
    interface: &Interface,
    direction: TcAttachType,
    pin: &Path,
) -> Result<bool> {
    let id = program.id();
    let attached = || -> Result<bool> {
        let (_, programs) = SchedClassifier::query_tcx(&interface.name, direction)?;
        Ok(programs.iter().any(|program| program.id() == id))
    };
    if pin.exists() {
        // The pin may hold an older program, or the link of an interface that had this index
        // before: such a link belongs to no interface any more and cannot be updated.
        if attached()? || update(program.open()?, pin).is_ok() && attached()? {
            return Ok(false);
        }
        remove_if_present(pin)?;
    }
    let order = match direction {
        TcAttachType::Egress => LinkOrder::last(),
        TcAttachType::Ingress | TcAttachType::Custom(_) => LinkOrder::first(),
    };
    let program = program.open()?;
    let id = program.attach_with_options(
        &interface.name,
        direction,
        TcAttachOptions::TcxOrder(order),
    )?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(pin)?;
    Ok(true)
}

fn update(program: &mut SchedClassifier, pin: &Path) -> Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
    program.take_link(id)?;
    Ok(())
}
