//! The headers of layer 3, down to what they carry.

use std::net::Ipv4Addr;

use super::{AH, ESP, ICMP, ICMPV6, TCP, Text, UDP, UDPLITE, hex};

impl Text<'_> {
    /// `None` where the kernel's line breaks off.
    pub(super) fn ipv4(&mut self, at: usize) -> Option<()> {
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

    pub(super) fn ipv6(&mut self, at: usize, outer: bool) -> Option<()> {
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

    pub(super) fn fragment(&mut self, at: usize, later: &mut bool) -> Option<()> {
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

    pub(super) fn security(&mut self, protocol: u8, at: usize, later: bool) -> Option<()> {
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
