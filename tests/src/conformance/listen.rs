//! What a lab's ends hear: sockets, and the IP packets in what comes out of them.

use std::net::IpAddr;

use anyhow::{Context, Result};
use fw_user::policy::model::Family;
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};

use super::traffic::{OTHER_PROTOCOLS, Place, SILENT_PORTS};
use crate::lab::{LocalReceiver, Namespace, Received};
use crate::packet::{Layers, protocol, reassemble};

/// The IP packet of a frame, if it is one of this version.
pub(super) fn ip_of(frame: &[u8], family: Family) -> Option<Vec<u8>> {
    let wanted: [u8; 2] = match family {
        Family::Ipv4 => [0x08, 0x00],
        Family::Ipv6 => [0x86, 0xdd],
    };
    if frame.get(12..14)? != wanted {
        return None;
    }
    let packet = frame.get(14..)?;
    let end = Layers::read(packet).map_or(packet.len(), |layers| layers.end);
    Some(packet[..end].to_vec())
}

/// IPv6's raw sockets leave the header out: a stand-in takes its place.
pub(super) fn with_header(received: Received, protocol: u8) -> Vec<u8> {
    let Received {
        source,
        destination,
        bytes,
    } = received;
    let (IpAddr::V6(source), Some(destination)) = (source, destination) else {
        return bytes;
    };
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((bytes.len() as u16).to_be_bytes());
    packet.extend([protocol, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(bytes);
    packet
}

pub(super) fn whole(packets: Vec<(Place, Vec<u8>)>) -> Vec<(Place, Vec<u8>)> {
    let mut places: Vec<Place> = packets.iter().map(|(place, _)| *place).collect();
    places.sort();
    places.dedup();
    places
        .into_iter()
        .flat_map(|place| {
            let here = packets.iter().filter(|(at, _)| *at == place);
            let joined = reassemble(here.map(|(_, bytes)| bytes.clone()).collect());
            joined.into_iter().map(move |bytes| (place, bytes))
        })
        .collect()
}

pub(super) fn receivers_of(server: &Namespace, family: Family) -> Result<Vec<(u8, LocalReceiver)>> {
    let icmp = match family {
        Family::Ipv4 => protocol::ICMP,
        Family::Ipv6 => protocol::ICMPV6,
    };
    // The last of the other protocols has no taker, so that the kernel says so.
    let others = &OTHER_PROTOCOLS[..OTHER_PROTOCOLS.len() - 1];
    [icmp, protocol::TCP, protocol::UDP, protocol::SCTP]
        .iter()
        .chain(others)
        .map(|&number| {
            let receiver = LocalReceiver::open(server, family == Family::Ipv6, number)?;
            Ok((number, receiver))
        })
        .collect()
}

/// Sockets that take every packet to the silent ports and answer none: a socket filter that keeps
/// zero bytes makes TCP and UDP drop the packet without a word (tcp_filter() in net/ipv4/tcp_ipv4.c,
/// udp_queue_rcv_one_skb() in net/ipv4/udp.c), after the INPUT hook.
pub(super) fn silent_listeners() -> Result<Vec<Socket>> {
    /// `BPF_RET | BPF_K`.
    const RETURN: u16 = 0x06;
    let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
    let mut sockets = Vec::new();
    for port in SILENT_PORTS {
        for kind in [Type::STREAM, Type::DGRAM] {
            let socket = Socket::new(Domain::IPV6, kind, None)?;
            socket.set_only_v6(false)?;
            socket.attach_filter(&nothing).context("attach a filter")?;
            let any = std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
            socket.bind(&SockAddr::from(any))?;
            if kind == Type::STREAM {
                socket.listen(8)?;
            }
            sockets.push(socket);
        }
    }
    Ok(sockets)
}
