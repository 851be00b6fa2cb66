//! One of the two labs: sends a step, collects everything that comes out of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fw_user::policy::model::Family;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::differences::{
    answers_itself, canonical, forget_the_way, is_the_same, resets_to_loopback,
};
use super::grammar::neighbours;
use super::listen::{ip_of, receivers_of, silent_listeners, whole, with_header};
use super::random_ports::RandomPorts;
use super::simulated::Simulated;
use super::traffic::{Endpoint, Flow, Place, Step, Traffic, Way, What, addresses};
use super::write::{packet, pieces, sender};
use crate::lab::{
    Firewall, FrameSocket, LocalReceiver, LocalSender, Namespace, Peers, ServerLab, mac, run,
};
use crate::packet::{Layers, Packet, checksum_is_sound, frame};

/// A packet that came out, in the form in which the two sides are compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Where it came out.
    pub place: Place,
    /// The packet, with what may differ made equal.
    pub bytes: Vec<u8>,
    /// Whether its checksums were right as it came.
    pub sound: bool,
    /// It is a reset of the kernel's to ::1 (difference 22).
    pub resets_to_loopback: bool,
}

/// A lab with a firewall in it.
pub struct Side {
    /// The firewall that is tried.
    pub firewall: Box<dyn Firewall>,
    /// The firewalled host.
    pub server: Arc<Namespace>,
    simulated: Option<Simulated>,
    wires: Vec<Wire>,
    sender: LocalSender,
    receivers: HashMap<Family, Vec<(u8, LocalReceiver)>>,
    translated: HashMap<(usize, Way), (IpAddr, u16)>,
    /// Where a flow's requests came out, if elsewhere than where they were sent to.
    arrived: HashMap<usize, Endpoint>,
    random_ports: RandomPorts,
    errors_at: Vec<Place>,
    draws: bool,
    /// A connection answers itself (difference 26).
    mirrored: bool,
    switched: bool,
    /// Rules of mangle's OUTPUT have packets routed anew.
    reroutes: bool,
    _silent: Vec<Socket>,
    lab: ServerLab,
}

struct Wire {
    place: Place,
    socket: FrameSocket,
    own: [u8; 6],
    gateway: [u8; 6],
    /// The server's interface that it leads to.
    interface: &'static str,
}

/// By default some of an association's states last for three seconds, which is less than a trial.
const SCTP_LIVES: [(&str, &str); 7] = [
    ("netfilter/nf_conntrack_sctp_timeout_closed", "110"),
    ("netfilter/nf_conntrack_sctp_timeout_cookie_wait", "120"),
    ("netfilter/nf_conntrack_sctp_timeout_cookie_echoed", "130"),
    ("netfilter/nf_conntrack_sctp_timeout_shutdown_sent", "140"),
    ("netfilter/nf_conntrack_sctp_timeout_shutdown_recd", "140"),
    (
        "netfilter/nf_conntrack_sctp_timeout_shutdown_ack_sent",
        "150",
    ),
    ("netfilter/nf_conntrack_sctp_timeout_heartbeat_sent", "160"),
];

/// The lab's own first words (MLD reports) come within this time after the last one.
const SILENCE: Duration = Duration::from_millis(700);

/// Whether bridges of this kernel can hand over what they switch.
pub fn can_hand_over() -> bool {
    std::path::Path::new("/proc/sys/net/bridge").exists()
}

impl Side {
    /// Builds the lab and puts the firewall that `firewall` makes into the server.
    pub fn new(
        name: &str,
        firewall: impl FnOnce(Arc<Namespace>) -> Result<Box<dyn Firewall>>,
    ) -> Result<Self> {
        let lab = ServerLab::new(name, Peers::Emulated)?;
        lab.add_neighbours(&neighbours())?;
        lab.server.sysctl(&SCTP_LIVES)?;
        let wires = [
            (
                Place::Outside,
                &lab.outside,
                "wire0",
                mac::OUTSIDE,
                mac::SERVER,
            ),
            (
                Place::Other,
                &lab.other,
                "wire0",
                mac::OTHER,
                mac::SERVER_OTHER,
            ),
            (
                Place::Container1,
                &lab.container1,
                "eth0",
                mac::CONTAINER1,
                mac::BRIDGE,
            ),
            (
                Place::Container2,
                &lab.container2,
                "eth0",
                mac::CONTAINER2,
                mac::BRIDGE,
            ),
        ]
        .into_iter()
        .map(|(place, namespace, interface, own, gateway)| {
            Ok(Wire {
                place,
                socket: FrameSocket::open(namespace, interface)?,
                own,
                gateway,
                interface: match place {
                    Place::Outside => "eth0",
                    Place::Other => "eth1",
                    _ => "docker0",
                },
            })
        })
        .collect::<Result<Vec<_>>>()?;
        let mut receivers = HashMap::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            receivers.insert(family, receivers_of(&lab.server, family)?);
        }
        let mut side = Self {
            firewall: firewall(lab.server.clone())?,
            server: lab.server.clone(),
            simulated: None,
            wires,
            sender: LocalSender::open(&lab.server)?,
            receivers,
            translated: HashMap::new(),
            arrived: HashMap::new(),
            random_ports: RandomPorts::default(),
            errors_at: Vec::new(),
            draws: false,
            mirrored: false,
            switched: false,
            reroutes: false,
            _silent: lab.server.enter(silent_listeners)??,
            lab,
        };
        side.wait_for_silence()?;
        Ok(side)
    }

    /// Has the lab's wires take frames that XDP redirects to them.
    pub fn take_redirected(&self) -> Result<()> {
        self.lab.take_redirected()
    }

    /// The same with fwbpf's datapath simulated at the wires.
    pub fn simulated(name: &str) -> Result<Self> {
        let mut simulated = None;
        let mut side = Self::new(name, |server| {
            let firewall = Simulated::new(&server)?;
            simulated = Some(firewall.clone());
            Ok(Box::new(firewall))
        })?;
        side.simulated = simulated;
        Ok(side)
    }

    /// Has the bridge hand over what it only switches, or not.
    pub fn hand_over(&mut self, switched: bool) -> Result<()> {
        if self.switched != switched {
            let value = if switched { "1" } else { "0" };
            let keys = [
                "bridge/bridge-nf-call-iptables",
                "bridge/bridge-nf-call-ip6tables",
            ];
            self.server.sysctl(&keys.map(|key| (key, value)))?;
            self.switched = switched;
        }
        Ok(())
    }

    /// Forgets what earlier traffic taught. `draws` says that the rules to come draw ports even
    /// where the old one is free, so that by chance the old one may be drawn; `reroutes`, that they change
    /// what netfilter routes anew for (difference 22).
    pub fn reset(&mut self, draws: bool, reroutes: bool) -> Result<()> {
        self.draws = draws;
        self.reroutes = reroutes;
        self.translated.clear();
        self.arrived.clear();
        self.errors_at.clear();
        self.mirrored = false;
        self.random_ports = RandomPorts::default();
        self.forget_paths()?;
        for family in [Family::Ipv4, Family::Ipv6] {
            self.collect(family, Duration::ZERO)?;
        }
        Ok(())
    }

    /// Has the server's kernel forget MTUs of paths, and better ways, which live for minutes. That they are void,
    /// IPv4 notes where the host itself asks for a path, and nowhere else: programs would still be told
    /// (`rt_bind_exception` and `ip_mtu_from_fib_result`, net/ipv4/route.c).
    fn forget_paths(&self) -> Result<()> {
        for version in ["-4", "-6"] {
            let mut command = self.server.command("ip");
            run(command.args([version, "route", "flush", "cache"]))?;
        }
        let others = self.wires.iter().map(|wire| wire.place);
        let ask = |address| format!("route get {address}\n");
        let paths = others
            .flat_map(|place| addresses(place, Family::Ipv4))
            .map(ask);
        self.server.ip(&paths.collect::<String>())
    }

    /// Whether a port was drawn at random since the last reset.
    pub fn drew_ports(&self) -> bool {
        !self.random_ports.is_empty()
    }

    /// The bytes that a step sends on this side: replies go where the request seemed to come from.
    pub fn packets(&self, traffic: &Traffic, step: &Step) -> Vec<Vec<u8>> {
        let flow = &traffic.flows[step.flow];
        pieces(&self.packet(flow, step), step)
    }

    /// Sends a step.
    pub fn send(&self, traffic: &Traffic, step: &Step) -> Result<()> {
        let flow = &traffic.flows[step.flow];
        let from = sender(&self.as_arrived(flow, step), step.way).place;
        if let Some(simulated) = &self.simulated {
            simulated.next_step();
        }
        for packet in self.packets(traffic, step) {
            if let Some(wire) = self.wires.iter().find(|wire| wire.place == from) {
                let frame = frame(wire.own, self.next_hop(wire, &packet), &packet);
                let arrives = match &self.simulated {
                    Some(simulated) => simulated.arrive(wire.interface, frame),
                    None => Some(frame),
                };
                if let Some(frame) = arrives {
                    wire.socket
                        .send(&frame)
                        .with_context(|| format!("send from {from}"))?;
                }
            } else if let Some(layers) = Layers::read(&packet) {
                // iptables answers EPERM when OUTPUT drops, fwbpf says nothing; what comes out
                // shows what happened, so the error is not looked at.
                let _ = self.sender.send(&packet, layers.destination);
            }
        }
        Ok(())
    }

    /// The link-layer address that a wire's end sends to: a container knows the other one's if the bridge hands over
    /// what it switches, without which netfilter would not see answers to what was translated.
    fn next_hop(&self, wire: &Wire, packet: &[u8]) -> [u8; 6] {
        const CONTAINERS: [(Place, [u8; 6]); 2] = [
            (Place::Container1, mac::CONTAINER1),
            (Place::Container2, mac::CONTAINER2),
        ];
        let destination = Layers::read(packet).map(|layers| layers.destination);
        let (Some(destination), true) = (destination, self.switched) else {
            return wire.gateway;
        };
        let family = if destination.is_ipv4() {
            Family::Ipv4
        } else {
            Family::Ipv6
        };
        let is_there = |place| addresses(place, family).contains(&destination);
        let behind = |place| CONTAINERS.iter().any(|(container, _)| *container == place);
        let mut others = CONTAINERS.iter().filter(|(place, _)| *place != wire.place);
        match others.find(|(place, _)| is_there(*place)) {
            Some((_, link)) if behind(wire.place) => *link,
            _ => wire.gateway,
        }
    }

    /// What came out since the last call, after waiting for more for up to `patience`.
    pub fn receive(
        &mut self,
        traffic: &Traffic,
        step: &Step,
        family: Family,
        patience: Duration,
    ) -> Result<Vec<Seen>> {
        let raw = self.collect(family, patience)?;
        self.learn(traffic, step, &raw);
        let sent = self.packet(&traffic.flows[step.flow], step).bytes();
        let mut seen: Vec<Seen> = raw
            .into_iter()
            .map(|(place, bytes)| {
                let sound = checksum_is_sound(&bytes);
                let resets_to_loopback = resets_to_loopback(&bytes, &sent);
                self.mirrored |= answers_itself(&bytes, &sent);
                let mut bytes = canonical(bytes, &sent, &self.random_ports);
                let quotes = Layers::read(&bytes).is_some_and(|it| it.quoted(&bytes).is_some());
                let error = quotes && !matches!(step.what, What::Error { .. });
                let place = if error || self.reroutes && resets_to_loopback {
                    self.errors_at.push(place);
                    forget_the_way(&mut bytes);
                    Place::Server
                } else {
                    place
                };
                Seen {
                    place,
                    sound,
                    bytes,
                    resets_to_loopback,
                }
            })
            .collect();
        seen.sort();
        Ok(seen)
    }

    fn packet(&self, flow: &Flow, step: &Step) -> Packet {
        // The other end as this one knows it: by the address under which its packets arrive here.
        let peer = (step.flow, step.way.reversed());
        let flow = self.as_arrived(flow, step);
        packet(&flow, step, self.translated.get(&peer).copied())
    }

    /// The flow with the end that answers where its requests came out.
    fn as_arrived(&self, flow: &Flow, step: &Step) -> Flow {
        match self.arrived.get(&step.flow) {
            Some(&b) if step.way == Way::Back => Flow { b, ..*flow },
            _ => *flow,
        }
    }

    /// Where errors of the kernel's came out since the last reset (differences 18 and 22), in some order.
    pub fn errors_at(&self) -> Vec<Place> {
        let mut places = self.errors_at.clone();
        places.sort();
        places
    }

    /// Whether a connection answers itself.
    pub fn is_mirrored(&self) -> bool {
        self.mirrored
    }

    /// Whether a packet of that flow, of that way, has come out at the other end.
    pub fn has_come_out(&self, (flow, way): (usize, Way)) -> bool {
        self.translated.contains_key(&(flow, way))
    }

    /// Whether as many errors came out here as there, the last one at another place.
    pub fn errors_differ_in_place(&self, other: &Self) -> bool {
        let (here, there) = (&self.errors_at, &other.errors_at);
        here.len() == there.len() && here.last() != there.last()
    }

    /// Everything that waits in the sockets.
    fn collect(&mut self, family: Family, patience: Duration) -> Result<Vec<(Place, Vec<u8>)>> {
        let deadline = Instant::now() + patience;
        let mut packets = Vec::new();
        let receivers = &self.receivers[&family];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds: Vec<PollFd> = self
                .wires
                .iter()
                .map(|wire| wire.socket.as_fd())
                .chain(receivers.iter().map(|(_, receiver)| receiver.as_fd()))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            if poll(&mut fds, timeout)? == 0 {
                return Ok(whole(packets));
            }
            for wire in &self.wires {
                while let Some(mut frame) = wire.socket.receive()? {
                    if let Some(simulated) = &self.simulated {
                        let Some(left) = simulated.leave(wire.interface, frame) else {
                            continue;
                        };
                        frame = left;
                    }
                    if let Some(packet) = ip_of(&frame, family) {
                        packets.push((wire.place, packet));
                    }
                }
            }
            for (protocol, receiver) in receivers {
                while let Some(received) = receiver.receive()? {
                    packets.push((Place::Server, with_header(received, *protocol)));
                }
            }
        }
    }

    /// Learns under which address and port the step's sender is seen at the other end.
    fn learn(&mut self, traffic: &Traffic, step: &Step, raw: &[(Place, Vec<u8>)]) {
        let flow = &traffic.flows[step.flow];
        let (here, there) = (sender(flow, step.way), sender(flow, step.way.reversed()));
        if matches!(step.what, What::Error { .. }) {
            let sent = self.packet(flow, step).bytes();
            for (_, bytes) in raw {
                self.random_ports
                    .learn_quoted(&sent, bytes, (step.flow, step.way.reversed()));
            }
            return;
        }
        let sent = self.packet(flow, step);
        let sent_to = sent.destination;
        if step.way == Way::Forth {
            self.learn_arrival(flow, step, &sent.bytes(), raw);
        }
        for (_, bytes) in raw {
            self.random_ports
                .learn_answered(&sent.bytes(), bytes, (step.flow, step.way));
        }
        let arrived = match step.way {
            Way::Forth => self.arrived.get(&step.flow).copied(),
            Way::Back => None,
        };
        let there = arrived.unwrap_or(there);
        for (place, bytes) in raw {
            let Some(layers) = Layers::read(bytes) else {
                continue;
            };
            if layers.protocol != flow.protocol() || layers.quoted(bytes).is_some() {
                continue;
            }
            let is_there =
                *place == there.place && [there.address, sent_to].contains(&layers.destination);
            // What goes back may open a flow of its own, whose destination is translated.
            let is_elsewhere = step.way == Way::Back && is_the_same(bytes, &sent.bytes());
            if !is_there && !is_elsewhere {
                continue;
            }
            let (port, peer) = layers
                .ports(bytes)
                .or_else(|| layers.echo_id(bytes).map(|id| (id, id)))
                .unwrap_or((here.port, there.port));
            let seen_as = (layers.source, port);
            let is_answer = (layers.source, port) == (sent_to, there.port) && arrived.is_none();
            if is_answer {
                // The server talks to itself: its kernel's answer comes out at the same place.
                continue;
            }
            if is_there {
                self.translated.insert((step.flow, step.way), seen_as);
            }
            if port != here.port || self.draws {
                let peer = (layers.destination, peer);
                self.random_ports
                    .learn(layers.protocol, seen_as, peer, (step.flow, step.way));
            }
            return;
        }
    }

    /// Learns where a request came out whose destination was translated: answers come from there.
    fn learn_arrival(&mut self, flow: &Flow, step: &Step, sent: &[u8], raw: &[(Place, Vec<u8>)]) {
        let there = sender(flow, Way::Back);
        for (place, bytes) in raw {
            let Some(layers) = Layers::read(bytes) else {
                continue;
            };
            if layers.quoted(bytes).is_some() || !is_the_same(bytes, sent) {
                continue;
            }
            let port = match layers.ports(bytes) {
                Some((_, port)) => port,
                None => there.port,
            };
            let end = Endpoint {
                place: *place,
                address: layers.destination,
                port,
            };
            if end == there {
                // One before may have come out elsewhere, untranslated.
                self.arrived.remove(&step.flow);
            } else {
                self.arrived.insert(step.flow, end);
            }
            return;
        }
    }

    /// Waits until the lab has said all that new interfaces say.
    fn wait_for_silence(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !self.collect(Family::Ipv6, SILENCE)?.is_empty() {
            anyhow::ensure!(Instant::now() < deadline, "the lab does not fall silent");
        }
        Ok(())
    }
}
