//! fwbpf's datapath in this process instead of in the kernel: the same code over plain collections,
//! put between the wires and a server without firewall. Frames meet ingress before they are put in
//! and egress after they come out. What passes only lo is not seen.

use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result, anyhow};
use fw_common::datapath::{Verdict, egress, ingress};
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::{Counters, Family, Policy};
use fw_user::policy::{LoadOptions, SourceFile, load, print_save};
use fw_user::sim::{Host, HostTables, SlicePacket};

use crate::lab::{Firewall, Namespace};
use crate::packet::checksum_is_unfinished;

/// Bytes of an Ethernet header.
const L2: usize = 14;

/// The simulated firewall of one server; clones are the same.
#[derive(Clone)]
pub struct Simulated {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    host: Host,
    running: Option<Running>,
    /// The sets that the next rules may ask.
    sets: String,
    /// What passed ingress since the last frame was put in, to know it again at egress.
    arrived: Vec<SlicePacket>,
}

struct Running {
    policy: Policy,
    slots: Slots,
    tables: HostTables,
}

impl Simulated {
    /// On the interfaces and addresses of this namespace.
    pub fn new(server: &Namespace) -> Result<Self> {
        let host = server.enter(fw_user::host::Host::read)?;
        let host = Host::from(&host.context("read the interfaces")?);
        Ok(Self {
            inner: Arc::new(Mutex::new(Inner {
                host,
                running: None,
                sets: String::new(),
                arrived: Vec::new(),
            })),
        })
    }

    /// A new packet is about to be sent.
    pub fn next_step(&self) {
        self.lock().arrived.clear();
    }

    /// What the server gets to see of a frame that arrives at `interface`.
    pub fn arrive(&self, interface: &str, frame: Vec<u8>) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        let device = inner.host.device(interface)?.index;
        let mut packet = SlicePacket::ethernet(frame, device);
        if let Some(running) = &inner.running {
            let verdict = ingress(&mut packet, &running.tables, &mut Default::default());
            if verdict != Verdict::Pass {
                return None;
            }
        }
        inner.arrived.push(packet.clone());
        Some(packet.bytes)
    }

    /// What gets onto the wire of a frame that the server sends out of `interface`.
    pub fn leave(&self, interface: &str, frame: Vec<u8>) -> Option<Vec<u8>> {
        let inner = self.lock();
        let Some(running) = &inner.running else {
            return Some(frame);
        };
        let device = inner.host.device(interface)?.index;
        let arrived = inner
            .arrived
            .iter()
            .find(|arrived| upper_part(&arrived.bytes) == upper_part(&frame));
        let mut packet = match arrived {
            Some(arrived) => SlicePacket {
                bytes: frame,
                ..arrived.clone()
            },
            None => SlicePacket::ethernet(frame, device).made_here(),
        }
        .at_egress_of(device);
        packet.partial_sum = packet.bytes.get(L2..).is_some_and(checksum_is_unfinished);
        let verdict = egress(&mut packet, &running.tables, &mut Default::default());
        (verdict == Verdict::Pass).then_some(packet.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the simulation has not panicked")
    }
}

impl Firewall for Simulated {
    fn name(&self) -> &'static str {
        "simulation"
    }

    fn load(&self, rules: &[(Family, &str)]) -> Result<()> {
        let rules = rules
            .iter()
            .map(|(family, text)| SourceFile::new("rules", text.as_bytes(), Some(*family)));
        let sets = SourceFile::new("sets.ipset", self.lock().sets.as_bytes(), None);
        let files: Vec<SourceFile> = rules.chain([sets]).collect();
        let policy = load(&files, LoadOptions { strict: true })
            .map_err(|errors| anyhow!("{errors:?}"))?
            .policy;
        let slots = Slots::fresh(&policy);
        let compiled = compile(&policy, &slots, 1, &[]).map_err(|limits| anyhow!("{limits:?}"))?;
        let mut inner = self.lock();
        let mut tables = HostTables::running(inner.host.clone(), compiled);
        tables.put_sets(&policy);
        inner.running = Some(Running {
            policy,
            slots,
            tables,
        });
        Ok(())
    }

    fn give_sets(&self, sets: &str) -> Result<()> {
        self.lock().sets = sets.to_owned();
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        self.lock().running = None;
        Ok(())
    }

    fn save(&self, family: Family) -> Result<String> {
        let inner = self.lock();
        let running = inner.running.as_ref().context("nothing is loaded")?;
        let read = |id| {
            let place = running.policy.counter_ids().position(|known| known == id);
            let slot = place.and_then(|place| running.slots.of.get(place));
            let [packets, bytes] = slot.map_or([0, 0], |slot| running.tables.counter(*slot));
            Counters { packets, bytes }
        };
        Ok(print_save(&running.policy, family, Some(&read)))
    }
}

/// All after the fixed IP header, which forwarding leaves alone.
fn upper_part(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(L2..)?;
    let header = match packet.first()? >> 4 {
        4 => usize::from(packet[0] & 0x0f) * 4,
        _ => 40,
    };
    packet.get(header..)
}
