//! Packets in words, for reports.

use super::{Layers, checksum_is_sound, flags, protocol};

/// One line: addresses, protocol, what matters of it.
pub fn describe(bytes: &[u8]) -> String {
    let Some(layers) = Layers::read(bytes) else {
        return format!("{} bytes that are not IP", bytes.len());
    };
    let mut text = match layers.ports(bytes) {
        Some((source, destination)) => format!(
            "{} port {source} > {} port {destination}",
            layers.source, layers.destination
        ),
        None => format!("{} > {}", layers.source, layers.destination),
    };
    let at = |offset: usize| bytes.get(layers.body + offset).copied().unwrap_or(0);
    text += &match layers.protocol {
        protocol::TCP => format!(
            " tcp {} seq {} ack {} window {} options {:02x?}",
            flag_names(at(13)),
            u32::from_be_bytes([at(4), at(5), at(6), at(7)]),
            u32::from_be_bytes([at(8), at(9), at(10), at(11)]),
            u16::from_be_bytes([at(14), at(15)]),
            (20..usize::from(at(12) >> 4) * 4)
                .map(at)
                .collect::<Vec<_>>()
        ),
        protocol::UDP => " udp".into(),
        protocol::SCTP => format!(
            " sctp tag {:#x} chunks {}",
            u32::from_be_bytes([at(4), at(5), at(6), at(7)]),
            chunks(bytes.get(layers.body + 12..).unwrap_or_default())
        ),
        protocol::ICMP => format!(" icmp type {} code {}", at(0), at(1)),
        protocol::ICMPV6 => format!(" icmpv6 type {} code {}", at(0), at(1)),
        other => format!(" protocol {other}"),
    };
    if let Some(id) = layers.echo_id(bytes) {
        text += &format!(" id {id}");
    }
    if let Some((offset, more)) = layers.fragment {
        text += &format!(" fragment at {offset}{}", if more { ", more" } else { "" });
    }
    let ttl = if layers.source.is_ipv4() {
        bytes[8]
    } else {
        bytes[7]
    };
    text += &format!(", ttl {ttl}, {} bytes", layers.end);
    if layers.quoted(bytes).is_none() && !checksum_is_sound(bytes) {
        text += ", checksum wrong";
    }
    if let Some(quoted) = layers.quoted(bytes).and_then(|start| bytes.get(start..)) {
        text += &format!(" [about {}]", describe_quoted(quoted));
    }
    text
}

/// Types and flags of SCTP's chunks, and the tag that an INIT or its answer tells.
fn chunks(mut bytes: &[u8]) -> String {
    let mut words = Vec::new();
    while let [kind, flags, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        words.push(match rest.first_chunk() {
            Some(tag) if matches!(kind, 1 | 2) && length > 4 => {
                format!(
                    "{kind}/{flags} ({length} bytes, {:#x})",
                    u32::from_be_bytes(*tag)
                )
            }
            _ => format!("{kind}/{flags} ({length} bytes)"),
        });
        bytes = bytes
            .get(length.next_multiple_of(4).max(4)..)
            .unwrap_or_default();
    }
    words.join(", ")
}

/// `SYN,ACK`, or `none`.
pub fn flag_names(bits: u8) -> String {
    let names: Vec<&str> = [
        (flags::FIN, "FIN"),
        (flags::SYN, "SYN"),
        (flags::RST, "RST"),
        (flags::PSH, "PSH"),
        (flags::ACK, "ACK"),
        (flags::URG, "URG"),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, name)| *name)
    .collect();
    if names.is_empty() {
        "none".into()
    } else {
        names.join(",")
    }
}

fn describe_quoted(bytes: &[u8]) -> String {
    let Some(layers) = Layers::read(bytes) else {
        return "something that is not IP".into();
    };
    match layers.ports(bytes) {
        Some((source, destination)) => format!(
            "{} port {source} > {} port {destination} protocol {}",
            layers.source, layers.destination, layers.protocol
        ),
        None => format!(
            "{} > {} protocol {}",
            layers.source, layers.destination, layers.protocol
        ),
    }
}
