//! The whole datapath on the host: a random policy, and packets that are right, spoiled in some places,
//! cut, or no packets at all, one after the other.
//!
//! What rules see of a packet is read off its bytes by the parser in [`super::wire`]; what they make of
//! it is what the model says ([`crate::model`]); and the datapath must do that and count that.

use std::collections::BTreeMap;

use fw_common::abi::stat::Stat;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::{Verdict, early, egress, ingress};
use fw_user::addr;
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::{CtDirection, CtStates, Family, Policy};
use fw_user::policy::{CounterId, TableName};
use fw_user::sim::{FlowState, Held, Host, HostDevice, HostTables, SlicePacket, State};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::Input;
use super::datagrams::Datagrams;
use super::wire::{self, Kind, Part, Told, Wire};
use crate::generate;
use crate::model::{Hits, Outcome, Seen, judge};

const L2: usize = 14;
/// Interface names of the generator's rules; `lo` is apart.
const DEVICES: [(u32, &str); 3] = [(2, "eth0"), (3, "eth1"), (4, "docker0")];

/// The first two bytes choose a policy, of which a new generator makes others; the packets follow.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let Some(mut trial) = Trial::new(input.half()) else {
        return;
    };
    let mut left = 24;
    while input.has_more() && left > 0 {
        left -= 1;
        trial.step(&mut input);
    }
}

/// Each of the frames arrives at a machine with the policy of this seed that has seen nothing yet.
#[cfg(test)]
pub(super) fn arrive_apart(seed: u16, frames: impl Iterator<Item = Vec<u8>>) {
    let trial = Trial::new(seed).expect("a policy that compiles");
    for frame in frames {
        let mut trial = Trial {
            tables: trial.tables.fork(),
            ids: trial.ids.clone(),
            policy: trial.policy.clone(),
            scratch: Scratch::default(),
            datagrams: Datagrams::default(),
            now: trial.now,
        };
        let (device, _) = DEVICES[0];
        trial.arrive(SlicePacket::ethernet(frame, device));
    }
}

/// The policy that the generator makes of this seed.
fn policy(seed: u16) -> Option<Policy> {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&seed.to_be_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = generate::policy().new_tree(&mut runner).ok()?;
    Some(tree.current())
}

fn host() -> Host {
    let masquerade = |device: HostDevice| HostDevice {
        masquerade4: Some([192, 0, 2, 1].into()),
        masquerade6: Some("2001:db8:1::1".parse().expect("an address")),
        ..device
    };
    let mut devices = vec![HostDevice::loopback()];
    devices.extend(DEVICES.map(|(index, name)| masquerade(HostDevice::ethernet(index, name))));
    Host {
        devices,
        broadcast: Vec::new(),
        local: [
            "192.0.2.1/32",
            "10.0.0.1/32",
            "2001:db8:1::1/128",
            "2001:db8::1/128",
            "255.255.255.255/32",
            "127.0.0.0/8",
            "::1/128",
        ]
        .map(|prefix| prefix.parse().expect("a prefix"))
        .to_vec(),
        ..Host::default()
    }
}

struct Trial {
    policy: Policy,
    ids: BTreeMap<CounterId, u32>,
    tables: HostTables,
    scratch: Scratch,
    datagrams: Datagrams,
    now: u64,
}

/// Packets and bytes of each rule.
type Counts = BTreeMap<CounterId, [u64; 2]>;

impl Trial {
    /// One of a policy's, if that is within the limits.
    fn new(seed: u16) -> Option<Self> {
        let policy = policy(seed)?;
        let slots = Slots::fresh(&policy);
        let compiled = compile(&policy, &slots, 1, &[]).ok()?;
        Some(Self {
            tables: HostTables::running(host(), compiled),
            ids: policy.counter_ids().zip(slots.of.iter().copied()).collect(),
            policy,
            scratch: Scratch::default(),
            datagrams: Datagrams::default(),
            now: 1_000_000_000,
        })
    }

    /// A packet.
    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        // Half of the packets come at once, others after up to four minutes.
        if choice & 1 != 0 {
            self.now += u64::from(input.byte()) * 1_000_000_000;
        }
        self.tables.set_now(self.now);
        self.tables.set_seed(self.now);
        let (device, _) = DEVICES[usize::from(choice >> 1 & 3) % DEVICES.len()];
        let (departure, _) = DEVICES[usize::from(choice >> 3 & 3) % DEVICES.len()];
        let frame = frame(input);
        let packet = SlicePacket::ethernet(frame, device);
        if choice & 0x20 != 0 {
            self.leave(packet.made_here());
            return;
        }
        self.is_early_what_ingress_is(&packet);
        if let Some(packet) = self.arrive(packet) {
            self.leave(packet.at_egress_of(departure));
        }
    }

    /// What XDP drops, ingress would drop; what it passes it leaves alone. (Either may come upon a flow
    /// whose time is over, which ends it.)
    fn is_early_what_ingress_is(&mut self, packet: &SlicePacket) {
        let with_xdp = self.tables.fork();
        let before = self.alive(with_xdp.state());
        let mut scratch = self.scratch.clone();
        let held = Held::new(&with_xdp, 16);
        match early(&mut packet.clone(), &held, &mut scratch) {
            Verdict::Pass => assert_eq!(self.alive(with_xdp.state()), before),
            Verdict::Drop(_) => {
                let plain = self.tables.fork();
                let mut scratch = self.scratch.clone();
                let verdict = ingress(&mut packet.clone(), &plain, &mut scratch);
                assert_eq!(verdict, Verdict::Drop(Stat::Policy), "{packet:x?}");
                let (plain, with_xdp) = (plain.state(), with_xdp.state());
                assert_eq!(plain.counters, with_xdp.counters);
                assert_eq!(self.alive(plain).flows, self.alive(with_xdp).flows);
            }
            Verdict::Answer | Verdict::Redirect => panic!("XDP sends nothing here"),
        }
    }

    /// Without flows whose time is over, and the count of those that were found so.
    fn alive(&self, mut state: State) -> State {
        let is_alive = |state: &mut FlowState| state.flow.expires.get() >= self.now;
        state.flows.retain(|_, state| is_alive(state));
        state.stats.remove(&(Stat::Expired as u32));
        state
    }

    /// Sends a packet through ingress; it comes back if it is to be forwarded.
    fn arrive(&mut self, mut packet: SlicePacket) -> Option<SlicePacket> {
        let (frame, before) = (packet.bytes.clone(), self.counts());
        let state = self.tables.state();
        let told = wire::read(&frame, packet.ethertype, L2);
        let verdict = ingress(&mut packet, &self.tables, &mut self.scratch);
        self.check_bytes(&frame, &packet, verdict);
        let told = match told {
            Wire::Packet(told) => *told,
            other => {
                self.check_unjudged(&other, verdict, &state.flows.len());
                assert_eq!(self.counts(), before);
                return None;
            }
        };
        let bytes = self.datagrams.count(&told, self.now);
        if told.part == Part::Later {
            // With its first fragment known, it is judged as that one; without, it is let alone.
            return None;
        }
        self.check_label(&told);
        let mut seen = self.seen(&told, &packet);
        seen.in_interface = name_of(packet.device);
        let mut walk = Walk::new(&self.policy, seen, self.meets_nat(&told), bytes);
        walk.chain(TableName::Nat, "PREROUTING");
        // Where it cannot be translated, no chain comes after this one.
        if let Verdict::Drop(Stat::Rewrite | Stat::NoRedirectAddress) = verdict {
            return None;
        }
        self.see_translated(&mut walk, &packet, verdict);
        if !self.tables.host().is_local(walk.seen.destination) {
            walk.compare(verdict, &before, &self.counts(), &told);
            return (verdict == Verdict::Pass).then_some(packet);
        }
        walk.chain(TableName::Filter, "INPUT");
        walk.chain(TableName::Nat, "INPUT");
        walk.compare(verdict, &before, &self.counts(), &told);
        if matches!(verdict, Verdict::Drop(_)) && self.scratch.tracked.opens {
            assert!(self.tables.state().flows.len() <= state.flows.len());
        }
        None
    }

    /// Sends a packet through egress.
    fn leave(&mut self, mut packet: SlicePacket) {
        let made_here = packet.arrival_device == 0;
        let (frame, before) = (packet.bytes.clone(), self.counts());
        let flows = self.tables.state().flows.len();
        let told = wire::read(&frame, packet.ethertype, L2);
        let verdict = egress(&mut packet, &self.tables, &mut self.scratch);
        self.check_bytes(&frame, &packet, verdict);
        let told = match told {
            Wire::Packet(told) => *told,
            other => {
                self.check_unjudged(&other, verdict, &flows);
                assert_eq!(self.counts(), before);
                return;
            }
        };
        if told.part == Part::Later {
            return;
        }
        if made_here {
            self.check_label(&told);
        }
        let mut seen = self.seen(&told, &packet);
        seen.in_interface = name_of(packet.arrival_device);
        seen.out_interface = name_of(packet.device);
        let mut walk = Walk::new(&self.policy, seen, self.meets_nat(&told), told.bytes);
        if made_here {
            walk.chain(TableName::Nat, "OUTPUT");
        }
        if let Verdict::Drop(Stat::Rewrite | Stat::NoRedirectAddress | Stat::NoFlowEntry) = verdict
        {
            return;
        }
        self.see_translated(&mut walk, &packet, verdict);
        let chain = if made_here { "OUTPUT" } else { "FORWARD" };
        walk.chain(TableName::Filter, chain);
        walk.chain(TableName::Nat, "POSTROUTING");
        walk.compare(verdict, &before, &self.counts(), &told);
    }

    fn counts(&self) -> Counts {
        let count = |(id, slot): (&CounterId, &u32)| (*id, self.tables.counter(*slot));
        self.ids.iter().map(count).collect()
    }

    fn meets_nat(&self, told: &Told) -> bool {
        let ruleset = self.policy.ruleset(family(told));
        self.scratch.tracked.opens && ruleset.is_some_and(|ruleset| ruleset.nat.is_some())
    }

    /// Only nat changes bytes, and nothing changes their number, unless the packet became the answer to
    /// itself.
    fn check_bytes(&self, frame: &[u8], packet: &SlicePacket, verdict: Verdict) {
        if verdict == Verdict::Answer {
            assert!(packet.bytes.len() <= 14 + 1280);
            return;
        }
        assert_eq!(packet.bytes.len(), frame.len());
        let mut rulesets = self.policy.rulesets();
        if !rulesets.any(|(_, ruleset)| ruleset.nat.is_some()) {
            assert_eq!(packet.bytes, frame);
        }
    }

    /// What is no packet for rules passes if the stack will drop it, and is dropped if not.
    fn check_unjudged(&self, told: &Wire, verdict: Verdict, flows: &usize) {
        let expected = match told {
            Wire::Malformed => Verdict::Drop(Stat::Malformed),
            _ => Verdict::Pass,
        };
        let tags = verdict == Verdict::Drop(Stat::Malformed);
        assert!(verdict == expected || tags, "{told:?}: {verdict:?}");
        assert_eq!(self.tables.state().flows.len(), *flows);
    }

    /// What a packet's label cannot be, whatever came before it.
    fn check_label(&self, told: &Told) {
        let tracked = &self.scratch.tracked;
        let states = CtStates(tracked.ct);
        let is = |one: CtStates| states.0 & one.0 != 0;
        if told.broken {
            assert!(is(CtStates::INVALID), "{told:?} {tracked:?}");
        } else if told.kind == Kind::Untracked {
            assert!(is(CtStates::UNTRACKED), "{told:?} {tracked:?}");
        } else {
            assert!(!is(CtStates::UNTRACKED), "{told:?} {tracked:?}");
        }
        if is(CtStates::RELATED) {
            assert_eq!(told.kind, Kind::Error, "{tracked:?}");
        }
        if matches!(told.kind, Kind::Error | Kind::Other | Kind::Untracked) {
            assert!(!tracked.opens, "{told:?} {tracked:?}");
        }
        if told.kind == Kind::Reply {
            assert!(!is(CtStates::NEW) || !tracked.opens, "{told:?} {tracked:?}");
        }
    }

    /// The destination as the filter table's rules saw it, of which an answer has nothing left.
    fn see_translated(&self, walk: &mut Walk<'_>, packet: &SlicePacket, verdict: Verdict) {
        let headers = &self.scratch.headers;
        let seen = &mut walk.seen;
        if self.scratch.tracked.ct & CtStates::DNAT.0 != 0 {
            seen.states.0 |= CtStates::DNAT.0;
        }
        if verdict == Verdict::Answer {
            seen.destination = addr::from_abi(headers.family, headers.key.destination);
            if !is_icmp(seen.protocol) {
                seen.ports.1 = headers.flow_ports as u16;
            }
            return;
        }
        match wire::read(&packet.bytes, packet.ethertype, L2) {
            Wire::Packet(told) => {
                seen.destination = told.destination;
                seen.ports.1 = told.ports.1;
            }
            other => panic!("{other:?} after a translation"),
        }
    }

    /// What rules see of the packet.
    fn seen(&self, told: &Told, _packet: &SlicePacket) -> Seen {
        let tracked = &self.scratch.tracked;
        let mut states = tracked.ct;
        if tracked.opens {
            // What was done to the flow that it opened is known only afterwards.
            states &= !(CtStates::SNAT.0 | CtStates::DNAT.0);
        }
        Seen {
            family: family(told),
            source: told.source,
            destination: told.destination,
            protocol: told.protocol,
            ports: told.ports,
            tcp_flags: told.tcp_flags,
            in_interface: None,
            out_interface: None,
            states: CtStates(states),
            direction: match tracked.direction {
                0 => Some(CtDirection::Original),
                1 => Some(CtDirection::Reply),
                _ => None,
            },
        }
    }
}

fn family(told: &Told) -> Family {
    if told.v6 { Family::Ipv6 } else { Family::Ipv4 }
}

fn name_of(device: u32) -> Option<String> {
    let mut devices = DEVICES.iter();
    let found = devices.find(|(index, _)| *index == device);
    found.map(|(_, name)| (*name).to_owned())
}

fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

/// A packet's way through the chains, as the model has it.
struct Walk<'p> {
    policy: &'p Policy,
    seen: Seen,
    nat: bool,
    bytes: u32,
    dropped: bool,
    hits: Vec<Hits>,
}

impl<'p> Walk<'p> {
    fn new(policy: &'p Policy, seen: Seen, nat: bool, bytes: u32) -> Self {
        Self {
            policy,
            seen,
            nat,
            bytes,
            dropped: false,
            hits: Vec::new(),
        }
    }

    fn chain(&mut self, table: TableName, name: &str) {
        if self.dropped || (table == TableName::Nat && !self.nat) {
            return;
        }
        let (outcome, hits) = judge(self.policy, table, name, &self.seen);
        self.dropped = matches!(outcome, Outcome::Drop | Outcome::Reject);
        self.hits.push(hits);
    }

    fn compare(&self, verdict: Verdict, before: &Counts, after: &Counts, told: &Told) {
        let mut expected = before.clone();
        for (id, count) in self.hits.iter().flatten() {
            let counted = expected.get_mut(id).expect("a counter of the policy");
            counted[0] += count;
            counted[1] += count * u64::from(self.bytes);
        }
        let fits = match verdict {
            Verdict::Answer | Verdict::Drop(Stat::Policy | Stat::Rejected) => self.dropped,
            // The rules would have let it pass; its translation is impossible.
            Verdict::Drop(
                Stat::Rewrite
                | Stat::NoFreePort
                | Stat::NoFlowEntry
                | Stat::NoMasqueradeAddress
                | Stat::NoRedirectAddress
                | Stat::NoTransitName,
            )
            | Verdict::Pass => !self.dropped,
            Verdict::Drop(_) | Verdict::Redirect => false,
        };
        assert!(fits, "{verdict:?} {told:?} {:?}", self.seen);
        assert_eq!(*after, expected, "{verdict:?} {told:?} {:?}", self.seen);
    }
}

/// A frame out of the input: bytes as they are, or a packet that is right and then spoiled.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let shape = input.byte();
    if shape & 0x0f == 0x0f {
        let length = usize::from(input.byte());
        return input.bytes(length).to_vec();
    }
    let mut frame = right_frame(input, shape);
    for _ in 0..shape >> 6 {
        let (place, byte) = (usize::from(input.byte()), input.byte());
        if let Some(old) = frame.get_mut(place) {
            *old = byte;
        }
    }
    if shape & 0x20 != 0 {
        frame.truncate(usize::from(input.byte()));
    }
    // Most spoiled headers would have a wrong sum.
    if shape & 0x10 == 0 && frame.len() >= L2 + 20 && frame[12..14] == [8, 0] {
        set_sum(&mut frame[L2..]);
    }
    frame
}

/// A packet between the generator's few addresses.
pub(super) fn right_frame(input: &mut Input<'_>, shape: u8) -> Vec<u8> {
    const V4: [[u8; 4]; 6] = [
        [10, 0, 0, 1],
        [10, 0, 0, 2],
        [10, 0, 1, 1],
        [10, 1, 0, 1],
        [192, 0, 2, 1],
        [224, 0, 0, 1],
    ];
    const V6: [&str; 5] = [
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:1::1",
        "fe80::1",
        "ff02::1",
    ];
    let v6 = shape & 1 != 0;
    let ends = input.byte();
    let (from, to) = (usize::from(ends >> 4), usize::from(ends & 15));
    let protocol = input.choose(&[6, 6, 17, 17, 1, 58, 132, 136, 33, 47, 50]);
    let protocol = match (protocol, v6) {
        (1 | 58, false) => 1,
        (1 | 58, true) => 58,
        (other, _) => other,
    };
    let payload = transport(input, protocol, v6);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if !v6 {
        frame.extend(0x0800_u16.to_be_bytes());
        let options = if shape & 2 != 0 { 4 } else { 0 };
        let fragment = if shape & 4 != 0 { input.half() } else { 0 };
        let total = (20 + options + payload.len()) as u16;
        frame.extend([0x45 + (options / 4) as u8, 0]);
        frame.extend(total.to_be_bytes());
        // Few identifications, so that fragments meet.
        frame.extend([0, ends & 3]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend(V4[from % V4.len()]);
        frame.extend(V4[to % V4.len()]);
        frame.extend(&[1; 4][..options]);
        set_sum(&mut frame[L2..]);
    } else {
        frame.extend(0x86dd_u16.to_be_bytes());
        let mut extensions = Vec::new();
        let mut first = protocol;
        if shape & 4 != 0 {
            extensions.extend([first, 0]);
            extensions.extend(input.half().to_be_bytes());
            extensions.extend([0, 0, 0, ends & 3]);
            first = 44;
        }
        if shape & 2 != 0 {
            let kind = input.choose(&[0, 43, 51, 60]);
            // An option of four bytes; of an authentication header, the length is in words.
            let header = [first, 0, 1, 4, 0, 0, 0, 0];
            extensions.splice(0..0, header);
            first = kind;
        }
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((extensions.len() + payload.len()) as u16).to_be_bytes());
        frame.extend([first, 64]);
        for end in [from, to] {
            let address: std::net::Ipv6Addr = V6[end % V6.len()].parse().expect("an address");
            frame.extend(address.octets());
        }
        frame.extend(extensions);
    }
    frame.extend(payload);
    frame
}

fn transport(input: &mut Input<'_>, protocol: u8, v6: bool) -> Vec<u8> {
    const PORTS: [u16; 8] = [0, 7, 22, 80, 443, 1023, 1024, 65535];
    let mut bytes = Vec::new();
    match protocol {
        6 => {
            bytes.extend(input.choose(&PORTS).to_be_bytes());
            bytes.extend(input.choose(&PORTS).to_be_bytes());
            bytes.extend(u32::from(input.byte()).to_be_bytes());
            bytes.extend(u32::from(input.byte()).to_be_bytes());
            let flags = input.choose(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x00, 0x3f]);
            bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        1 | 58 => {
            const V4: [u8; 8] = [8, 0, 3, 11, 5, 13, 14, 40];
            const V6: [u8; 8] = [128, 129, 1, 3, 135, 143, 139, 200];
            let kind = input.choose(if v6 { &V6 } else { &V4 });
            bytes.extend([kind, 0, 0, 0, 0, input.byte() & 3, 0, 1]);
            let is_error = if v6 {
                kind < 128
            } else {
                matches!(kind, 3 | 5 | 11)
            };
            if is_error {
                // About a packet that was sent the other way, or another.
                let quoted = right_frame(input, u8::from(v6));
                bytes.extend(&quoted[L2..]);
            }
        }
        _ => {
            bytes.extend(input.choose(&PORTS).to_be_bytes());
            bytes.extend(input.choose(&PORTS).to_be_bytes());
            let length = 8 + u16::from(input.byte() & 7);
            bytes.extend(length.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.resize(length.into(), 7);
        }
    }
    bytes
}

/// Writes the checksum of an IPv4 header, as long as it says that it is.
pub(super) fn set_sum(packet: &mut [u8]) {
    let length = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len()) & !1;
    packet[10..12].copy_from_slice(&[0, 0]);
    let mut sum: u32 = packet[..length]
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
