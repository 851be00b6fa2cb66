//! Bridges that hand iptables what they only switch (`bridge-nf-call-iptables`): the same frames go through a host
//! with iptables and one with fwbpf, and come out, and are counted, in the same way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{BRIDGE, CONTAINER1, CONTAINER2, INTERNET};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{datagram as received, ip, send, udp, wait_up_to};
use fwbpf_tests::lab::{
    Daemon, Firewall, FrameSocket, Fwbpf, Iptables, Namespace, Peers, ServerLab, fwbpf_binary, mac,
    no_hand_over, ready,
};
use fwbpf_tests::packet::flags::{ACK, SYN};
use fwbpf_tests::packet::{Dressing, Packet, Payload, describe, frame};

/// What each port is for is said where it is used.
const FILTER: &str = "*filter\n\
    :INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A INPUT -m physdev --physdev-in veth1 -p udp --dport 20\n\
    -A INPUT -m physdev --physdev-in veth2 -p udp --dport 20\n\
    -A INPUT -m physdev --physdev-is-in -p udp --dport 20\n\
    -A INPUT -m physdev ! --physdev-is-in -p udp --dport 20\n\
    -A INPUT -m physdev --physdev-is-out -p udp --dport 20\n\
    -A INPUT -m pkttype --pkt-type unicast -p udp --dport 20 -j ACCEPT\n\
    -A INPUT -i docker0 -p udp --dport 9 -j ACCEPT\n\
    -A INPUT -p udp --dport 12 -j REJECT\n\
    -A INPUT -p tcp --dport 12 -j REJECT --reject-with tcp-reset\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i docker0 -o docker0 -p udp --dport 9 -j ACCEPT\n\
    -A FORWARD -i veth1 -p udp --dport 10 -j ACCEPT\n\
    -A FORWARD -o veth2 -p udp --dport 10 -j ACCEPT\n\
    -A FORWARD -m physdev --physdev-in veth1 --physdev-out veth2 --physdev-is-bridged -p udp --dport 10\n\
    -A FORWARD -m physdev --physdev-in veth+ -p udp --dport 10\n\
    -A FORWARD -m physdev ! --physdev-in veth1 -p udp --dport 10\n\
    -A FORWARD -m physdev ! --physdev-in veth1 ! --physdev-is-bridged -p udp --dport 10\n\
    -A FORWARD -m physdev --physdev-is-bridged ! --physdev-out veth1 -p udp --dport 10\n\
    -A FORWARD -m physdev --physdev-is-in -p udp --dport 10\n\
    -A FORWARD -m physdev --physdev-is-out -p udp --dport 10\n\
    -A FORWARD -m physdev ! --physdev-is-bridged -p udp --dport 10\n\
    -A FORWARD -m pkttype --pkt-type unicast -p udp --dport 10 -j ACCEPT\n\
    -A FORWARD -p udp --dport 12 -j REJECT\n\
    -A FORWARD -p tcp --dport 12 -j REJECT --reject-with tcp-reset\n\
    -A FORWARD -p tcp --dport 9 -j ACCEPT\n\
    -A FORWARD -p udp --dport 15:17 -j ACCEPT\n\
    -A FORWARD -m mac --mac-source 02:00:00:00:02:02 -p udp --dport 18 -j ACCEPT\n\
    COMMIT\n";

const RAW: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A PREROUTING -m rpfilter --invert -j DROP\n\
    -A PREROUTING -m physdev --physdev-in veth1 -i docker0\n\
    -A PREROUTING -p udp --dport 17 -j NOTRACK\n\
    COMMIT\n\
    *mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A PREROUTING -m conntrack --ctstate NEW\n\
    -A FORWARD -i docker0 -o docker0\n\
    -A POSTROUTING -m physdev --physdev-out veth2 -o docker0\n\
    COMMIT\n";

fn nat(version: usize) -> String {
    let to = CONTAINER2[version];
    let to = [format!("{to}:9"), format!("[{to}]:9")][version].clone();
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A PREROUTING -i docker0 -p udp --dport 15 -j DNAT --to-destination {to}\n\
         -A PREROUTING -i docker0 -p tcp --dport 15 -j DNAT --to-destination {to}\n\
         -A PREROUTING -i docker0 -p udp --dport 19 -j REDIRECT --to-ports 9\n\
         -A POSTROUTING -o docker0 -p udp --dport 16 -j MASQUERADE\n\
         COMMIT\n"
    )
}

/// A host with a firewall, and the wires to its bridge, of which the first two are, and to the outside.
struct Side {
    firewall: Box<dyn Firewall>,
    wires: [FrameSocket; 3],
    _lab: ServerLab,
}

const FIRST: usize = 0;
const SECOND: usize = 1;

impl Side {
    fn new(test: &str, make: impl FnOnce(&ServerLab) -> Result<Box<dyn Firewall>>) -> Result<Self> {
        let lab = ServerLab::new(test, Peers::Emulated)?;
        lab.hand_over(true)?;
        let open = |namespace: &Namespace, name| FrameSocket::open(namespace, name);
        Ok(Self {
            firewall: make(&lab)?,
            wires: [
                open(&lab.container1, "eth0")?,
                open(&lab.container2, "eth0")?,
                open(&lab.outside, "wire0")?,
            ],
            _lab: lab,
        })
    }

    fn load(&self) -> Result<()> {
        let rules = [0, 1].map(|version| format!("{RAW}{}{FILTER}", nat(version)));
        self.firewall
            .load_anew(&[(Family::Ipv4, &rules[0]), (Family::Ipv6, &rules[1])])
    }

    /// Sends a frame, and says what comes out of it where.
    fn send(&self, wire: usize, frame: &[u8]) -> Result<Vec<String>> {
        self.wires[wire].send(frame)?;
        self.hear(Duration::from_millis(60))
    }

    /// What comes out of wires until they are silent for so long.
    fn hear(&self, patience: Duration) -> Result<Vec<String>> {
        let mut seen = Vec::new();
        let mut last = Instant::now();
        while last.elapsed() < patience {
            for (number, wire) in self.wires.iter().enumerate() {
                while let Some(frame) = wire.receive()? {
                    last = Instant::now();
                    if matches!(frame[12..14], [8, 0] | [0x86, 0xdd]) {
                        let link = &frame[..12];
                        seen.push(format!("{number}: {link:02x?} {}", describe(&frame[14..])));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        seen.sort();
        Ok(seen)
    }

    /// All rules and policies with their counters, each behind its table's name.
    fn counters(&self, version: usize) -> Result<Vec<String>> {
        let save = self.firewall.save([Family::Ipv4, Family::Ipv6][version])?;
        let mut table = "";
        let mut lines = Vec::new();
        for line in save.lines() {
            match line.strip_prefix('*') {
                Some(name) => table = name,
                None if line.starts_with([':', '[']) => lines.push(format!("{table} {line}")),
                None => {}
            }
        }
        lines.sort();
        Ok(lines)
    }
}

fn packet(version: usize, from: [&str; 2], to: [&str; 2], payload: Payload) -> Vec<u8> {
    let packet = Packet {
        source: ip(from[version]),
        destination: ip(to[version]),
        ttl: 64,
        id: 1,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload,
    };
    packet.bytes()
}

fn datagram(ports: (u16, u16)) -> Payload {
    Payload::Udp {
        ports,
        data: b"switched".to_vec(),
    }
}

fn segment(ports: (u16, u16), flags: u8) -> Payload {
    Payload::Tcp {
        ports,
        sequence: 1000,
        acknowledgement: if flags & ACK != 0 { 1001 } else { 0 },
        flags,
        window: 65_000,
        options: Vec::new(),
        data: Vec::new(),
    }
}

/// What is sent: by whom, to which link-layer address, and the packet.
fn steps(version: usize) -> Vec<(&'static str, usize, [u8; 6], Vec<u8>)> {
    let (one, two) = (CONTAINER1, CONTAINER2);
    let to = |from, to, port| packet(version, from, to, datagram((4000 + port, port)));
    let back = |from, to, port| packet(version, from, to, datagram((port, 4000 + port)));
    let syn = |from, to, port| packet(version, from, to, segment((5000 + port, port), SYN));
    let all = ["172.17.255.255", "ff02::1"];
    let to_many = [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1]][version];
    vec![
        ("switched", FIRST, mac::CONTAINER2, to(one, two, 9)),
        ("its answer", SECOND, mac::CONTAINER1, back(two, one, 9)),
        ("by ports", FIRST, mac::CONTAINER2, to(one, two, 10)),
        ("by ports, back", SECOND, mac::CONTAINER1, to(two, one, 10)),
        (
            "by ports, routed",
            FIRST,
            mac::BRIDGE,
            to(one, INTERNET, 10),
        ),
        (
            "by ports, routed too",
            SECOND,
            mac::BRIDGE,
            to(two, INTERNET, 10),
        ),
        (
            "refused by the policy",
            FIRST,
            mac::CONTAINER2,
            to(one, two, 11),
        ),
        ("REJECT", FIRST, mac::CONTAINER2, to(one, two, 12)),
        ("REJECT at INPUT", SECOND, mac::BRIDGE, to(two, BRIDGE, 12)),
        (
            "DNAT, on the bridge",
            FIRST,
            mac::CONTAINER2,
            to(one, ["172.17.0.77", "fd17::77"], 15),
        ),
        ("its answer", SECOND, mac::CONTAINER1, back(two, one, 9)),
        ("masqueraded", FIRST, mac::CONTAINER2, to(one, two, 16)),
        ("untracked", FIRST, mac::CONTAINER2, to(one, two, 17)),
        (
            "by link-layer address",
            FIRST,
            mac::CONTAINER2,
            to(one, two, 18),
        ),
        ("by another", SECOND, mac::CONTAINER1, to(two, one, 18)),
        (
            "to the host, by port",
            FIRST,
            mac::BRIDGE,
            to(one, BRIDGE, 20),
        ),
        (
            "to the host, by the other",
            SECOND,
            mac::BRIDGE,
            to(two, BRIDGE, 20),
        ),
        ("to all", FIRST, to_many, to(one, all, 9)),
        ("to all, refused", FIRST, to_many, to(one, all, 11)),
        ("redirected", FIRST, mac::CONTAINER2, to(one, two, 19)),
        ("SYN", FIRST, mac::CONTAINER2, syn(one, two, 9)),
        (
            "its answer",
            SECOND,
            mac::CONTAINER1,
            packet(version, two, one, segment((9, 5009), SYN | ACK)),
        ),
        (
            "a reset, switched",
            FIRST,
            mac::CONTAINER2,
            syn(one, two, 12),
        ),
        (
            "a reset, routed",
            SECOND,
            mac::BRIDGE,
            syn(two, INTERNET, 12),
        ),
        (
            "a reset of the host's",
            FIRST,
            mac::BRIDGE,
            syn(one, BRIDGE, 12),
        ),
        ("published", FIRST, mac::BRIDGE, syn(one, BRIDGE, 15)),
        (
            "its answer",
            SECOND,
            mac::CONTAINER1,
            packet(version, two, one, segment((9, 5015), SYN | ACK)),
        ),
        (
            "published, to itself",
            SECOND,
            mac::BRIDGE,
            syn(two, BRIDGE, 15),
        ),
        ("spoofed", SECOND, mac::CONTAINER1, to(INTERNET, one, 9)),
    ]
}

#[test]
fn what_a_bridge_switches_is_filtered_as_iptables_does() {
    let test = "bridge_beside";
    if !ready(
        test,
        &["iptables-legacy-restore", "ip6tables-legacy-restore"],
        true,
    ) {
        return;
    }
    if !hand_over(test) {
        return;
    }
    let outcome = beside(test);
    if let Err(error) = outcome {
        panic!("{test}: {error:?}");
    }
}

fn beside(test: &str) -> Result<()> {
    let iptables = Side::new(&format!("{test}-i"), |lab| {
        Ok(Box::new(Iptables::new(lab.server.clone())))
    })?;
    let fwbpf = Side::new(&format!("{test}-f"), |lab| {
        let binary = fwbpf_binary().context("there is no fwbpf")?;
        Ok(Box::new(Fwbpf::new(lab.server.clone(), binary)?))
    })?;
    // The kernel's own first words, of both labs.
    for side in [&iptables, &fwbpf] {
        while !side.hear(Duration::from_millis(700))?.is_empty() {}
        side.load()?;
    }
    let mut different = Vec::new();
    for version in 0..2 {
        for (what, wire, link, packet) in steps(version) {
            let own = [mac::CONTAINER1, mac::CONTAINER2][wire];
            let bytes = frame(own, link, &packet);
            let expected = iptables.send(wire, &bytes)?;
            let seen = fwbpf.send(wire, &bytes)?;
            let (before, after) = (iptables.counters(version)?, fwbpf.counters(version)?);
            eprintln!("{version} {what}: {expected:?}");
            if seen != expected || before != after {
                let lines = before.iter().filter(|line| !after.contains(line));
                let lines: Vec<_> = lines
                    .chain(after.iter().filter(|line| !before.contains(line)))
                    .collect();
                different.push(format!(
                    "{version}, {what}:\n  {expected:#?}\n  {seen:#?}\n  {lines:#?}"
                ));
            }
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    Ok(())
}

/// One port is open to the bridge's own.
const ISOLATED: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A FORWARD -p udp --dport 4000 -j LOG --log-prefix \"through: \"\n\
    -A FORWARD -i docker0 -o docker0 -p udp --dport 4000 -j ACCEPT\n\
    COMMIT\n";

/// The setting, and ports that appear, take effect with the daemon's next look.
#[test]
fn ports_are_guarded_while_the_bridge_hands_over() {
    if !hand_over("bridge_ports") {
        return;
    }
    with_fwbpf("bridge_ports", &[], |lab, fwbpf| {
        let rules = [(Family::Ipv4, ISOLATED), (Family::Ipv6, ISOLATED)];
        fwbpf.load(&rules)?;
        let sender = udp(&lab.container1, ip(CONTAINER1[0]), 3999)?;
        let sockets = [4000, 4001].map(|port| udp(&lab.container2, ip(CONTAINER2[0]), port));
        let [open, closed] = sockets;
        let (open, closed) = (open?, closed?);
        // Layer 2 alone decides.
        send(&sender, ip(CONTAINER2[0]), 4001, b"switched")?;
        ensure!(
            received(&closed)?.is_some(),
            "it was filtered, and nobody asked"
        );
        ensure!(hooks(fwbpf, "veth1")?.is_empty(), "a port has hooks");

        lab.server
            .sysctl(&[("bridge/bridge-nf-call-iptables", "1")])?;
        let mut daemon = Daemon::start(fwbpf, &["--log", "stdout"])?;
        ensure!(hooks(fwbpf, "veth1")?.len() == 2, "a port has no hooks");
        send(&sender, ip(CONTAINER2[0]), 4001, b"switched")?;
        send(&sender, ip(CONTAINER2[0]), 4000, b"switched")?;
        ensure!(received(&open)?.is_some(), "the open port is closed");
        ensure!(received(&closed)?.is_none(), "the closed port is open");
        let line = daemon.line_with("through: ")?;
        let begins = "through: IN=docker0 OUT=docker0 PHYSIN=veth1 PHYSOUT=veth2 \
            MAC=02:00:00:00:02:03:02:00:00:00:02:02:08:00 SRC=172.17.0.2 DST=172.17.0.3 LEN=36 ";
        ensure!(line.starts_with(begins), "{line}\ninstead of\n{begins}");
        let save = fwbpf.save(Family::Ipv4)?;
        ensure!(count(&save, ":FORWARD DROP")? == (1, 36), "{save}");

        // A port that appears is guarded, too; IPv6 is not asked for, and passes.
        let name = lab.outside.name();
        lab.server.ip(&format!(
            "link add veth9 type veth peer name far netns {name}\nlink set veth9 master docker0 up\n"
        ))?;
        wait_up_to(Duration::from_secs(10), "the new port is guarded", || {
            Ok(hooks(fwbpf, "veth9")?.len() == 2)
        })?;
        let sender = udp(&lab.container1, ip(CONTAINER1[1]), 3999)?;
        let other = udp(&lab.container2, ip(CONTAINER2[1]), 4001)?;
        send(&sender, ip(CONTAINER2[1]), 4001, b"switched")?;
        ensure!(received(&other)?.is_some(), "IPv6 was filtered");
        // Nor is anything of it dropped, though it be cut short.
        let wires = [&lab.container1, &lab.container2].map(|end| FrameSocket::open(end, "eth0"));
        let [near, far] = wires;
        let (near, far) = (near?, far?);
        let mut short = packet(1, CONTAINER1, CONTAINER2, datagram((3999, 4002)));
        short.truncate(44);
        short[5] = 4;
        let short = frame(mac::CONTAINER1, mac::CONTAINER2, &short);
        near.send(&short)?;
        wait_up_to(Duration::from_secs(5), "the short one is switched", || {
            Ok(far.receive()?.is_some_and(|got| got.starts_with(&short)))
        })?;

        lab.server
            .sysctl(&[("bridge/bridge-nf-call-iptables", "0")])?;
        fwbpf.load(&rules)?;
        ensure!(hooks(fwbpf, "veth1")?.is_empty(), "the hooks are left");
        Ok(())
    });
}

/// `! --physdev-out` alone is no conjunction where a bridge hands over.
#[test]
fn what_is_not_exact_is_refused() {
    if !hand_over("bridge_refused") {
        return;
    }
    with_fwbpf("bridge_refused", &[], |lab, fwbpf| {
        const RULE: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
            -A FORWARD -m physdev ! --physdev-out veth1 -j ACCEPT\nCOMMIT\n";
        fwbpf.load(&[(Family::Ipv4, RULE)])?;
        lab.server
            .sysctl(&[("bridge/bridge-nf-call-iptables", "1")])?;
        let Err(error) = fwbpf.load(&[(Family::Ipv4, RULE)]) else {
            anyhow::bail!("it was loaded");
        };
        let said = format!("{error:#}");
        ensure!(
            said.contains("rules.v4:5:") && said.contains("--physdev-is-bridged"),
            "{said}"
        );
        Ok(())
    });
}

/// Whether bridges can be told to hand over what they switch.
fn hand_over(test: &str) -> bool {
    let lack = no_hand_over();
    if let Some(lack) = &lack {
        eprintln!("SKIPPED {test}: {lack}");
    }
    lack.is_none()
}

/// The hooks of an interface that status lists.
fn hooks(fwbpf: &Fwbpf, name: &str) -> Result<Vec<serde_json::Value>> {
    let status = fwbpf.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let found = interfaces.iter().find(|one| one["name"] == name);
    let hooks = found.context("it is not listed")?["hooks"].as_array();
    Ok(hooks.cloned().unwrap_or_default())
}
