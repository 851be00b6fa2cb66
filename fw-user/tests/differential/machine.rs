//! A machine of the simulator's, to be sent packets one by one, and the packets.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep, TcpHeader};
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tcp::flag;
use fw_common::datapath::{Verdict, egress, ingress};
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};

pub const LO: u32 = 1;
pub const ETH0: u32 = 2;
pub const ETH1: u32 = 3;
pub const SERVER4: &str = "198.51.100.10";
pub const SERVER6: &str = "2001:db8:1::10";

/// A machine, and the scratch space of its one CPU.
pub struct Machine {
    pub tables: HostTables,
    pub scratch: Scratch,
}

impl Machine {
    /// One that accepts everything, and has these rules in nat.
    pub fn with(family: Family, rules: &str) -> Self {
        let nat = if rules.is_empty() {
            String::new()
        } else {
            format!(
                "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
                 {rules}\nCOMMIT\n"
            )
        };
        Self::loading(
            family,
            &format!("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n{nat}"),
        )
    }

    /// One with this policy.
    pub fn loading(family: Family, text: &str) -> Self {
        let file = SourceFile::new("rules", text, Some(family));
        let policy = load(&[file], LoadOptions { strict: true })
            .expect("the rules are right")
            .policy;
        let set = compile(&policy, &Slots::fresh(&policy), 1, &[]).expect("within the limits");
        let device = |index, name| HostDevice {
            masquerade4: Some(SERVER4.parse().expect("an address")),
            masquerade6: Some(SERVER6.parse().expect("an address")),
            ..HostDevice::ethernet(index, name)
        };
        let host = Host {
            broadcast: Vec::new(),
            devices: vec![
                HostDevice::loopback(),
                device(ETH0, "eth0"),
                device(ETH1, "eth1"),
            ],
            local: ["198.51.100.10/32", "2001:db8:1::10/128", "::1/128"]
                .map(|prefix| prefix.parse().expect("a prefix"))
                .to_vec(),
            ..Host::default()
        };
        let mut tables = HostTables::running(host, set);
        tables.put_sets(&policy);
        Self {
            tables,
            scratch: Scratch::default(),
        }
    }

    pub fn arrive(&mut self, device: u32, packet: SlicePacket) -> (Verdict, SlicePacket) {
        let mut packet = SlicePacket {
            device,
            arrival_device: device,
            ..packet
        };
        let verdict = ingress(&mut packet, &self.tables, &mut self.scratch);
        (verdict, packet)
    }

    pub fn leave(&mut self, device: u32, packet: SlicePacket) -> (Verdict, SlicePacket) {
        let mut packet = packet.at_egress_of(device);
        let verdict = egress(&mut packet, &self.tables, &mut self.scratch);
        (verdict, packet)
    }

    pub fn forward(&mut self, from: u32, to: u32, ip: Vec<u8>) -> SlicePacket {
        let (verdict, packet) = self.arrive(from, frame(ip));
        assert_eq!(verdict, Verdict::Pass);
        assert_ne!(packet.note, 0, "it is for this host");
        let (verdict, packet) = self.leave(to, packet);
        assert_eq!(verdict, Verdict::Pass);
        packet
    }

    /// What this host sends to itself.
    pub fn loop_back(&mut self, ip: Vec<u8>) {
        let (verdict, packet) = self.leave(LO, frame(ip).made_here());
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(self.arrive(LO, packet).0, Verdict::Pass);
    }

    pub fn label(&self) -> (u8, u8) {
        (self.scratch.tracked.ct, self.scratch.tracked.direction)
    }
}

pub fn frame(ip: Vec<u8>) -> SlicePacket {
    let ethertype: [u8; 2] = match ip[0] >> 4 {
        4 => [0x08, 0x00],
        _ => [0x86, 0xdd],
    };
    SlicePacket::ethernet([&[2; 12][..], &ethertype, &ip].concat(), ETH0)
}

pub fn ip(source: &str, destination: &str, hops: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    match (address(source), address(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), hops)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), hops)
        }
        mixed => panic!("{mixed:?}"),
    }
}

pub fn tcp(
    way: [&str; 2],
    ports: [u16; 2],
    flags: u8,
    numbers: [u32; 2],
    length: usize,
) -> Vec<u8> {
    let mut header = TcpHeader::new(ports[0], ports[1], numbers[0], 1000);
    header.acknowledgment_number = numbers[1];
    header.syn = flags & flag::SYN != 0;
    header.ack = flags & flag::ACK != 0;
    header.rst = flags & flag::RST != 0;
    header.fin = flags & flag::FIN != 0;
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .tcp_header(header)
        .write(&mut bytes, &vec![0; length])
        .expect("a packet");
    bytes
}

pub fn udp(way: [&str; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .udp(ports[0], ports[1])
        .write(&mut bytes, b"odd")
        .expect("a packet");
    bytes
}

pub fn other(way: [&str; 2], protocol: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .write(&mut bytes, IpNumber(protocol), &[0; 20])
        .expect("a packet");
    bytes
}

pub fn icmpv6(way: [&str; 2], hops: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], hops)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut bytes, rest)
        .expect("a packet");
    bytes
}

pub fn icmpv4(way: [&str; 2], kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .icmpv4_raw(kind, code, [0; 4])
        .write(&mut bytes, quoted)
        .expect("a packet");
    bytes
}
