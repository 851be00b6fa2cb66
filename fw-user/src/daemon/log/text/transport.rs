//! What IP carries: TCP, UDP, the header of IPsec, and ICMP with the packet that it quotes.

use std::net::Ipv4Addr;

use super::{Text, UDP, hex};

impl Text<'_> {
    pub(super) fn spi(
        &mut self,
        (name, spi, length): (&str, usize, usize),
        at: usize,
        later: bool,
    ) {
        self.add(format_args!("PROTO={name} "));
        if !later && self.has(at, length) {
            let spi = self.word(spi);
            self.add(format_args!("SPI=0x{spi:x} "));
        }
    }

    pub(super) fn icmp(&mut self, at: usize, outer: bool) {
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

    pub(super) fn tcp(&mut self, at: usize, later: bool) -> Option<()> {
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

    pub(super) fn udp(&mut self, at: usize, later: bool, protocol: u8) -> Option<()> {
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

    pub(super) fn icmpv6(&mut self, at: usize, later: bool, outer: bool) -> Option<()> {
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
