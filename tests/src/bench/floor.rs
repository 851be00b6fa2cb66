//! The floor of tracking: what any program costs real connections that looks each packet's connection up.

use anyhow::{Context as _, Result};
use aya::maps::Array;
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use crate::lab::Namespace;

/// The program at both hooks of a host's interfaces, for as long as this lives.
pub struct Tracking(Ebpf);

impl Tracking {
    /// Attaches it where fwbpf's programs would be.
    pub fn attach(host: &Namespace, object: &[u8]) -> Result<Self> {
        let mut object = EbpfLoader::new()
            .load(object)
            .context("load the benchmark's BPF object")?;
        let program: &mut SchedClassifier = object
            .program_mut("floor_track")
            .context("the BPF object has no program floor_track")?
            .try_into()?;
        program.load()?;
        for interface in ["lo", "eth0", "docker0"] {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                host.enter(|| program.attach(interface, hook))?
                    .with_context(|| format!("attach to {interface}"))?;
            }
        }
        Ok(Self(object))
    }

    /// How many packets it has looked up.
    pub fn count(&self) -> Result<u64> {
        // `bench_ebpf::Floor`: an address, and the number.
        let map = self
            .0
            .map("FLOOR")
            .context("the BPF object has no map FLOOR")?;
        let [_, count] = Array::<_, [u32; 2]>::try_from(map)?.get(&0, 0)?;
        Ok(count.into())
    }
}
