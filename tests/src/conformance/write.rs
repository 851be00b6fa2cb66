//! Steps become packets.

use std::net::IpAddr;

use super::traffic::{
    Carried, Chunk, Endpoint, Flow, Fragments, SKEW, Step, Way, What, quoted_chunks,
};
use crate::packet::{Dressing, Packet, Payload};

/// The packet that a step sends. `seen_as` is where the other end's packets seem to come from, if
/// that is not the other end itself.
pub fn packet(flow: &Flow, step: &Step, seen_as: Option<(IpAddr, u16)>) -> Packet {
    let here = sender(flow, step.way);
    let there = sender(flow, step.way.reversed());
    let source = (here.address, here.port);
    let destination = seen_as.unwrap_or((there.address, there.port));
    let base = Packet {
        source: source.0,
        destination: destination.0,
        ttl: step.ttl,
        id: step.id,
        tos: service(step.id),
        mss: segment_size(&step.what, step.id),
        dressing: step.dressing,
        payload: Payload::Other {
            protocol: 0,
            data: Vec::new(),
        },
    };
    match &step.what {
        What::Segment {
            flags,
            sequence,
            acknowledgement,
            window,
            options,
            length,
        } => Packet {
            payload: Payload::Tcp {
                ports: (source.1, destination.1),
                sequence: *sequence,
                acknowledgement: *acknowledgement,
                flags: *flags,
                window: *window,
                options: options.clone(),
                data: filler(*length),
            },
            ..base
        },
        What::Chunks { tag, chunks } => Packet {
            payload: sctp((source.1, destination.1), *tag, chunks),
            ..base
        },
        What::Datagram { length } => Packet {
            payload: datagram(flow, step.way, (source.1, destination.1), *length),
            ..base
        },
        What::Error {
            router,
            kind,
            code,
            rest,
            skewed,
        } => {
            // It reports a packet that came the other way, as that packet looked here.
            let quoted = Packet {
                source: destination.0,
                destination: source.0,
                ttl: 60,
                id: step.id,
                tos: 0,
                mss: None,
                dressing: Dressing::Plain,
                payload: quoted_payload(
                    flow,
                    step.way.reversed(),
                    (
                        destination.1.wrapping_add(if *skewed { SKEW } else { 0 }),
                        source.1,
                    ),
                ),
            };
            Packet {
                source: router.unwrap_or(source.0),
                payload: Payload::Icmp {
                    kind: *kind,
                    code: *code,
                    rest: *rest,
                    data: quoted.bytes(),
                },
                ..base
            }
        }
    }
}

/// The bytes that a step sends of its packet: in fragments, if it says so.
pub fn pieces(packet: &Packet, step: &Step) -> Vec<Vec<u8>> {
    let Some(Fragments { size, ahead }) = step.fragment else {
        return vec![packet.bytes()];
    };
    let mut pieces = packet.fragments(size);
    let ahead = ahead.min(pieces.len() - 1);
    pieces[..=ahead].rotate_left(1);
    pieces
}

/// Most packets ask for nothing, some for haste, and some have been through congestion.
fn service(id: u16) -> u8 {
    match id % 24 {
        3 => 0x10,
        8 => 0xb8,
        13 => 0x02,
        21 => 0x28,
        _ => 0,
    }
}

/// Most SYNs say how large segments may be.
fn segment_size(what: &What, id: u16) -> Option<u16> {
    const SYN: u8 = crate::packet::flags::SYN;
    match what {
        What::Segment { flags, .. } if flags & SYN != 0 && !id.is_multiple_of(3) => {
            Some(1460 - id % 5 * 50)
        }
        _ => None,
    }
}

/// The end that sends in this way.
pub fn sender(flow: &Flow, way: Way) -> Endpoint {
    match way {
        Way::Forth => flow.a,
        Way::Back => flow.b,
    }
}

fn datagram(flow: &Flow, way: Way, ports: (u16, u16), length: usize) -> Payload {
    match flow.carried {
        Carried::Tcp | Carried::Udp | Carried::Sctp => Payload::Udp {
            ports,
            data: filler(length),
        },
        Carried::Echo => {
            let kind = match (flow.a.address.is_ipv4(), way) {
                (true, Way::Forth) => 8,
                (true, Way::Back) => 0,
                (false, Way::Forth) => 128,
                (false, Way::Back) => 129,
            };
            let id = match way {
                Way::Forth => ports.0,
                Way::Back => ports.1,
            };
            let [high, low] = id.to_be_bytes();
            Payload::Icmp {
                kind,
                code: 0,
                rest: [high, low, 0, 1],
                data: filler(length),
            }
        }
        // GRE's and ESP's own headers are 4 to 8 bytes; conntrack reads none of version 0's.
        Carried::Other(protocol) => Payload::Other {
            protocol,
            data: vec![0; length.max(8)],
        },
    }
}

fn quoted_payload(flow: &Flow, way: Way, ports: (u16, u16)) -> Payload {
    match flow.carried {
        Carried::Tcp => Payload::Tcp {
            ports,
            sequence: 1,
            acknowledgement: 1,
            flags: crate::packet::flags::ACK,
            window: 65_000,
            options: Vec::new(),
            data: filler(12),
        },
        Carried::Sctp => {
            let (tag, chunks) = quoted_chunks();
            sctp(ports, tag, &chunks)
        }
        _ => datagram(flow, way, ports, 12),
    }
}

fn sctp(ports: (u16, u16), tag: u32, chunks: &[Chunk]) -> Payload {
    Payload::Sctp {
        ports,
        tag,
        chunks: chunks.iter().flat_map(|chunk| chunk.bytes()).collect(),
    }
}

fn filler(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7) as u8).collect()
}
