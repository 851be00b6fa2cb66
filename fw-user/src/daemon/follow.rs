//! Following the interfaces: those that appear are guarded, and addresses are kept up to date.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use fw_common::abi::Addr;
use fw_common::abi::flow::Flow;

use crate::command::running::Running;
use crate::host::Host;
use crate::kernel::attach::{Hook, Via, XdpMode, attach_all};
use crate::kernel::fast_path::{FastPath, Places};
use crate::kernel::flows::{FlowTable, Slices};
use crate::kernel::load::{Programs, check_owner};
use crate::kernel::state::StateDir;
use crate::kernel::sweep::Sweeper;
use crate::kernel::sync::{prune_devices, words, write_devices, write_local};

/// Remembers what it saw, to tell what went away.
#[derive(Debug)]
pub struct Follower {
    state: StateDir,
    usable: BTreeSet<(u32, IpAddr)>,
}

impl Follower {
    /// Has seen nothing yet.
    pub fn new(state: StateDir) -> Self {
        Self {
            state,
            usable: BTreeSet::new(),
        }
    }

    /// Brings the firewall in line with the interfaces as they are now; says what it did.
    pub fn follow(&mut self) -> Result<Vec<String>> {
        if !self.state.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.state.lock()?;
        let Some(mut running) = Running::find(&self.state)? else {
            return Ok(Vec::new());
        };
        check_owner(&self.state)?;
        let host = Host::read()?;
        let maps = &mut running.maps;
        // The record first: a program on an interface without one would drop its packets.
        write_devices(
            maps,
            &host,
            running.header.generation,
            &running.tables.patterns,
        )?;
        write_local(maps, &host)?;
        let generation = running.header.generation;
        let xdp = XdpMode::of(&self.state, generation);
        let via = Via::choose(&self.state, Hook::Auto)?;
        let mut programs = Programs::open(&self.state)?;
        let attachments = attach_all(&self.state, &host, &mut programs, via, xdp)?;
        prune_devices(maps, &host)?;
        let fast = FastPath::of(&self.state, generation);
        Places::make(&self.state, &host, fast, via)?.apply(maps)?;

        let mut said: Vec<String> = attachments
            .iter()
            .filter(|attachment| attachment.new)
            .map(|attachment| format!("{} is guarded now", attachment.interface))
            .collect();
        let usable = usable_addresses(&host);
        if self.usable.difference(&usable).next().is_some() {
            let ended = end_orphans(&self.state, &host)?;
            if ended > 0 {
                said.push(format!(
                    "{ended} masqueraded flows ended with the address that they used"
                ));
            }
        }
        self.usable = usable;
        Ok(said)
    }
}

/// The addresses that flows can be masqueraded with: those of interfaces that are up.
fn usable_addresses(host: &Host) -> BTreeSet<(u32, IpAddr)> {
    host.interfaces
        .iter()
        .filter(|interface| interface.up)
        .flat_map(|interface| {
            let index = interface.index;
            interface
                .addresses
                .iter()
                .map(move |address| (index, address.address))
        })
        .collect()
}

/// Ends the flows whose translated source is no longer this host's, or whose interface is down:
/// no reply could reach them (`masq_device_event` and `masq_inet_event`,
/// net/netfilter/nf_nat_masquerade.c).
fn end_orphans(state: &StateDir, host: &Host) -> Result<usize> {
    let addresses: BTreeSet<Addr> = host
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(|address| match address.address {
            IpAddr::V4(address) => [u32::from(address), 0, 0, 0],
            IpAddr::V6(address) => words(address.octets()),
        })
        .collect();
    let up: BTreeSet<u32> = host
        .interfaces
        .iter()
        .filter(|interface| interface.up)
        .map(|interface| interface.index)
        .collect();
    let sweeper = Sweeper::open(state)?;
    let mut ended = 0;
    for table in FlowTable::ALL {
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            for (key, flow) in &slice {
                let orphan = flow.status.get() & Flow::SNAT != 0
                    && flow.nat_device != 0
                    && (!addresses.contains(flow.translated_source().0)
                        || !up.contains(&flow.nat_device));
                if orphan && sweeper.end(key)? {
                    ended += 1;
                }
            }
        }
    }
    Ok(ended)
}
