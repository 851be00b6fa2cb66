//! A packet in words, as the kernel's own logger writes it (net/netfilter/nf_log_syslog.c): people
//! search for this, and programs read it.

use std::fmt::{Arguments, Write as _};
use std::net::Ipv4Addr;

use fw_common::abi::event::Event;

use crate::policy::model::{Family, Log, Target};

/// An event, and what is known of its rule and its interfaces.
#[derive(Debug)]
pub struct Said<'a> {
    /// The interface it came in by, or nothing.
    pub in_name: String,
    /// The interface it leaves by, or nothing.
    pub out_name: String,
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

    /// `None` where the kernel's line breaks off.
    fn ipv4(&mut self, at: usize) -> Option<()> {
        let Some(header) = self.at::<20>(at) else {
            self.add(format_args!("TRUNCATED"));
            return None;
        };
        let address = |at: usize| {
            let [a, b, c, d] = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            Ipv4Addr::new(a, b, c, d)
        };
        let flags = self.half(at + 6);
        // The whole packet may be longer than its header can say.
        let length = match (self.half(at + 2), at) {
            (0, 0) => self.bytes,
            (length, _) => length.into(),
        };
        let (tos, ttl, id) = (header[1], header[8], self.half(at + 4));
        let (from, to) = (address(12), address(16));
        self.add(format_args!("SRC={from} DST={to} "));
        let (kind, precedence) = (tos & 0x1e, tos & 0xe0);
        self.add(format_args!(
            "LEN={length} TOS=0x{kind:02X} PREC=0x{precedence:02X} TTL={ttl} ID={id} "
        ));
        for (bit, name) in [(0x8000, "CE "), (0x4000, "DF "), (0x2000, "MF ")] {
            if flags & bit != 0 {
                self.add(format_args!("{name}"));
            }
        }
        let offset = flags & 0x1fff;
        if offset != 0 {
            self.add(format_args!("FRAG:{offset} "));
        }
        let next = at + usize::from(header[0] & 15) * 4;
        if self.options.ip_options && next > at + 20 {
            let Some(options) = self.packet.get(at + 20..next) else {
                self.add(format_args!("TRUNCATED"));
                return None;
            };
            let options = hex(options);
            self.add(format_args!("OPT ({options}) "));
        }
        let later = offset != 0;
        match header[9] {
            TCP => self.tcp(next, later)?,
            UDP | UDPLITE => self.udp(next, later, header[9])?,
            ICMP => {
                self.add(format_args!("PROTO=ICMP "));
                if !later {
                    self.icmp(next, at == 0);
                }
            }
            protocol @ (AH | ESP) => {
                let spi = match protocol {
                    AH => ("AH", next + 4, 12),
                    _ => ("ESP", next, 8),
                };
                // For AH, the kernel says nothing at all about a later fragment.
                if protocol == ESP || !later {
                    self.spi(spi, next, later);
                }
            }
            other => self.add(format_args!("PROTO={other} ")),
        }
        Some(())
    }

    fn spi(&mut self, (name, spi, length): (&str, usize, usize), at: usize, later: bool) {
        self.add(format_args!("PROTO={name} "));
        if !later && self.has(at, length) {
            let spi = self.word(spi);
            self.add(format_args!("SPI=0x{spi:x} "));
        }
    }

    fn icmp(&mut self, at: usize, outer: bool) {
        if !self.has(at, 8) {
            return;
        }
        let (kind, code) = (self.byte(at), self.byte(at + 1));
        self.add(format_args!("TYPE={kind} CODE={code} "));
        let needed = match kind {
            0 | 8 => 4,
            3 | 4 | 5 | 11 | 12 => 28,
            13 | 14 => 20,
            17 | 18 => 12,
            _ => 0,
        };
        let rest = self.bytes.saturating_sub(at);
        if rest < needed {
            return self.add(format_args!("INCOMPLETE [{rest} bytes] "));
        }
        match kind {
            0 | 8 => {
                let (id, sequence) = (self.half(at + 4), self.half(at + 6));
                self.add(format_args!("ID={id} SEQ={sequence} "));
            }
            12 => {
                let parameter = self.byte(at + 4);
                self.add(format_args!("PARAMETER={parameter} "));
            }
            3 | 4 | 5 | 11 => {
                if kind == 5 {
                    let gateway = Ipv4Addr::from_bits(self.word(at + 4));
                    self.add(format_args!("GATEWAY={gateway} "));
                }
                if outer {
                    self.add(format_args!("["));
                    self.ipv4(at + 8);
                    self.add(format_args!("] "));
                }
                if (kind, code) == (3, 4) {
                    let mtu = self.half(at + 6);
                    self.add(format_args!("MTU={mtu} "));
                }
            }
            _ => {}
        }
    }

    fn tcp(&mut self, at: usize, later: bool) -> Option<()> {
        self.add(format_args!("PROTO=TCP "));
        if later {
            return Some(());
        }
        if !self.has(at, 20) {
            return None;
        }
        let (from, to) = (self.half(at), self.half(at + 2));
        self.add(format_args!("SPT={from} DPT={to} "));
        if self.options.tcp_sequence {
            let (sequence, acknowledged) = (self.word(at + 4), self.word(at + 8));
            self.add(format_args!("SEQ={sequence} ACK={acknowledged} "));
        }
        let (window, flags) = (self.half(at + 14), self.half(at + 12));
        // The reserved bits between the header's length and the flags, in the kernel's place.
        let reserved = (flags & 0x0e00) >> 6;
        self.add(format_args!("WINDOW={window} RES=0x{reserved:02x} "));
        const NAMES: [(u16, &str); 9] = [
            (0x100, "AE"),
            (0x80, "CWR"),
            (0x40, "ECE"),
            (0x20, "URG"),
            (0x10, "ACK"),
            (0x08, "PSH"),
            (0x04, "RST"),
            (0x02, "SYN"),
            (0x01, "FIN"),
        ];
        for (bit, name) in NAMES {
            if flags & bit != 0 {
                self.add(format_args!("{name} "));
            }
        }
        let urgent = self.half(at + 18);
        self.add(format_args!("URGP={urgent} "));
        let length = usize::from(flags >> 12) * 4;
        if self.options.tcp_options && length > 20 {
            let Some(options) = self.packet.get(at + 20..at + length) else {
                self.add(format_args!("OPT (TRUNCATED)"));
                return None;
            };
            let options = hex(options);
            self.add(format_args!("OPT ({options}) "));
        }
        Some(())
    }

    fn udp(&mut self, at: usize, later: bool, protocol: u8) -> Option<()> {
        let name = if protocol == UDP { "UDP" } else { "UDPLITE" };
        self.add(format_args!("PROTO={name} "));
        if later {
            return Some(());
        }
        if !self.has(at, 8) {
            return None;
        }
        let (from, to, length) = (self.half(at), self.half(at + 2), self.half(at + 4));
        self.add(format_args!("SPT={from} DPT={to} LEN={length} "));
        Some(())
    }

    fn ipv6(&mut self, at: usize, outer: bool) -> Option<()> {
        let Some(header) = self.at::<40>(at) else {
            self.add(format_args!("TRUNCATED"));
            return None;
        };
        let (from, to) = (groups(&header[8..24]), groups(&header[24..40]));
        self.add(format_args!("SRC={from} DST={to} "));
        let first = self.word(at);
        let (class, label, hops) = (first >> 20 & 0xff, first & 0xf_ffff, header[7]);
        let length = match (self.half(at + 4), outer) {
            (0, true) => self.bytes,
            (payload, _) => usize::from(payload) + 40,
        };
        self.add(format_args!(
            "LEN={length} TC={class} HOPLIMIT={hops} FLOWLBL={label} "
        ));
        let (mut next, mut at, mut later) = (header[6], at + 40, false);
        while matches!(next, 0 | 43 | 44 | AH | ESP | 60) {
            if self.at::<2>(at).is_none() {
                self.add(format_args!("TRUNCATED"));
                return None;
            }
            let (header_next, units) = (self.byte(at), usize::from(self.byte(at + 1)));
            let options = self.options.ip_options;
            if options {
                self.add(format_args!("OPT ( "));
            }
            let length = match next {
                44 => {
                    self.fragment(at, &mut later)?;
                    8
                }
                AH | ESP => {
                    if options {
                        self.security(next, at, later)?;
                    }
                    if next == ESP {
                        return None;
                    }
                    (units + 2) * 4
                }
                _ if later => {
                    if options {
                        self.add(format_args!(")"));
                    }
                    return None;
                }
                _ => (units + 1) * 8,
            };
            if options {
                self.add(format_args!(") "));
            }
            (next, at) = (header_next, at + length);
        }
        match next {
            TCP => self.tcp(at, later)?,
            UDP | UDPLITE => self.udp(at, later, next)?,
            ICMPV6 => self.icmpv6(at, later, outer)?,
            other => self.add(format_args!("PROTO={other} ")),
        }
        Some(())
    }

    fn fragment(&mut self, at: usize, later: &mut bool) -> Option<()> {
        self.add(format_args!("FRAG:"));
        if self.at::<8>(at).is_none() {
            self.add(format_args!("TRUNCATED "));
            return None;
        }
        let (offset, id) = (self.half(at + 2), self.word(at + 4));
        self.add(format_args!("{} ", offset & 0xfff8));
        if offset & 1 != 0 {
            self.add(format_args!("INCOMPLETE "));
        }
        self.add(format_args!("ID:{id:08x} "));
        *later |= offset & 0xfff8 != 0;
        Some(())
    }

    fn security(&mut self, protocol: u8, at: usize, later: bool) -> Option<()> {
        let (name, spi, length, end) = match protocol {
            AH => ("AH", at + 4, 12, " "),
            _ => ("ESP", at, 8, " )"),
        };
        self.add(format_args!("{name} "));
        if later {
            self.add(format_args!(")"));
            return None;
        }
        if at + length > self.packet.len() {
            let rest = self.bytes.saturating_sub(at);
            self.add(format_args!("INCOMPLETE [{rest} bytes] )"));
            return None;
        }
        let spi = self.word(spi);
        self.add(format_args!("SPI=0x{spi:x}{end}"));
        Some(())
    }

    fn icmpv6(&mut self, at: usize, later: bool, outer: bool) -> Option<()> {
        self.add(format_args!("PROTO=ICMPv6 "));
        if later {
            return Some(());
        }
        if !self.has(at, 8) {
            return None;
        }
        let (kind, code) = (self.byte(at), self.byte(at + 1));
        self.add(format_args!("TYPE={kind} CODE={code} "));
        match kind {
            128 | 129 => {
                let (id, sequence) = (self.half(at + 4), self.half(at + 6));
                self.add(format_args!("ID={id} SEQ={sequence} "));
            }
            1..=4 => {
                if kind == 4 {
                    let pointer = self.word(at + 4);
                    self.add(format_args!("POINTER={pointer:08x} "));
                }
                if outer {
                    self.add(format_args!("["));
                    self.ipv6(at + 8, false);
                    self.add(format_args!("] "));
                }
                if kind == 2 {
                    let mtu = self.word(at + 4);
                    self.add(format_args!("MTU={mtu} "));
                }
            }
            _ => {}
        }
        Some(())
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

/// `2001:0db8:0000:0000:0000:0000:0000:0001`: the kernel's `%pI6`.
fn groups(address: &[u8]) -> String {
    let (pairs, _) = address.as_chunks::<2>();
    let groups: Vec<_> = pairs
        .iter()
        .map(|pair| format!("{:04x}", u16::from_be_bytes(*pair)))
        .collect();
    groups.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Nflog;

    fn event(packet: &[u8]) -> Event {
        let mut event = Event {
            bytes: packet.len() as u32,
            taken: packet.len() as u32,
            ..Event::default()
        };
        event.packet[..packet.len()].copy_from_slice(packet);
        event
    }

    fn said<'a>(target: &'a Target, family: Family, event: &'a Event) -> Said<'a> {
        Said {
            in_name: "eth0".into(),
            out_name: String::new(),
            family,
            target,
            event,
        }
    }

    /// A SYN with one option (MSS 1460).
    fn syn() -> Vec<u8> {
        let mut packet = vec![
            0x45, 0x08, 0, 44, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1,
        ];
        packet.extend([
            0x9c, 0x40, 0, 22, 0, 0, 0, 7, 0, 0, 0, 0, 0x60, 2, 0xfa, 0xf0, 0, 0, 0, 0,
        ]);
        packet.extend([2, 4, 5, 0xb4]);
        packet
    }

    #[test]
    fn a_syn_reads_as_in_the_kernels_log() {
        let target = Target::Log(Log {
            prefix: "drop: ".into(),
            ..Log::PLAIN
        });
        let mut event = event(&syn());
        event.link = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0, 0];
        event.link[14..].copy_from_slice(&14_u16.to_ne_bytes());
        assert_eq!(
            line(&said(&target, Family::Ipv4, &event)),
            "drop: IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 SRC=192.0.2.2 DST=192.0.2.1 \
             LEN=44 TOS=0x08 PREC=0x00 TTL=64 ID=4660 DF PROTO=TCP SPT=40000 DPT=22 WINDOW=64240 RES=0x00 \
             SYN URGP=0 "
        );
    }

    #[test]
    fn options_add_what_they_name() {
        let target = Target::Log(Log {
            tcp_sequence: true,
            tcp_options: true,
            ..Log::PLAIN
        });
        let mut event = event(&syn());
        event.mark = 0x2a;
        let line = line(&said(&target, Family::Ipv4, &event));
        assert!(line.contains(" SEQ=7 ACK=0 WINDOW="), "{line}");
        assert!(line.ends_with("URGP=0 OPT (020405B4) MARK=0x2a "), "{line}");
    }

    #[test]
    fn who_sends_is_told_where_that_is_asked_and_known() {
        let asked = Target::Log(Log {
            owner: true,
            ..Log::PLAIN
        });
        let mut event = event(&syn());
        (event.mark, event.user, event.group) = (0x2a, 33, 34);
        let end = |target, event: &Event| {
            let line = line(&said(target, Family::Ipv4, event));
            line.split_once("URGP=0 ").map(|(_, end)| end.to_owned())
        };
        assert_eq!(end(&asked, &event).as_deref(), Some("MARK=0x2a "));
        event.owned = 1;
        let told = "UID=33 GID=34 MARK=0x2a ";
        assert_eq!(end(&asked, &event).as_deref(), Some(told));
        let plain = Target::Log(Log::PLAIN);
        assert_eq!(end(&plain, &event).as_deref(), Some("MARK=0x2a "));
    }

    #[test]
    fn an_error_quotes_its_packet_in_brackets() {
        let target = Target::Log(Log::PLAIN);
        let mut packet = vec![
            0x45, 0xc0, 0, 72, 0, 1, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 3, 4, 0, 0, 0,
            0, 5, 0xdc,
        ];
        packet.extend(syn());
        let line = line(&said(&target, Family::Ipv4, &event(&packet)));
        assert_eq!(
            line,
            "IN=eth0 OUT= MAC= SRC=192.0.2.1 DST=192.0.2.2 LEN=72 TOS=0x00 PREC=0xC0 TTL=64 ID=1 PROTO=ICMP \
             TYPE=3 CODE=4 [SRC=192.0.2.2 DST=192.0.2.1 LEN=44 TOS=0x08 PREC=0x00 TTL=64 ID=4660 DF PROTO=TCP \
             SPT=40000 DPT=22 WINDOW=64240 RES=0x00 SYN URGP=0 ] MTU=1500 "
        );
    }

    #[test]
    fn ipv6_is_written_out_and_nflog_names_its_group() {
        let target = Target::Nflog(Nflog {
            group: 3,
            prefix: "six ".into(),
            ..Nflog::PLAIN
        });
        let mut packet = vec![0x60, 0x20, 0, 5, 0, 12, 17, 63];
        packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0x10, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        assert_eq!(
            line(&said(&target, Family::Ipv6, &event(&packet))),
            "six IN=eth0 OUT= MAC= SRC=2001:0db8:0000:0000:0000:0000:0000:0002 \
             DST=2001:0db8:0000:0000:0000:0000:0000:0001 LEN=52 TC=2 HOPLIMIT=63 FLOWLBL=5 PROTO=UDP \
             SPT=4096 DPT=53 LEN=12 NFLOG=3 "
        );
    }

    #[test]
    fn a_packet_cut_anywhere_gives_a_line() {
        let target = Target::Log(Log {
            tcp_sequence: true,
            tcp_options: true,
            ip_options: true,
            ..Log::PLAIN
        });
        let whole = syn();
        for length in 0..whole.len() {
            let mut event = event(&whole[..length]);
            event.bytes = whole.len() as u32;
            for family in [Family::Ipv4, Family::Ipv6] {
                assert!(line(&said(&target, family, &event)).starts_with("IN=eth0"));
            }
        }
    }
}
