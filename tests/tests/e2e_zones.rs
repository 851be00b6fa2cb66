//! Zones: two networks of the same addresses behind one server, under iptables and under fwbpf.

use anyhow::{Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{GuideLab, under_both};
use fwbpf_tests::lab::address::SERVER;
use fwbpf_tests::lab::sockets::{ip, wait_for};
use fwbpf_tests::lab::{LocalSender, saved};
use fwbpf_tests::packet::{Dressing, Packet, Payload};
use fwbpf_tests::tenants::{RULES, Tenants};

#[test]
fn networks_of_the_same_addresses_have_their_zones() {
    under_both("zones", |guide| {
        let tenants = Tenants::new(guide)?;
        guide.load(RULES, RULES)?;
        let saved = guide.firewall.save(Family::Ipv4)?;
        ensure!(saved::rules_only(&saved).contains("-A PREROUTING -i ten2 -j CT --zone 40002\n"));
        tenants.talk(guide)
    });
}

/// Rules on loopback, the last ones of which say what became of the errors that a host sends itself.
const OWN_ERRORS: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A PREROUTING -i lo -j CT --zone 1\n\
    -A PREROUTING -i lo -p ICMP -m conntrack --ctstate NEW\n\
    -A PREROUTING -i lo -p ICMP -m conntrack --ctstate INVALID\n\
    -A PREROUTING -i lo -p ICMP -m conntrack --ctstate RELATED\n\
    -A OUTPUT -p udp -m udp --dport 5000 -j NOTRACK\n\
    -A OUTPUT -p 253 -j NOTRACK\nCOMMIT\n\
    *filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A INPUT -p udp -m udp --dport 5000:5001 -j REJECT --reject-with ICMP-port-unreachable\nCOMMIT\n";

/// An error about a packet that is not tracked carries that it is not, and so no zone, even as it comes back in.
#[test]
fn errors_about_untracked_packets_enter_no_zone() {
    under_both("own-errors", |guide| {
        let [v4, v6] =
            ["icmp", "ipv6-icmp"].map(|it| OWN_ERRORS.replace("-p ICMP", &format!("-p {it}")));
        guide.load(&v4.replace("ICMP", "icmp"), &v6.replace("ICMP", "icmp6"))?;
        let sender = LocalSender::open(&guide.lab.server)?;
        for version in [0, 1] {
            let own = ip(SERVER[version]);
            let mut expected = [0; 3];
            let refused = |port| Payload::Udp {
                ports: (4000, port),
                data: b"hello".to_vec(),
            };
            // Of a protocol that nobody speaks, the kernel says so itself.
            let unknown = Payload::Other {
                protocol: 253,
                data: b"hello".to_vec(),
            };
            let payloads = [(refused(5000), 1), (refused(5001), 2), (unknown, 1)];
            for (payload, counts) in payloads {
                let packet = Packet {
                    source: own,
                    destination: own,
                    ttl: 64,
                    id: 7,
                    tos: 0,
                    mss: None,
                    dressing: Dressing::Plain,
                    payload,
                };
                sender.send(&packet.bytes(), own)?;
                expected[counts] += 1;
                let mut counted = [0; 3];
                wait_for(&format!("{expected:?} of NEW, INVALID and RELATED"), || {
                    counted = counted_errors(guide, version)?;
                    Ok(counted.iter().sum::<u64>() == expected.iter().sum::<u64>())
                })?;
                ensure!(counted == expected, "{counted:?} instead of {expected:?}");
            }
        }
        Ok(())
    });
}

fn counted_errors(guide: &GuideLab, version: usize) -> Result<[u64; 3]> {
    let family = [Family::Ipv4, Family::Ipv6][version];
    let icmp = ["icmp", "ipv6-icmp"][version];
    let mut counts = [0; 3];
    for (count, state) in counts.iter_mut().zip(["NEW", "INVALID", "RELATED"]) {
        let rule = format!("-A PREROUTING -i lo -p {icmp} -m conntrack --ctstate {state}");
        *count = guide.count(family, &rule)?.0;
    }
    Ok(counts)
}
