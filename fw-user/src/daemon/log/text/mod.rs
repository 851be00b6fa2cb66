//! A packet in words, as the kernel's own logger writes it (net/netfilter/nf_log_syslog.c): people
//! search for this, and programs read it.

mod network;
mod transport;

use std::fmt::{Arguments, Write as _};

use fw_common::abi::event::Event;

use crate::policy::model::{Family, Log, Target};

/// An event, and what is known of its rule and its interfaces.
#[derive(Debug)]
pub struct Said<'a> {
    /// The interface it came in by, or nothing.
    pub in_name: String,
    /// The interface it leaves by, or nothing.
    pub out_name: String,
    /// The port of a bridge it came in by, or nothing.
    pub in_port: String,
    /// The port of a bridge it leaves by, or nothing.
    pub out_port: String,
    /// IP version.
    pub family: Family,
    /// LOG or NFLOG.
    pub target: &'a Target,
    /// The event.
    pub event: &'a Event,
}

/// The level that the line has: NFLOG has none, and gets the one of the kernel's default, notice.
pub fn level(said: &Said<'_>) -> u8 {
    match said.target {
        Target::Log(log) => log.level,
        _ => 5,
    }
}

/// The rule's prefix.
pub fn prefix<'a>(said: &Said<'a>) -> &'a str {
    match said.target {
        Target::Log(log) => &log.prefix,
        Target::Nflog(nflog) => &nflog.prefix,
        _ => "",
    }
}

/// The whole line.
pub fn line(said: &Said<'_>) -> String {
    let plain = Log::PLAIN;
    let options = match said.target {
        Target::Log(log) => log,
        _ => &plain,
    };
    let event = said.event;
    let mut text = Text {
        line: String::new(),
        packet: event.packet(),
        bytes: event.bytes as usize,
        options,
    };
    text.add(format_args!(
        "{}IN={} OUT={} ",
        prefix(said),
        said.in_name,
        said.out_name
    ));
    for (name, port) in [("PHYSIN", &said.in_port), ("PHYSOUT", &said.out_port)] {
        if !port.is_empty() {
            text.add(format_args!("{name}={port} "));
        }
    }
    if !said.in_name.is_empty() {
        text.link(event.link());
    }
    let complete = match said.family {
        Family::Ipv4 => text.ipv4(0),
        Family::Ipv6 => text.ipv6(0, true),
    };
    if complete.is_some() && options.owner && event.owned != 0 {
        text.add(format_args!("UID={} GID={} ", event.user, event.group));
    }
    if complete.is_some() && event.mark != 0 {
        text.add(format_args!("MARK=0x{:x} ", event.mark));
    }
    if let Target::Nflog(nflog) = said.target {
        text.add(format_args!("NFLOG={} ", nflog.group));
    }
    text.line
}

struct Text<'a> {
    line: String,
    packet: &'a [u8],
    /// Bytes of the packet, of which `packet` may be the beginning only.
    bytes: usize,
    options: &'a Log,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ESP: u8 = 50;
const AH: u8 = 51;
const ICMPV6: u8 = 58;
const UDPLITE: u8 = 136;

impl Text<'_> {
    fn add(&mut self, text: Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.line.write_fmt(text);
    }

    fn at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.packet.get(offset..)?.first_chunk().copied()
    }

    fn half(&self, offset: usize) -> u16 {
        self.at(offset).map_or(0, u16::from_be_bytes)
    }

    fn word(&self, offset: usize) -> u32 {
        self.at(offset).map_or(0, u32::from_be_bytes)
    }

    fn byte(&self, offset: usize) -> u8 {
        self.at(offset).map_or(0, |[byte]| byte)
    }

    /// Whether a header is there; says that it is not.
    fn has(&mut self, offset: usize, length: usize) -> bool {
        if offset + length <= self.packet.len() {
            return true;
        }
        let rest = self.bytes.saturating_sub(offset);
        self.add(format_args!("INCOMPLETE [{rest} bytes] "));
        false
    }

    fn link(&mut self, link: &[u8]) {
        if self.options.mac_decode && link.len() == 14 {
            let address = |bytes: &[u8]| colons(bytes);
            let (to, from) = (address(&link[..6]), address(&link[6..12]));
            let kind = u16::from_be_bytes([link[12], link[13]]);
            return self.add(format_args!(
                "MACSRC={from} MACDST={to} MACPROTO={kind:04x} "
            ));
        }
        self.add(format_args!("MAC={} ", colons(link)));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// `02:00:5e:10:00:01`.
fn colons(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests;
