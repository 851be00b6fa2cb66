//! One policy and its packets, through both.

use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use fw_common::abi::blob::{Chain, DIRECTORY, chain_kind};
use fw_common::datapath::packet::{NO_PATH, Owner, PATH_UNKNOWN};
use fw_common::datapath::reject::WayBack;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tables::Tables as _;
use fw_common::datapath::{Recorder as _, Verdict, early, egress, ingress};
use fw_user::addr;
use fw_user::compile::{Slots, TableSet, compile};
use fw_user::host::Host;
use fw_user::kernel::flows::monotonic_now;
use fw_user::kernel::lists::{ListEntry, entries};
use fw_user::policy::lists::ListDefinition;
use fw_user::policy::model::Family;
use fw_user::sim::{self, Held, HostTables, NextHop, SlicePacket, State};
use fwbpf_tests::conformance::traffic::{Flow, Place, Step, Traffic, Way, What};
use fwbpf_tests::conformance::write::{packet, pieces, sender};
use fwbpf_tests::lab::sockets::ip;
use fwbpf_tests::lab::{address, mac};
use fwbpf_tests::packet::{Layers, frame};
use ipnet::IpNet;
use rand::Rng;

use crate::input::{self, L2};
use crate::kernel::{Hook, Kernel, Outcome};
use crate::tally::Tally;

/// Rules that XDP holds back: `PATH_SLOTS` of fw-ebpf/src/maps.rs.
const PATH_SLOTS: usize = 64;

/// Both sides with the same policy.
pub struct Trial<'k> {
    kernel: &'k Kernel,
    tables: HostTables,
    lists: Vec<ListDefinition>,
    scratch: Scratch,
    forwards: bool,
    next_hops: Arc<[NextHop]>,
    host: Host,
    rules: String,
    traffic: Vec<(Family, Traffic)>,
    /// Where the packets of a flow's end seem to come from, as the other end sees it.
    seen_as: HashMap<(Family, usize, Way), (IpAddr, u16)>,
    pub tally: Tally,
}

/// `PACKET_HOST` and its siblings, as eth_type_trans() chooses (net/ethernet/eth.c).
fn packet_type(destination: &[u8], device: &str) -> u32 {
    match destination {
        own if own == link_address(device) => 0,
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => 1,
        many if many[0] & 1 != 0 => 2,
        // PACKET_OTHERHOST, which is judged as the kernel's bridges have it judged: see `Packet::packet_type`.
        _ => 0,
    }
}

/// The clock that the programs read when they are asked for the time.
fn tai_now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_TAI);
    let now = now.expect("every kernel has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

impl<'k> Trial<'k> {
    /// Draws rules and traffic, and gives both sides the rules. To be called in the lab's server.
    pub fn new(
        kernel: &'k mut Kernel,
        random: &mut impl Rng,
        packets: usize,
        (forwards, fast): (bool, bool),
    ) -> Result<Self> {
        let few = fast && random.random_bool(0.8);
        // The fast path takes only what comes after a flow's first packets.
        let traffic = input::traffic(random, if few { packets * 2 } else { packets });
        let texts: Vec<(Family, (String, String))> = traffic
            .iter()
            .map(|(family, traffic)| {
                let (rules, sets) = input::rules(random, *family, &traffic.flows, few);
                (*family, (without_answerable(&rules, forwards), sets))
            })
            .collect();
        let policy = input::policy(&texts)?;
        let slots = Slots::fresh(&policy);
        let set = compile(&policy, &slots, kernel.next_generation(), &[])
            .context("the policy is beyond the limits")?;
        let tally = Tally {
            shapes: shapes(&set),
            ..Tally::default()
        };
        let host = Host::read()?;
        kernel.fill(&policy.sets, &policy.lists)?;
        kernel.start(&host, &set, slots.of.len() as u32)?;
        kernel.switch_fast_path(&host, fast)?;
        let mut tables = HostTables::running(sim::Host::from(&host), set);
        tables.set_now(monotonic_now());
        tables.put_sets(&policy);
        if fast {
            tables.switch_fast_path_on();
        }
        let next_hops = if forwards {
            next_hops(&host)?
        } else {
            Arc::default()
        };
        let lists = policy.lists;
        Ok(Self {
            kernel,
            tables,
            lists,
            scratch: Scratch::default(),
            forwards,
            next_hops,
            host,
            rules: texts
                .into_iter()
                .map(|(_, (rules, sets))| rules + &sets)
                .collect(),
            traffic,
            seen_as: HashMap::new(),
            tally,
        })
    }

    /// Sends everything, and compares after every packet.
    pub fn run(&mut self, random: &mut impl Rng) -> Result<()> {
        let traffic = std::mem::take(&mut self.traffic);
        let steps = traffic.iter().map(|(_, traffic)| traffic.steps.len()).max();
        for number in 0..steps.unwrap_or(0) {
            if number % 16 == 7 {
                self.kernel.forget_hints()?;
            }
            for (family, traffic) in &traffic {
                if let Some(step) = traffic.steps.get(number) {
                    let flow = &traffic.flows[step.flow];
                    self.step(random, *family, flow, step)
                        .with_context(|| format!("{family:?}, step {number}: {step:?} of {flow:?}"))
                        .with_context(|| format!("with the rules\n{}", self.rules))?;
                }
            }
        }
        let state = self.tables.state();
        self.tally.flows += state.flows.len() as u64;
        self.tally.fragments += state.fragments.len() as u64;
        Ok(())
    }

    fn step(
        &mut self,
        random: &mut impl Rng,
        family: Family,
        flow: &Flow,
        step: &Step,
    ) -> Result<()> {
        let from = sender(flow, step.way).place;
        let to = sender(flow, step.way.reversed()).place;
        let peer = (family, step.flow, step.way.reversed());
        let mut whole = packet(flow, step, self.seen_as.get(&peer).copied());
        let other = input::associate(random, &mut whole);
        for packet in pieces(&whole, step) {
            let entry = if to == from { "lo" } else { device(from, to) };
            let mut frame = frame([2; 6], link_address(entry), &packet);
            let spoiled = random.random_bool(0.2);
            if spoiled {
                self.tally.spoiled += 1;
                input::spoil(random, &mut frame);
            } else if random.random_bool(0.01) {
                // Meant for another host on the wire.
                frame[5] ^= 0x55;
            }
            let left = self.journey(random, frame, from, to)?;
            if let Some(left) = left.filter(|_| !spoiled && !other)
                && !matches!(step.what, What::Error { .. })
                && let Some((address, Some(port))) = source(&left)
            {
                self.seen_as
                    .insert((family, step.flow, step.way), (address, port));
            }
        }
        Ok(())
    }

    /// A frame's way through the host; the frame as it left, if it did.
    fn journey(
        &mut self,
        random: &mut impl Rng,
        frame: Vec<u8>,
        from: Place,
        to: Place,
    ) -> Result<Option<Vec<u8>>> {
        if from == Place::Server {
            let device = if to == from { "lo" } else { device(to, from) };
            let Some(left) = self.hook(Hook::Egress, frame, device, 0)? else {
                return Ok(None);
            };
            if to == from {
                return self.hook(Hook::Ingress, left, device, self.index(device)?);
            }
            return Ok(Some(left));
        }
        // A port of the bridge has no record: what it is asked about is dropped.
        let arrival = if random.random_bool(0.01) {
            "veth1"
        } else {
            device(from, to)
        };
        let index = self.index(arrival)?;
        let mut frame = frame;
        if random.random_bool(0.5) {
            match self.hook(Hook::Early, frame, arrival, 0)? {
                Some(passed) => frame = passed,
                None => return Ok(None),
            }
        }
        match self.hook(Hook::Ingress, frame, arrival, index)? {
            Some(passed) if to != Place::Server => {
                self.hook(Hook::Egress, passed, device(to, from), index)
            }
            other => Ok(other),
        }
    }

    /// One frame at one hook of both; the frame afterwards if it passes.
    fn hook(
        &mut self,
        hook: Hook,
        frame: Vec<u8>,
        device: &str,
        arrival: u32,
    ) -> Result<Option<Vec<u8>>> {
        let index = self.index(device)?;
        let real = self.kernel.run(hook, &frame, index, arrival)?;
        // Both clocks are the kernel's coarse one: UDP becomes assured by the time it lasts.
        self.tables.set_now(monotonic_now());
        self.tables.set_time(tai_now());
        let expected = self.simulate(hook, &frame, (device, index), arrival, &real);
        self.tally.runs += 1;
        self.tally.rewritten += u64::from(real.bytes != frame);
        if !real.pass && !real.sent {
            let drops = match hook {
                Hook::Early => &mut self.tally.early_drops,
                Hook::Ingress | Hook::Egress => &mut self.tally.drops,
            };
            *drops += 1;
        }
        let context = || {
            format!(
                "{hook:?} of {device}, in by {arrival}, the frame {}",
                hex(&frame)
            )
        };
        ensure!(
            real == expected,
            "{}:\nthe kernel    {real}\nthe simulator {expected}",
            context()
        );
        self.compare_states().with_context(context)?;
        Ok(real.pass.then_some(real.bytes))
    }

    fn simulate(
        &mut self,
        hook: Hook,
        frame: &[u8],
        (device, index): (&str, u32),
        arrival: u32,
        real: &Outcome,
    ) -> Outcome {
        let drawn = if real.sent {
            drawn_id(&real.bytes)
        } else {
            draw(frame, &real.bytes)
        };
        self.tables.set_draw(drawn);
        let destination = &frame[..6];
        // Routes are asked for with the destination that nat has made.
        let routed = if real.sent { frame } else { &real.bytes };
        let mut packet = SlicePacket {
            arrival_device: arrival,
            // eth_type_trans(), net/ethernet/eth.c.
            for_other_host: destination != link_address(device) && destination[0] & 1 == 0,
            packet_type: packet_type(destination, device),
            // The socket that `BPF_PROG_TEST_RUN` makes up (net/bpf/test_run.c).
            owner: Owner {
                exists: true,
                known: true,
                raw: false,
                full: true,
                ..Owner::default()
            },
            forwardable: self.forwards && may_be_forwarded(routed),
            path_back: path_back(frame),
            back: real.sent.then(|| way_back(frame, real)).flatten(),
            next_hops: self.next_hops.clone(),
            ..SlicePacket::ethernet(frame.to_vec(), index)
        };
        self.scratch = between_packets(&self.scratch);
        let (tables, scratch) = (&self.tables, &mut self.scratch);
        // As fw-ebpf/src/main.rs: only the tc hooks count the reason.
        let verdict = match hook {
            Hook::Early => {
                packet.for_other_host = false;
                let held = Held::new(tables, PATH_SLOTS);
                let verdict = early(&mut packet, &held, scratch);
                if verdict == Verdict::Redirect {
                    held.commit();
                }
                verdict
            }
            Hook::Ingress => ingress(&mut packet, tables, scratch),
            Hook::Egress => egress(&mut packet, tables, scratch),
        };
        match verdict {
            Verdict::Drop(stat) if hook != Hook::Early => tables.count(stat),
            Verdict::Answer => self.tally.answers += 1,
            Verdict::Redirect => self.tally.sent_on += 1,
            Verdict::Drop(_) | Verdict::Pass => {}
        }
        Outcome {
            pass: verdict == Verdict::Pass,
            sent: matches!(verdict, Verdict::Answer | Verdict::Redirect),
            bytes: packet.bytes,
        }
    }

    fn compare_states(&self) -> Result<()> {
        let real = self.kernel.state()?.timeless();
        let expected = self.tables.state().timeless();
        if real != expected {
            bail!("the tables differ:\n{}", difference(&real, &expected)?);
        }
        for list in self.lists.iter().filter(|list| list.is_recent()) {
            let real = timeless(self.kernel.list(list)?);
            let expected = timeless(entries(&self.tables.list_cells(list.place)));
            ensure!(
                real == expected,
                "the list {} differs:\nthe kernel    {real:?}\nthe simulator {expected:?}",
                list.name
            );
        }
        Ok(())
    }

    fn index(&self, device: &str) -> Result<u32> {
        let interface = self.host.interface(device);
        Ok(interface
            .with_context(|| format!("the lab has no {device}"))?
            .index)
    }
}

/// What one packet leaves for the next in the scratch space. All else is rubbish in the kernel's, and
/// nothing in the simulator's: a program that reads it is seen.
fn between_packets(scratch: &Scratch) -> Scratch {
    Scratch {
        sent_on: scratch.sent_on,
        came_through: scratch.came_through,
        arrived: scratch.arrived,
        arrived_place: scratch.arrived_place,
        transit: scratch.transit,
        transit_direction: scratch.transit_direction,
        transit_opens: scratch.transit_opens,
        transit_port: scratch.transit_port,
        transit_label: scratch.transit_label,
        transit_outside: scratch.transit_outside,
        transit_link: scratch.transit_link,
        ..Scratch::default()
    }
}

/// The interface that leads to a place.
fn device(place: Place, other: Place) -> &'static str {
    match place {
        Place::Outside => "eth0",
        Place::Other => "eth1",
        Place::Container1 | Place::Container2 => "docker0",
        // The host's own packets come from nowhere; their link-layer address is that of the way
        // out, which egress does not look at.
        Place::Server if other == Place::Server => "lo",
        Place::Server => device(other, Place::Server),
    }
}

fn link_address(device: &str) -> [u8; 6] {
    match device {
        "eth0" => mac::SERVER,
        "eth1" => mac::SERVER_OTHER,
        "docker0" => mac::BRIDGE,
        _ => [0; 6],
    }
}

/// Without rules that ask for the way back where the kernel tells it: the simulator has no routes, and sources
/// may be spoiled. (`e2e_reverse_path` and the comparison with iptables have them.)
fn without_answerable(rules: &str, forwards: bool) -> String {
    let asks = |line: &&str| forwards && line.contains("-m rpfilter");
    let kept = rules.lines().filter(|line| !asks(line));
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// IPv6 addresses of one link or one host are never forwarded (`rt6_need_strict` in
/// `bpf_ipv6_fib_lookup`, net/core/filter.c).
fn may_be_forwarded(frame: &[u8]) -> bool {
    !ends6(frame).is_some_and(|ends| ends.into_iter().any(|end| needs_a_link(&end)))
}

/// What the kernel says of the way back to a packet's sender where it forwards nothing: nothing, but that there is none
/// for such addresses, which it looks at before. It is not told the destination where that is many's or a link's.
fn path_back(frame: &[u8]) -> u32 {
    match ends6(frame) {
        Some([source, destination]) if needs_a_link(&source) || destination.is_loopback() => {
            NO_PATH
        }
        _ => PATH_UNKNOWN,
    }
}

fn needs_a_link(address: &Ipv6Addr) -> bool {
    address.is_loopback() || address.is_multicast() || address.is_unicast_link_local()
}

/// Source and destination of an IPv6 packet.
fn ends6(frame: &[u8]) -> Option<[Ipv6Addr; 2]> {
    let address = |from: usize| {
        let octets: [u8; 16] = frame.get(from..from + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets))
    };
    if frame[12..14] != [0x86, 0xdd] {
        return None;
    }
    Some([address(L2 + 8)?, address(L2 + 24)?])
}

/// Where the lab's server sends packets on: its routes and neighbours ([`ServerLab`](fwbpf_tests::lab::ServerLab)).
fn next_hops(host: &Host) -> Result<Arc<[NextHop]>> {
    let neighbours = [
        (address::OUTSIDE, "eth0", mac::OUTSIDE),
        (address::OTHER, "eth1", mac::OTHER),
        (address::CONTAINER1, "docker0", mac::CONTAINER1),
        (address::CONTAINER2, "docker0", mac::CONTAINER2),
    ];
    let mut hops = Vec::new();
    let mut add = |to: IpNet, device: &str, neighbour: [u8; 6]| {
        let interface = host.interface(device).with_context(|| device.to_owned())?;
        hops.push(NextHop {
            to: to.trunc(),
            device: interface.index,
            neighbour,
            own: link_address(device),
        });
        // Nobody else is known on that link.
        for address in &interface.addresses {
            hops.push(NextHop {
                to: IpNet::new(address.address, address.prefix_len)?.trunc(),
                device: 0,
                neighbour: [0; 6],
                own: [0; 6],
            });
        }
        anyhow::Ok(())
    };
    for (addresses, device, link) in neighbours {
        for address in addresses {
            add(ip(address).into(), device, link)?;
        }
    }
    for gateway in address::OUTSIDE {
        add(IpNet::new(ip(gateway), 0)?, "eth0", mac::OUTSIDE)?;
    }
    Ok(hops.into())
}

/// Source address, and port or echo identifier, of a frame.
fn source(frame: &[u8]) -> Option<(IpAddr, Option<u16>)> {
    let packet = frame.get(L2..)?;
    let layers = Layers::read(packet)?;
    let port = layers.ports(packet).map(|(port, _)| port);
    Some((layers.source, port.or_else(|| layers.echo_id(packet))))
}

/// The number that makes the simulator take the port that the kernel drew: its distance from the
/// first port of the range (`Choice::set_candidates` in fw-common/src/datapath/nat.rs).
fn draw(before: &[u8], after: &[u8]) -> Option<u32> {
    let (_, own) = source(before)?;
    let (_, taken) = source(after)?;
    let (own, taken) = (own?, taken?);
    let packet = after.get(L2..)?;
    let is_query = Layers::read(packet)?.echo_id(packet).is_some();
    let low = match own {
        _ if is_query => 0,
        0..512 => 1,
        512..1024 => 600,
        1024.. => 1024,
    };
    Some(taken.wrapping_sub(low).into())
}

/// The identification that the kernel's side drew for an answer.
fn drawn_id(answer: &[u8]) -> Option<u32> {
    let id: [u8; 2] = answer.get(L2 + 4..L2 + 6)?.try_into().ok()?;
    Some(u16::from_be_bytes(id).into())
}

/// What the routing table said of the way back, as the answer shows: a frame that was turned around
/// had none, and its source is the one chosen.
fn way_back(frame: &[u8], real: &Outcome) -> Option<WayBack> {
    if real.bytes.get(..6) != frame.get(..6) {
        return None;
    }
    let source = Layers::read(real.bytes.get(L2..)?)?.source;
    Some(WayBack {
        device: 0,
        source: addr::to_abi(source),
        has_source: true,
    })
}

fn difference(real: &State, expected: &State) -> Result<String> {
    let mut text = String::new();
    let keys = real.flows.keys().chain(expected.flows.keys());
    for key in keys.collect::<std::collections::BTreeSet<_>>() {
        let (real, expected) = (real.flows.get(key), expected.flows.get(key));
        if real != expected {
            writeln!(
                text,
                "{key:?}:\n  kernel    {real:?}\n  simulator {expected:?}"
            )?;
        }
    }
    if real.fragments != expected.fragments {
        let (real, expected) = (&real.fragments, &expected.fragments);
        writeln!(
            text,
            "fragments:\n  kernel    {real:?}\n  simulator {expected:?}"
        )?;
    }
    let slots = real.counters.keys().chain(expected.counters.keys());
    for slot in slots.collect::<std::collections::BTreeSet<_>>() {
        let (real, expected) = (real.counters.get(slot), expected.counters.get(slot));
        if real != expected {
            writeln!(
                text,
                "counter {slot}: kernel {real:?}, simulator {expected:?}"
            )?;
        }
    }
    if real.stats != expected.stats {
        let (real, expected) = (&real.stats, &expected.stats);
        writeln!(text, "events: kernel {real:?}, simulator {expected:?}")?;
    }
    Ok(text)
}

/// A list's addresses, hop limits and numbers of packets.
fn timeless(mut entries: Vec<ListEntry>) -> Vec<(IpAddr, u8, usize)> {
    entries.sort_by_key(|entry| entry.address);
    let plain = |entry: ListEntry| (entry.address, entry.hops, entry.times.len());
    entries.into_iter().map(plain).collect()
}

/// How many chains are stored in each way.
fn shapes(set: &TableSet) -> [u64; 3] {
    let chains = set.header().map_or(0, |header| header.chains);
    let mut shapes = [0; 3];
    for cell in &set.cells[DIRECTORY as usize..][..chains as usize] {
        let chain = Chain(cell);
        shapes[0] += u64::from(chain.kind() == chain_kind::LINEAR);
        shapes[1] += u64::from(chain.kind() == chain_kind::TABLES);
        shapes[2] += u64::from(chain.kind() == chain_kind::TABLES && chain.prune() != 0);
    }
    shapes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.pass, self.sent) {
            (true, _) => "passes",
            (_, true) => "is sent as",
            _ => "drops",
        };
        write!(f, "{verdict} {}", hex(&self.bytes))
    }
}
