//! The header parser beside a second one that was written apart from it.

use fw_common::abi::Family;
use fw_common::datapath::header::{Headers, Icmp, Parsed, Part, parse};
use fw_user::sim::{Host, HostTables, SlicePacket};

use super::Input;
use super::wire::{self, Kind, Wire};

/// A frame: the first byte says whether it has an Ethernet header, the rest is the frame.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let raw = input.byte() & 1 != 0;
    let packet = if raw {
        SlicePacket::raw_ip(input.0.to_vec(), 2)
    } else {
        SlicePacket::ethernet(input.0.to_vec(), 2)
    };
    let l3 = if raw { 0 } else { 14 };
    let tables = HostTables::new(Host::default());
    let mut headers = Headers::default();
    let parsed = parse(&packet, &tables, l3, &mut headers);
    let wire = wire::read(&packet.bytes, packet.ethertype, l3 as usize);
    match (parsed, &wire) {
        (Parsed::NotOurs, Wire::NotOurs) | (Parsed::Malformed, Wire::Malformed) => {}
        (Parsed::Headers, Wire::Packet(told)) => {
            assert_eq!(as_wire(&headers), **told);
            assert_eq!(usize::from(headers.l4), told.l4);
        }
        _ => panic!("{parsed:?}, {headers:?}, but {wire:?}"),
    }
}

/// The headers as the second parser would tell them.
pub fn as_wire(headers: &Headers) -> wire::Told {
    let address = |words| fw_user::addr::from_abi(headers.family, words);
    wire::Told {
        v6: headers.family == Family::V6,
        source: address(headers.key.source),
        destination: address(headers.key.destination),
        protocol: headers.key.protocol as u8,
        ports: ((headers.key.ports >> 16) as u16, headers.key.ports as u16),
        tcp_flags: headers.tcp_flags,
        bytes: headers.bytes,
        l4: headers.l4.into(),
        part: match headers.part {
            Part::Whole => wire::Part::Whole,
            Part::First => wire::Part::First,
            Part::Later => wire::Part::Later,
        },
        id: headers.fragment_id,
        broken: headers.broken,
        kind: match headers.icmp {
            Icmp::No => Kind::NotIcmp,
            Icmp::Request => Kind::Request,
            Icmp::Reply => Kind::Reply,
            Icmp::Error => Kind::Error,
            Icmp::Untracked => Kind::Untracked,
            Icmp::Other => Kind::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight of the longest extension headers end 16 KiB behind the first. When places were bounded to
    /// that, the sum wrapped around to the first one, whose bytes were then ports.
    #[test]
    fn long_extension_headers_do_not_lead_back_to_the_first() {
        const OPTIONS: u8 = 60;
        const UDP: u8 = 17;
        let mut extensions = Vec::new();
        for number in 1..=8 {
            let next = if number == 8 { UDP } else { OPTIONS };
            // Of the last one only the beginning is there.
            let length = if number == 8 { 8 } else { 2048 };
            let mut header = vec![0; length];
            header[..2].copy_from_slice(&[next, 255]);
            extensions.extend(header);
        }
        let mut bytes = vec![0; 13];
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend((extensions.len() as u16).to_be_bytes());
        bytes.extend([OPTIONS, 64]);
        bytes.extend([0x20; 32]);
        bytes.extend(extensions);
        let wire = wire::read(&bytes[1..], 0x86dd, 14);
        assert_eq!(wire, Wire::Malformed);
        run(&bytes);
    }
}
