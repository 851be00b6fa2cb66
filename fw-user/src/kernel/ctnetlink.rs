//! The kernel's own table of connections, nf_conntrack's, read through netlink
//! (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use netlink_sys::{Socket, SocketAddr};

/// A connection as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What its first packet bears.
    pub original: Option<Side>,
    /// What its answers bear.
    pub reply: Option<Side>,
    /// [`status`].
    pub status: u32,
    /// Seconds until it is forgotten.
    pub timeout: u32,
    /// Its mark.
    pub mark: u32,
    /// The state of TCP, with the kernel's number.
    pub tcp_state: u8,
    /// The state of SCTP, with the kernel's number, and the verification tags of packets of both
    /// directions.
    pub sctp: (u8, [u32; 2]),
    /// The zone that it is in.
    pub zone: u16,
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Source port; zero if the protocol has none.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// ICMP's identifier, type and code.
    pub icmp: Option<(u16, u8, u8)>,
    /// The zone that only this direction is in.
    pub zone: u16,
}

/// Bits of [`Entry::status`] (`enum ip_conntrack_status`,
/// include/uapi/linux/netfilter/nf_conntrack_common.h).
pub mod status {
    /// A packet came back.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Traffic both ways is proven.
    pub const ASSURED: u32 = 1 << 2;
    /// It is in the table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// It is being deleted.
    pub const DYING: u32 = 1 << 9;
}

/// NETLINK_NETFILTER.
const NETFILTER: isize = 12;
/// NFNL_SUBSYS_CTNETLINK in the high byte; IPCTNL_MSG_CT_NEW and _GET in the low one.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
/// NLM_F_REQUEST and NLM_F_DUMP.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// NLMSG_ERROR and NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Length of a message's header, and of netfilter's behind it.
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// Whether this network namespace's kernel tracks anything. Asking through netlink alone would load
/// the kernel's module.
pub fn tracks_anything() -> bool {
    let count = Path::new("/proc/sys/net/netfilter/nf_conntrack_count");
    std::fs::read_to_string(count).is_ok_and(|text| text.trim() != "0")
}

/// Every connection in the table of the calling thread's network namespace, both IP versions.
pub fn entries() -> Result<Vec<Entry>> {
    let mut socket = Socket::new(NETFILTER).context("cannot open a netlink socket")?;
    socket.bind_auto().context("cannot bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // AF_UNSPEC means all families.
    socket.send(&message(GET, REQUEST | DUMP, 0), 0)?;
    let mut entries = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, payload) in messages(&bytes) {
            match kind {
                NEW => entries.extend(payload.get(FAMILY..).map(entry)),
                DONE => return Ok(entries),
                ERROR => refuse(payload)?,
                _ => {}
            }
        }
    }
}

/// Fails with the error that the message names, if it is one and no acknowledgement.
fn refuse(payload: &[u8]) -> Result<()> {
    let code = payload
        .first_chunk()
        .map_or(-1, |code| i32::from_ne_bytes(*code));
    if code != 0 {
        bail!(std::io::Error::from_raw_os_error(-code));
    }
    Ok(())
}

fn message(kind: u16, flags: u16, family: u8) -> Vec<u8> {
    let length = HEADER + FAMILY;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: the kernel fills in the port, and there is one request at a time.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes
}

/// The messages in what was received: kind and payload.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The attributes in a message, or in an attribute: kind and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    // The highest bits say that the value is nested, or in network order.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn entry(bytes: &[u8]) -> Entry {
    let mut entry = Entry::default();
    for (kind, value) in attributes(bytes) {
        match kind {
            // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY.
            1 => entry.original = side(value),
            2 => entry.reply = side(value),
            // CTA_STATUS, CTA_TIMEOUT, CTA_MARK, CTA_ZONE.
            3 => entry.status = word(value),
            7 => entry.timeout = word(value),
            8 => entry.mark = word(value),
            18 => entry.zone = half(value),
            // CTA_PROTOINFO, and in it CTA_PROTOINFO_SCTP; CTA_PROTOINFO_TCP and CTA_PROTOINFO_TCP_STATE.
            4 => {
                for (_, value) in attributes(value).filter(|(kind, _)| *kind == 3) {
                    for (kind, value) in attributes(value) {
                        match kind {
                            1 => entry.sctp.0 = byte(value),
                            2 => entry.sctp.1[0] = word(value),
                            3 => entry.sctp.1[1] = word(value),
                            _ => {}
                        }
                    }
                }
                for (_, value) in attributes(value).filter(|(kind, _)| *kind == 1) {
                    for (_, value) in attributes(value).filter(|(kind, _)| *kind == 1) {
                        entry.tcp_state = byte(value);
                    }
                }
            }
            _ => {}
        }
    }
    entry
}

fn side(bytes: &[u8]) -> Option<Side> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, 0, 0);
    let mut icmp = None;
    let mut zone = 0;
    for (kind, value) in attributes(bytes) {
        match kind {
            // CTA_TUPLE_IP.
            1 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 | 3 => source = address(value),
                        2 | 4 => destination = address(value),
                        _ => {}
                    }
                }
            }
            // CTA_TUPLE_PROTO.
            2 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 => protocol = Some(byte(value)),
                        2 => source_port = half(value),
                        3 => destination_port = half(value),
                        // Identifier, type and code, of ICMP and of ICMPv6.
                        4 | 7 => icmp.get_or_insert((0, 0, 0)).0 = half(value),
                        5 | 8 => icmp.get_or_insert((0, 0, 0)).1 = byte(value),
                        6 | 9 => icmp.get_or_insert((0, 0, 0)).2 = byte(value),
                        _ => {}
                    }
                }
            }
            // CTA_TUPLE_ZONE.
            3 => zone = half(value),
            _ => {}
        }
    }
    Some(Side {
        source: source?,
        destination: destination?,
        protocol: protocol?,
        source_port,
        destination_port,
        icmp,
        zone,
    })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(*value.first_chunk()?).into()),
        16 => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn word(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |value| u32::from_be_bytes(*value))
}

fn half(value: &[u8]) -> u16 {
    value
        .first_chunk()
        .map_or(0, |value| u16::from_be_bytes(*value))
}

fn byte(value: &[u8]) -> u8 {
    value.first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        const NESTED: u16 = 0x8000;
        let ip = [attribute(1, &source), attribute(2, &destination)].concat();
        let proto = [
            attribute(1, &[6]),
            attribute(2, &ports[0].to_be_bytes()),
            attribute(3, &ports[1].to_be_bytes()),
        ]
        .concat();
        [attribute(1 | NESTED, &ip), attribute(2 | NESTED, &proto)].concat()
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        let original = tuple([10, 0, 0, 5], [203, 0, 113, 9], [40_000, 22]);
        let tcp = attribute(1, &attribute(1, &[3]));
        let attributes = [
            attribute(1, &original),
            attribute(
                2,
                &tuple([203, 0, 113, 9], [198, 51, 100, 10], [22, 40_001]),
            ),
            attribute(3, &0x19e_u32.to_be_bytes()),
            attribute(7, &431_999_u32.to_be_bytes()),
            attribute(8, &0x17_u32.to_be_bytes()),
            attribute(4, &tcp),
        ]
        .concat();
        let mut bytes = message(NEW, 0, 2);
        bytes.extend(attributes);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let (kind, payload) = messages(&bytes).next().expect("a message");
        assert_eq!(kind, NEW);
        let entry = entry(&payload[FAMILY..]);
        let side = |source: &str, destination: &str, source_port, destination_port| {
            Some(Side {
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
                protocol: 6,
                source_port,
                destination_port,
                icmp: None,
                zone: 0,
            })
        };
        let expected = Entry {
            original: side("10.0.0.5", "203.0.113.9", 40_000, 22),
            reply: side("203.0.113.9", "198.51.100.10", 22, 40_001),
            status: 0x19e,
            timeout: 431_999,
            mark: 0x17,
            tcp_state: 3,
            sctp: (0, [0; 2]),
            zone: 0,
        };
        assert_eq!(entry, expected);
    }

    #[test]
    fn what_is_cut_short_is_no_connection() {
        let whole = attribute(1, &tuple([10, 0, 0, 5], [203, 0, 113, 9], [40_000, 22]));
        for length in 0..whole.len() {
            assert_eq!(entry(&whole[..length]).original, None);
        }
        assert!(entry(&whole).original.is_some());
    }
}
