//! Tagged frames at an interface. A VLAN's are its own interface's business, whose programs judge
//! them; a tag of VLAN 0 only says a priority, and the kernel takes the frame as if it had none.

use std::net::UdpSocket;

use anyhow::{Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{INTERNET, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{datagram, ip, udp};
use fwbpf_tests::lab::{Firewall, FrameSocket, Fwbpf, ServerLab, mac};
use fwbpf_tests::packet::{Dressing, Packet, Payload, frame};

/// One port is open, and everything that is judged is counted.
const RULES: &str = "*filter\n\
    :INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A INPUT -p udp -m udp --dport 9 -j ACCEPT\n\
    COMMIT\n";
const OPEN: u16 = 9;
const CLOSED: u16 = 10;

/// 802.1Q and 802.1ad.
const TAG_TYPES: [u16; 2] = [0x8100, 0x88a8];

#[test]
fn a_vlans_frames_pass_the_lower_interface_uncounted() {
    with_fwbpf("vlan_passes", &[], |lab, fwbpf| {
        for mode in ["off", "native"] {
            let wire = load(lab, fwbpf, mode)?;
            let drops = dropped(fwbpf)?;
            for version in 0..2 {
                let sockets = sockets(lab, version)?;
                for tag_type in TAG_TYPES {
                    for port in [OPEN, CLOSED] {
                        wire.send(&tagged(version, port, &[(tag_type, 10)]))?;
                        // A priority tag around the VLAN's.
                        wire.send(&tagged(version, port, &[(0x8100, 0), (tag_type, 10)]))?;
                    }
                }
                // There is no such VLAN here, so the kernel drops them; no rule has seen them.
                for socket in &sockets {
                    ensure!(datagram(socket)?.is_none(), "it was delivered");
                }
                ensure_counts(fwbpf, version, 0, 0)?;
            }
            ensure!(dropped(fwbpf)? == drops, "the firewall dropped some");
        }
        Ok(())
    });
}

#[test]
fn a_priority_tag_is_no_way_around_the_rules() {
    with_fwbpf("vlan_priority", &[], |lab, fwbpf| {
        for mode in ["off", "native"] {
            let wire = load(lab, fwbpf, mode)?;
            for version in 0..2 {
                let [open, closed] = sockets(lab, version)?;
                for tag_type in TAG_TYPES {
                    for port in [OPEN, CLOSED] {
                        wire.send(&tagged(version, port, &[(tag_type, 0)]))?;
                    }
                    ensure!(datagram(&open)?.is_some(), "port {OPEN} is closed");
                    ensure!(datagram(&closed)?.is_none(), "port {CLOSED} is open");
                }
                ensure_counts(fwbpf, version, 2, 2)?;
            }
        }
        Ok(())
    });
}

/// The kernel takes off any number of priority tags, all but the first of them behind the hook.
#[test]
fn nested_priority_tags_are_no_way_either() {
    with_fwbpf("vlan_nested", &[], |lab, fwbpf| {
        for mode in ["off", "native"] {
            let wire = load(lab, fwbpf, mode)?;
            let drops = dropped(fwbpf)?;
            for version in 0..2 {
                let sockets = sockets(lab, version)?;
                for port in [OPEN, CLOSED] {
                    wire.send(&tagged(version, port, &[(0x8100, 0), (0x8100, 0)]))?;
                    wire.send(&tagged(version, port, &[(0x8100, 0), (0x88a8, 0)]))?;
                    wire.send(&tagged(version, port, &[(0x8100, 0); 3]))?;
                }
                for socket in &sockets {
                    ensure!(datagram(socket)?.is_none(), "it was delivered");
                }
                ensure_counts(fwbpf, version, 0, 0)?;
            }
            let got = dropped(fwbpf)? - drops;
            ensure!(got == 12, "{got} of 12 dropped");
        }
        Ok(())
    });
}

/// Counters at zero, and the wire to the server.
fn load(lab: &ServerLab, fwbpf: &Fwbpf, mode: &str) -> Result<FrameSocket> {
    let rules = [(Family::Ipv4, RULES), (Family::Ipv6, RULES)];
    fwbpf.load_with(&["--xdp", mode, "--counters"], &rules)?;
    FrameSocket::open(&lab.outside, "wire0")
}

fn sockets(lab: &ServerLab, version: usize) -> Result<[UdpSocket; 2]> {
    let own = ip(SERVER[version]);
    Ok([udp(&lab.server, own, OPEN)?, udp(&lab.server, own, CLOSED)?])
}

/// A datagram to the server, in tags of these types and VLANs, the outer one first. Each has a
/// port of its own to come from.
fn tagged(version: usize, port: u16, tags: &[(u16, u16)]) -> Vec<u8> {
    let packet = Packet {
        source: ip(INTERNET[version]),
        destination: ip(SERVER[version]),
        ttl: 64,
        id: 1,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload: Payload::Udp {
            ports: (4000 + tags.len() as u16, port),
            data: b"tagged".to_vec(),
        },
    };
    let mut bytes = frame(mac::OUTSIDE, mac::SERVER, &packet.bytes());
    let header: Vec<u8> = tags
        .iter()
        .flat_map(|(kind, vlan)| {
            // Priority 5, so that the tag is not all zeros.
            let control = 5 << 13 | vlan;
            [kind.to_be_bytes(), control.to_be_bytes()].concat()
        })
        .collect();
    bytes.splice(12..12, header);
    bytes
}

/// Compares the rule and the policy with how many datagrams each must have met.
fn ensure_counts(fwbpf: &Fwbpf, version: usize, rule: u64, policy: u64) -> Result<()> {
    let family = [Family::Ipv4, Family::Ipv6][version];
    let length = [20, 40][version] + 8 + 6;
    let save = fwbpf.save(family)?;
    for (what, packets) in [
        ("-A INPUT -p udp -m udp --dport 9 -j ACCEPT", rule),
        (":INPUT DROP", policy),
        (":FORWARD DROP", 0),
    ] {
        let got = count(&save, what)?;
        let expected = (packets, packets * length);
        ensure!(got == expected, "`{what}` counts {got:?}, not {expected:?}");
    }
    Ok(())
}

/// All packets that the firewall dropped.
fn dropped(fwbpf: &Fwbpf) -> Result<u64> {
    let status = fwbpf.json(&["status"])?;
    let drops = status["drops"].as_array();
    Ok(drops
        .into_iter()
        .flatten()
        .filter_map(|drop| drop["count"].as_u64())
        .sum())
}
