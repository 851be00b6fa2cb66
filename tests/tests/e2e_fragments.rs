//! Datagrams in fragments, in every order: what is delivered and what is counted, beside iptables, which puts them
//! together first.

use anyhow::{Context as _, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{GuideLab, under_both, with_fwbpf};
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{datagram, ip, udp};
use fwbpf_tests::lab::{Firewall as _, FrameSocket, Fwbpf, mac};
use fwbpf_tests::packet::{Dressing, Packet, Payload, frame};

/// A rule that sees all, one that accepts, and one that drops; the state has netfilter track, and so put together.
const RULES: &str = "*raw\n:PREROUTING ACCEPT\n-A PREROUTING -p udp -m udp --dport 5000:5001\nCOMMIT\n\
    *filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n\
    -A INPUT -p udp -m udp --dport 5000 -m conntrack --ctstate NEW -j ACCEPT\n\
    -A INPUT -p udp -m udp --dport 5001 -j DROP\nCOMMIT\n";
const SEEN: &str = "-A PREROUTING -p udp -m udp --dport 5000:5001";
const ACCEPTED: &str = "-A INPUT -p udp -m udp --dport 5000 -m conntrack --ctstate NEW -j ACCEPT";
const DROPPED: &str = "-A INPUT -p udp -m udp --dport 5001 -j DROP";

const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// Bytes of a datagram's data, and of a fragment: three of them.
const DATA: usize = 40;
const FRAGMENT: usize = 16;

/// Sends datagrams from the internet in fragments, each with ports and an identification of its own.
struct Sender<'a> {
    wire: &'a FrameSocket,
    sent: u16,
}

impl Sender<'_> {
    fn send(&mut self, version: usize, to: &str, port: u16, order: [usize; 3]) -> Result<()> {
        self.sent += 1;
        let packet = Packet {
            source: ip(INTERNET[version]),
            destination: ip(to),
            ttl: 64,
            id: self.sent,
            tos: 0,
            mss: None,
            dressing: Dressing::Plain,
            payload: Payload::Udp {
                ports: (4000 + self.sent, port),
                data: vec![0x5a; DATA],
            },
        };
        let fragments = packet.fragments(FRAGMENT);
        ensure!(fragments.len() == order.len(), "{}", fragments.len());
        for index in order {
            let frame = frame(mac::OUTSIDE, mac::SERVER, &fragments[index]);
            self.wire.send(&frame)?;
        }
        Ok(())
    }
}

#[test]
fn what_comes_to_this_host_in_any_order_counts_once_and_whole() {
    under_both("fragments", |guide| {
        guide.load(RULES, RULES)?;
        let wire = FrameSocket::open(&guide.lab.outside, "wire0")?;
        let mut sender = Sender {
            wire: &wire,
            sent: 0,
        };
        for (version, server) in SERVER.into_iter().enumerate() {
            let accepting = udp(&guide.lab.server, ip(server), 5000)?;
            let refusing = udp(&guide.lab.server, ip(server), 5001)?;
            for (number, order) in ORDERS.into_iter().enumerate() {
                sender.send(version, server, 5000, order)?;
                let arrived = datagram(&accepting)?;
                ensure!(arrived.is_some(), "{order:?}: it did not arrive");
                sender.send(version, server, 5001, order)?;
                ensure_counts(guide, version, number as u64 + 1)
                    .with_context(|| format!("after {order:?} to {server}"))?;
            }
            ensure!(datagram(&refusing)?.is_none(), "a dropped one arrived");
            ensure!(datagram(&accepting)?.is_none(), "one arrived twice");
        }
        Ok(())
    });
}

/// As many datagrams to either port, each counted as one packet with one header.
fn ensure_counts(guide: &GuideLab, version: usize, each: u64) -> Result<()> {
    let family = [Family::Ipv4, Family::Ipv6][version];
    let length = ([20, 40][version] + 8 + DATA) as u64;
    for (rule, packets) in [(ACCEPTED, each), (DROPPED, each), (SEEN, 2 * each)] {
        let counted = guide.count(family, rule)?;
        let expected = (packets, packets * length);
        ensure!(
            counted == expected,
            "`{rule}` counts {counted:?} instead of {expected:?}"
        );
    }
    Ok(())
}

/// Nobody puts together what is forwarded: what comes before its first fragment has no ports to judge it by.
#[test]
fn what_comes_before_its_first_is_not_forwarded_and_is_counted() {
    with_fwbpf("fragments-forwarded", &[], |lab, fwbpf| {
        fwbpf.load(&[(Family::Ipv4, RULES), (Family::Ipv6, RULES)])?;
        let wire = FrameSocket::open(&lab.outside, "wire0")?;
        let mut sender = Sender {
            wire: &wire,
            sent: 0,
        };
        let mut early = 0;
        for (version, container) in CONTAINER1.into_iter().enumerate() {
            let guest = udp(&lab.container1, ip(container), 5000)?;
            for order in ORDERS {
                let ahead = order.iter().take_while(|index| **index != 0).count() as u64;
                sender.send(version, container, 5000, order)?;
                let arrived = datagram(&guest)?.is_some();
                ensure!(arrived == (ahead == 0), "{order:?}: {arrived}");
                early += ahead;
                let counted = dropped_early(fwbpf)?;
                ensure!(counted == early, "{order:?}: {counted} instead of {early}");
            }
        }
        Ok(())
    });
}

/// Later fragments that were to be forwarded before their first.
fn dropped_early(fwbpf: &Fwbpf) -> Result<u64> {
    let status = fwbpf.json(&["status"])?;
    let drops = status["drops"].as_array().context("drops")?;
    let mut of_it = drops
        .iter()
        .filter(|drop| drop["name"] == "fragment_without_first");
    Ok(of_it
        .next()
        .map_or(0, |drop| drop["count"].as_u64().unwrap_or(0)))
}
