//! One end of a wire: where packets are made, and where those that come out are counted.
#![allow(
    unsafe_code,
    reason = "plain records in maps are `aya::Pod`; real-time scheduling has no safe call"
)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, MapData};
use aya::programs::xdp::{XdpLinkId, XdpMode};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use bench_ebpf::{Floor, Plan, Sink};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustix::time::{ClockId, clock_gettime};

use super::traffic::Traffic;
use crate::lab::Namespace;

/// The CPU that the path runs on: the generator, and, because the kernel runs the receiver's
/// NAPI where the sender is, everything behind it.
pub fn path_cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// Packets that the generator hands over at once (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;

/// The longest that the generator runs without a pause: real-time threads may not have a CPU
/// to themselves for longer than `sched_rt_runtime_us` in each second.
const BURST: Duration = Duration::from_millis(200);

/// What sending cost, the whole path included.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Packets made.
    pub packets: u64,
    /// CPU time of the sending thread, in which the path ran.
    pub cpu: Duration,
    /// Time that passed while it ran.
    pub wall: Duration,
}

impl Cost {
    /// CPU time for each packet.
    pub fn nanoseconds(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.packets.max(1) as f64
    }
}

/// The programs at one interface.
pub struct Station {
    namespace: Arc<Namespace>,
    interface: String,
    index: u32,
    object: Ebpf,
    attached: Option<(&'static str, XdpLinkId)>,
    traffic: Option<Traffic>,
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Record<T: Copy>(T);

// SAFETY: used with the records of bench-ebpf only, which are `repr(C)` integers without padding.
unsafe impl<T: Copy + 'static> aya::Pod for Record<T> {}

impl Station {
    /// Loads the programs for an interface. Nothing is attached yet.
    pub fn new(namespace: Arc<Namespace>, interface: &str, object: &[u8]) -> Result<Self> {
        let mut object = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .load(object)
            .context("load the benchmark's BPF object")?;
        for (name, program) in object.programs_mut() {
            // The others are not an interface's ends (`floor`).
            let Ok(program) = <&mut Xdp>::try_from(program) else {
                continue;
            };
            program.load().with_context(|| format!("load {name}"))?;
        }
        let index = namespace.enter(|| nix::net::if_::if_nametoindex(interface))??;
        Ok(Self {
            namespace,
            interface: interface.into(),
            index,
            object,
            attached: None,
            traffic: None,
        })
    }

    /// Puts a program on the interface, in the driver, instead of the one there.
    pub fn attach(&mut self, name: &'static str) -> Result<()> {
        self.detach()?;
        let interface = self.interface.clone();
        let namespace = Arc::clone(&self.namespace);
        let program: &mut Xdp = self
            .object
            .program_mut(name)
            .with_context(|| format!("the BPF object has no program {name}"))?
            .try_into()?;
        let link = namespace
            .enter(|| program.attach(&interface, XdpMode::Driver))?
            .with_context(|| format!("attach {name} to {interface}"))?;
        self.attached = Some((name, link));
        Ok(())
    }

    /// Takes the program off the interface.
    pub fn detach(&mut self) -> Result<()> {
        if let Some((name, link)) = self.attached.take() {
            let program: &mut Xdp = self
                .object
                .program_mut(name)
                .context("an attached program exists")?
                .try_into()?;
            program.detach(link)?;
        }
        Ok(())
    }

    /// Decides what [`Self::send`] sends, from the first packet on.
    pub fn plan(&mut self, traffic: Traffic) -> Result<()> {
        let plan = traffic.plan()?;
        self.map::<Plan>("PLAN")?.set(0, Record(plan), 0)?;
        self.traffic = Some(traffic);
        Ok(())
    }

    /// Sends so many packets, and says what it cost.
    pub fn send(&mut self, packets: u64) -> Result<Cost> {
        let Some(traffic) = self.traffic else {
            bail!("nothing was planned for {}", self.interface);
        };
        let before = self.sent()?;
        let program: &Xdp = match traffic.source {
            IpAddr::V4(_) => self.object.program("generate4"),
            IpAddr::V6(_) => self.object.program("generate6"),
        }
        .context("the BPF object has no generator")?
        .try_into()?;
        let sending = Sending {
            program,
            index: self.index,
            frame: traffic.frame_length(),
        };
        let (cpu, wall) = self.namespace.enter(|| sending.send(packets))??;
        let packets = self.sent()? - before;
        Ok(Cost { packets, cpu, wall })
    }

    fn sent(&mut self) -> Result<u64> {
        Ok(self.map::<Plan>("PLAN")?.get(&0, 0)?.0.sent)
    }

    /// What the sink has seen.
    pub fn sink(&mut self) -> Result<Sink> {
        Ok(self.map::<Sink>("SINK")?.get(&0, 0)?.0)
    }

    /// From whom the sink expects packets.
    pub fn expect(&mut self, source: IpAddr) -> Result<()> {
        let sink = Sink {
            source: last_bits(source),
            ..self.sink()?
        };
        Ok(self.map::<Sink>("SINK")?.set(0, Record(sink), 0)?)
    }

    /// How many packets a floor has acted on.
    pub fn floor(&mut self) -> Result<u64> {
        let floor = self.map::<Floor>("FLOOR")?.get(&0, 0)?.0;
        Ok(u64::from(floor.forwarded))
    }

    /// The address that the floor of forwarding translates to.
    pub fn masquerade_as(&mut self, address: IpAddr) -> Result<()> {
        let floor = Floor {
            address: last_bits(address),
            forwarded: 0,
        };
        Ok(self.map::<Floor>("FLOOR")?.set(0, Record(floor), 0)?)
    }

    fn map<T: Copy + 'static>(&mut self, name: &str) -> Result<Array<&mut MapData, Record<T>>> {
        let map = self
            .object
            .map_mut(name)
            .with_context(|| format!("the BPF object has no map {name}"))?;
        Ok(Array::try_from(map)?)
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // The namespace may be gone already, and the link with it.
        let _ = self.detach();
    }
}

fn last_bits(address: IpAddr) -> u32 {
    let octets = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    u32::from_ne_bytes(octets)
}

struct Sending<'a> {
    program: &'a Xdp,
    index: u32,
    frame: usize,
}

impl Sending<'_> {
    fn send(&self, packets: u64) -> Result<(Duration, Duration)> {
        take_cpu()?;
        let (mut cpu, mut wall) = (Duration::ZERO, Duration::ZERO);
        let mut left = packets;
        // Small at first; then as many as fit into one burst at the speed seen so far.
        let mut burst = u64::from(BATCH);
        while left > 0 {
            let count = left.min(burst);
            let (burst_cpu, burst_wall) = self.burst(count)?;
            cpu += burst_cpu;
            wall += burst_wall;
            left -= count;
            let each = burst_wall.as_nanos().max(1) as u64 / count.max(1);
            burst = (BURST.as_nanos() as u64 / each.max(1)).clamp(u64::from(BATCH), 4_000_000);
            if left > 0 && burst_wall > BURST / 4 {
                // Leaves the CPU to the kernel's own threads (RCU, the ones that free memory).
                std::thread::sleep(BURST / 10);
            }
        }
        Ok((cpu, wall))
    }

    fn burst(&self, count: u64) -> Result<(Duration, Duration)> {
        let frame = vec![0; self.frame];
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, self.frame as u32, 0, self.index, 0, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let (cpu, wall) = (now(ClockId::ThreadCPUTime), now(ClockId::Monotonic));
        self.program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat: u32::try_from(count).context("a burst is short")?,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })
            .context("run the generator (BPF_PROG_TEST_RUN with live frames, kernel 5.18)")?;
        let cost = (
            now(ClockId::ThreadCPUTime) - cpu,
            now(ClockId::Monotonic) - wall,
        );
        ensure!(!cost.1.is_zero(), "the clock stands still");
        Ok(cost)
    }
}

fn now(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Puts this thread on the path's CPU, before all that is not real-time where that is allowed.
pub fn take_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(path_cpu())?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("pin the generator to a CPU")?;
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the record is valid; 0 is this thread. A refusal (a control group without real-time
    // budget) leaves the default, under which CPU time is as meaningful.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Ok(())
}
