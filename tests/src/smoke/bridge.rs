//! What the server's bridge only switches, while it hands that over (`bridge-nf-call-iptables`).

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;

use crate::guide::GuideLab;
use crate::lab::address::{BRIDGE, CONTAINER1, CONTAINER2};
use crate::lab::saved::count;
use crate::lab::sockets::{PATIENCE, connect, datagram, ip, round_trip, send, tcp_echo, udp};

// One way over the bridge is open, and to the bridge itself from one port.
const TO_THE_BRIDGE: &str =
    "-A INPUT -p udp -m physdev --physdev-in veth1 -m udp --dport 20 -j ACCEPT";
const ANSWERS: &str = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
const OVER_THE_BRIDGE: &str = "-A FORWARD -p udp -m physdev --physdev-in veth1 --physdev-out veth2 \
    -m udp --dport 4000 -j ACCEPT";
const STREAMS: &str = "-A FORWARD -p tcp -m physdev --physdev-in veth1 --physdev-out veth2 \
    -m tcp --dport 7 -j ACCEPT";
/// IPv6's hosts find each other by ICMPv6.
const DISCOVERY: &str = "-A INPUT -p ipv6-icmp -j ACCEPT\n-A FORWARD -p ipv6-icmp -j ACCEPT\n";

pub(super) fn switched(guide: &GuideLab) -> Result<()> {
    let lab = &guide.lab;
    lab.hand_over(true)?;
    let held = guide
        .load(&rules(""), &rules(DISCOVERY))
        .and_then(|()| tcp_echo(&lab.container2, 7))
        .and_then(|()| (0..2).try_for_each(|version| judged(guide, version)));
    lab.hand_over(false)?;
    guide.load_guide()?;
    held?;

    // Layer 2 alone decides again.
    for version in 0..2 {
        let sender = udp(&lab.container1, ip(CONTAINER1[version]), 0)?;
        let receiver = udp(&lab.container2, ip(CONTAINER2[version]), 4001)?;
        send(&sender, ip(CONTAINER2[version]), 4001, b"switched")?;
        ensure!(datagram(&receiver)?.is_some(), "it is still judged");
    }
    Ok(())
}

/// What may cross does, nothing else does, and all of it is counted.
fn judged(guide: &GuideLab, version: usize) -> Result<()> {
    let lab = &guide.lab;
    let family = [Family::Ipv4, Family::Ipv6][version];
    let [one, two, bridge] = [CONTAINER1, CONTAINER2, BRIDGE].map(|address| ip(address[version]));
    let near = udp(&lab.container1, one, 4000)?;
    let far = udp(&lab.container2, two, 4000)?;
    let closed = udp(&lab.container2, two, 4001)?;
    let own = udp(&lab.server, bridge, 20)?;
    let text = b"switched";
    let bytes = [28, 48][version] + text.len() as u64;
    send(&near, two, 4001, text)?;
    ensure!(datagram(&closed)?.is_none(), "the closed port is open");
    send(&far, one, 4000, text)?;
    ensure!(datagram(&near)?.is_none(), "it is open the other way, too");

    send(&near, two, 4000, text)?;
    let from = datagram(&far)?.context("the open port is closed")?;
    ensure!(from == near.local_addr()?, "it comes from {from}");
    send(&far, one, 4000, text)?;
    ensure!(
        datagram(&near)? == Some(far.local_addr()?),
        "there is no answer"
    );

    // What is for the bridge goes up, and says by which port it came.
    send(&far, bridge, 20, text)?;
    ensure!(datagram(&own)?.is_none(), "the other port is open");
    send(&near, bridge, 20, text)?;
    ensure!(datagram(&own)?.is_some(), "no port is open");

    let counters = guide.firewall.save(family)?;
    for (rule, packets) in [
        (":INPUT DROP", 1),
        (TO_THE_BRIDGE, 1),
        (":FORWARD DROP", 2),
        (OVER_THE_BRIDGE, 1),
        (ANSWERS, 1),
    ] {
        let counted = count(&counters, rule)?;
        let expected = (packets, packets * bytes);
        ensure!(counted == expected, "{rule}: {counted:?}, not {expected:?}");
    }

    // Segments of more than a frame.
    let mut stream = connect(&lab.container1, None, SocketAddr::new(two, 7), PATIENCE)
        .context("the containers connect")?;
    round_trip(&mut stream, &vec![0x42; 60_000])
}

fn rules(more: &str) -> String {
    let rules = [TO_THE_BRIDGE, ANSWERS, OVER_THE_BRIDGE, STREAMS].join("\n");
    format!("*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n{rules}\n{more}COMMIT\n")
}
