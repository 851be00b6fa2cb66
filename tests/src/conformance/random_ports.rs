//! Drawn ports, which stand for their flows (difference 3).

use std::collections::HashMap;
use std::net::IpAddr;

use super::differences::{is_own_reset, is_the_same};
use super::traffic::{CLIENT_PORTS, CLOSED_PORTS, SILENT_PORTS, SKEW, Way};
use crate::packet::{Layers, protocol};

/// Difference 3: which ports stand for which flow. A port is known by the whole connection that it
/// is part of, since two connections to different hosts may draw the same; and by itself where
/// the other end is translated, too.
#[derive(Clone, Debug, Default)]
pub struct RandomPorts {
    known: HashMap<(u8, End, End), u16>,
    by_itself: HashMap<(u8, End), u16>,
    /// What only quotations have shown: it counts in quotations.
    quoted: HashMap<(u8, End, End), u16>,
}

/// With how many other draws a trial with drawn ports has to differ, too, or its difference is put down
/// to the draw.
pub const OTHER_DRAWS: usize = 48;

/// How often iptables is asked then whether it agrees with itself.
pub const TWIN_RUNS: usize = 8;

/// Address, and port or echo identifier.
type End = (IpAddr, u16);

/// Above all ports that the generator uses.
const FIRST_STAND_IN: u16 = 61_000;

impl RandomPorts {
    /// The sender of this flow's packets of this way goes by `seen_as` when it talks to `peer`. A
    /// stand-in stays: another flow between the same ends is the same connection. ICMP errors
    /// about unknown flows quote the port beside it, which is as random.
    pub fn learn(&mut self, protocol: u8, seen_as: End, peer: End, (flow, way): (usize, Way)) {
        let stand_in = stand_in_of((flow, way));
        let (address, port) = seen_as;
        for (port, stand_in) in [(port, stand_in), (port.wrapping_add(SKEW), stand_in + 1)] {
            self.known
                .entry((protocol, (address, port), peer_of(protocol, peer)))
                .or_insert(stand_in);
            self.by_itself
                .entry((protocol, (address, port)))
                .or_insert(stand_in);
        }
    }

    /// An ICMP error that was sent quotes a port that came out as another: a flow drew it whose
    /// own packet reached nobody. Or it quotes one that was drawn, at another address. Way is that of
    /// the quoted packet.
    pub fn learn_quoted(&mut self, sent: &[u8], received: &[u8], quoted: (usize, Way)) {
        let ends = |bytes: &[u8]| {
            let packet = bytes.get(Layers::read(bytes)?.quoted(bytes)?..)?;
            let layers = Layers::read(packet)?;
            let (source, destination) = layers.ports(packet)?;
            let ends = [(layers.source, source), (layers.destination, destination)];
            Some((layers.protocol, ends))
        };
        let (Some((_, before)), Some((protocol, after))) = (ends(sent), ends(received)) else {
            return;
        };
        let (flow, way) = quoted;
        for (own, peer, way) in [(0, 1, way), (1, 0, way.reversed())] {
            if self.stand_in(protocol, after[own], after[peer]).is_some() {
                continue;
            }
            if before[own].1 != after[own].1 {
                self.learn(protocol, after[own], after[peer], (flow, way));
            } else if let Some(stand_in) = self.stand_in(protocol, before[own], before[peer]) {
                // It stays where only the address is translated.
                let key = (protocol, after[own], peer_of(protocol, after[peer]));
                self.quoted.insert(key, stand_in);
            }
        }
    }

    /// An answer quotes the packet that was sent as it had become, and the flow may never be stored: a
    /// port that is none of the generator's was drawn for it. So may be one of a reset, whose flow's own packet
    /// reached nobody. Way is that of the packet.
    pub fn learn_answered(&mut self, sent: &[u8], received: &[u8], (flow, way): (usize, Way)) {
        if is_own_reset(received, sent) {
            return self.learn_reset(received, (flow, way.reversed()));
        }
        if is_the_same(received, sent) {
            return self.learn_passed_on(sent, received);
        }
        let quoted = Layers::read(received)
            .and_then(|layers| received.get(layers.quoted(received)?..))
            .filter(|quoted| is_the_same(quoted, sent));
        let Some((quoted, layers)) = quoted.and_then(|it| Some((it, Layers::read(it)?))) else {
            return;
        };
        let Some((source, destination)) = layers.ports(quoted) else {
            return;
        };
        let ends = [(layers.source, source), (layers.destination, destination)];
        for (own, peer, way) in [(0, 1, way), (1, 0, way.reversed())] {
            if !is_the_generators(ends[own].1)
                && self
                    .stand_in(layers.protocol, ends[own], ends[peer])
                    .is_none()
            {
                let key = (
                    layers.protocol,
                    ends[own],
                    peer_of(layers.protocol, ends[peer]),
                );
                let stand_in = stand_in_of((flow, way));
                self.quoted.entry(key).or_insert(stand_in);
            }
        }
    }

    /// A packet to a port that was drawn, and stays where only the address is translated: an error about it
    /// quotes the port beside that address.
    fn learn_passed_on(&mut self, sent: &[u8], received: &[u8]) {
        let Some((drawn, stand_in)) = drawn_destination(sent, self) else {
            return;
        };
        let ends = Layers::read(received).and_then(|it| Some((it.ports(received)?, it)));
        if let Some(((source, port), layers)) = ends
            && port == drawn
        {
            // Also one that quotes the port beside the sender's.
            for source in [source, source.wrapping_add(SKEW)] {
                let peer = peer_of(layers.protocol, (layers.source, source));
                let key = (layers.protocol, (layers.destination, port), peer);
                self.quoted.entry(key).or_insert(stand_in);
            }
        }
    }

    fn learn_reset(&mut self, reset: &[u8], (flow, way): (usize, Way)) {
        let Some(layers) = Layers::read(reset) else {
            return;
        };
        let Some((source, destination)) = layers.ports(reset) else {
            return;
        };
        let ends = [(layers.source, source), (layers.destination, destination)];
        for (own, peer, way) in [(0, 1, way), (1, 0, way.reversed())] {
            let known = self.stand_in(layers.protocol, ends[own], ends[peer]);
            if !is_the_generators(ends[own].1) && known.is_none() {
                self.learn(layers.protocol, ends[own], ends[peer], (flow, way));
            }
        }
    }

    /// Whether no port was drawn.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.quoted.is_empty()
    }

    /// For a packet that begins at `start`, and not at 0 if it is quoted.
    pub(super) fn quoted(&self, start: usize, protocol: u8, end: End, peer: End) -> Option<u16> {
        let key = (protocol, end, peer_of(protocol, peer));
        (start > 0).then(|| self.quoted.get(&key).copied())?
    }

    pub(super) fn stand_in(&self, protocol: u8, end: End, peer: End) -> Option<u16> {
        self.known
            .get(&(protocol, end, peer_of(protocol, peer)))
            .or_else(|| self.by_itself.get(&(protocol, end)))
            .copied()
    }
}

fn stand_in_of((flow, way): (usize, Way)) -> u16 {
    FIRST_STAND_IN + flow as u16 * 4 + u16::from(way == Way::Back) * 2
}

/// Whether a port is one that flows use or rules translate to.
fn is_the_generators(port: u16) -> bool {
    /// Rules' ranges reach so far.
    const NEAR: u16 = 5;
    let flows = [&SILENT_PORTS[..], &CLOSED_PORTS, &CLIENT_PORTS].concat();
    flows.iter().any(|used| used.abs_diff(port) <= NEAR)
}

/// The identifier of an echo belongs to both ends; only the asking one's address goes with it.
fn peer_of(protocol: u8, peer: End) -> End {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => peer,
        _ => (peer.0, 0),
    }
}

/// The port that a packet was sent to, with its stand-in, if it was drawn: it stays where only the
/// address is translated.
pub(super) fn drawn_destination(sent: &[u8], random: &RandomPorts) -> Option<(u16, u16)> {
    let layers = Layers::read(sent)?;
    let (source, destination) = layers.ports(sent)?;
    let (own, peer) = ((layers.destination, destination), (layers.source, source));
    let stand_in = random.stand_in(layers.protocol, own, peer)?;
    Some((destination, stand_in))
}
