//! Writing down what rules with LOG and NFLOG said: from the ring buffer to wherever it is wanted.
//!
//! The programs only say what a packet was like and which rule it met. The prefix, the level and the
//! options are the rule's, and are found in the policy of the event's generation.

mod sink;
pub mod text;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use fw_common::abi::event::{EVENT_WORDS, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::cli::LogTo;
use crate::command::output::Output;
use crate::command::running::Running;
use crate::kernel::load::Maps;
use crate::kernel::state::StateDir;
use crate::policy::model::{Family, Target};
use sink::Sink;
pub use text::Said;

/// How often it is looked whether the firewall was loaded anew.
const LOOK: Duration = Duration::from_secs(2);
/// Policies whose rules are kept: the running one, and the one before.
const KEPT: usize = 2;

/// Writes down events for ever, on a thread of its own, which waits for the ring buffer and for
/// whoever reads what it writes.
pub fn start(state: StateDir, to: LogTo) {
    std::thread::spawn(move || {
        loop {
            // What is wrong for good, the other commands say better.
            let _ = follow(&state, to);
            std::thread::sleep(LOOK);
        }
    });
}

/// Says that the kernel's log takes no more than a few lines from a program, if it is so.
pub fn warn_of_limit(to: LogTo, output: &Output) {
    const SETTING: &str = "/proc/sys/kernel/printk_devkmsg";
    let limited =
        std::fs::read_to_string(SETTING).is_ok_and(|setting| setting.trim() == "ratelimit");
    if to == LogTo::Kernel && limited {
        output.say(
            "the kernel's log takes ten lines in five seconds from a program: for all that LOG says, \
             `sysctl kernel.printk_devkmsg=on`, or `--log journal`",
        );
    }
}

/// Reads one ring buffer until it is no longer the firewall's.
fn follow(state: &StateDir, to: LogTo) -> Result<()> {
    let Some(mut ring) = Maps::events(state)? else {
        return Ok(());
    };
    let identity = identity(state)?;
    let mut scribe = Scribe::new(state.clone(), to)?;
    let patience = Timespec::try_from(LOOK)?;
    while self::identity(state)? == identity {
        scribe.write_all(&mut ring)?;
        poll(&mut [PollFd::new(&ring, PollFlags::IN)], Some(&patience))?;
    }
    Ok(())
}

/// Which map is pinned: another one after `unload` and a load.
fn identity(state: &StateDir) -> Result<u32> {
    let pin = state.map(fw_common::abi::maps::EVENTS);
    Ok(aya::maps::MapInfo::from_pin(pin)?.id())
}

/// What an event's rule says.
type Rules = HashMap<u32, (Family, Target)>;

/// Finds rules, and writes.
struct Scribe {
    state: StateDir,
    sink: Sink,
    /// For asking the names of interfaces.
    socket: OwnedFd,
    /// Rules by counter slot, of generations, the newest last.
    generations: Vec<(u32, Rules)>,
}

impl Scribe {
    fn new(state: StateDir, to: LogTo) -> Result<Self> {
        Ok(Self {
            state,
            sink: Sink::open(to)?,
            socket: socket(AddressFamily::INET, SocketType::DGRAM, None)?,
            generations: Vec::new(),
        })
    }

    fn write_all(&mut self, ring: &mut RingBuf<MapData>) -> Result<()> {
        while let Some(item) = ring.next() {
            let Some(event) = event_of(&item) else {
                continue;
            };
            drop(item);
            let (family, target) = self.rule(&event);
            let said = Said {
                in_name: self.name(event.in_device),
                out_name: self.name(event.out_device),
                in_port: self.name(event.in_port),
                out_port: self.name(event.out_port),
                family,
                target: &target,
                event: &event,
            };
            self.sink.write(&said)?;
        }
        Ok(())
    }

    /// The rule that an event is about. If its policy is gone, nothing is known but the packet.
    fn rule(&mut self, event: &Event) -> (Family, Target) {
        let known = |(generation, _): &(u32, Rules)| *generation == event.generation;
        if !self.generations.iter().any(known)
            && let Ok(Some((generation, rules))) = rules_of(&self.state)
            && !self
                .generations
                .iter()
                .any(|(known, _)| *known == generation)
        {
            self.generations.push((generation, rules));
            if self.generations.len() > KEPT {
                self.generations.remove(0);
            }
        }
        let mut generations = self.generations.iter();
        let rules = generations.find(|generation| known(generation));
        let found = rules.and_then(|(_, rules)| rules.get(&event.slot));
        found.cloned().unwrap_or_else(|| {
            let v6 = event.packet().first().is_some_and(|byte| byte >> 4 == 6);
            let family = if v6 { Family::Ipv6 } else { Family::Ipv4 };
            (family, Target::Log(crate::policy::model::Log::PLAIN))
        })
    }

    fn name(&self, index: u32) -> String {
        if index == 0 {
            return String::new();
        }
        netdevice::index_to_name(&self.socket, index).unwrap_or_else(|_| format!("if{index}"))
    }
}

fn event_of(bytes: &[u8]) -> Option<Event> {
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let words: [u64; EVENT_WORDS] = words.try_into().ok()?;
    Some(words.into())
}

/// The generation that runs, and its rules that say something.
fn rules_of(state: &StateDir) -> Result<Option<(u32, Rules)>> {
    let Some(running) = Running::find(state)? else {
        return Ok(None);
    };
    let policy = &running.meta.policy;
    let mut rules = Rules::new();
    for (id, slot) in policy.counter_ids().zip(&running.meta.slots.of) {
        if let Some(rule) = policy.rule(id)
            && matches!(rule.target, Target::Log(_) | Target::Nflog(_))
        {
            rules.insert(*slot, (id.family, rule.target.clone()));
        }
    }
    Ok(Some((running.header.generation, rules)))
}
