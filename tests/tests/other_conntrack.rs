//! How connections of protocols without states are tracked, beside netfilter: when they are answered, how
//! long they live, and which of them are ASSURED.

use anyhow::{Result, ensure};
use fwbpf_tests::beside::{ADDRESSES, Name, Pair, beside_netfilter, packet};
use fwbpf_tests::packet::Payload;

const GRE: u8 = 47;
const ESP: u8 = 50;
const UDPLITE: u8 = 136;

/// A tunnel lives longer, and is ASSURED, from the first packet on that comes after an answer
/// (`nf_conntrack_gre_packet`, net/netfilter/nf_conntrack_proto_gre.c); of any other protocol, a
/// connection lives for the generic timeout and never is (net/netfilter/nf_conntrack_proto_generic.c).
#[test]
fn tunnels() {
    let settings = [
        ("netfilter/nf_conntrack_gre_timeout", "40"),
        ("netfilter/nf_conntrack_gre_timeout_stream", "200"),
        ("netfilter/nf_conntrack_generic_timeout", "500"),
    ];
    beside_netfilter("ct_tunnels", &settings, |pair| {
        let lives = |protocol, seconds: [u64; 4], last: &str| -> Result<()> {
            let ways = [true, false, false, true];
            let labels = ["NEW", "ESTABLISHED", "ESTABLISHED", "ESTABLISHED"];
            for ((from_client, expected), seconds) in ways.into_iter().zip(labels).zip(seconds) {
                let label = send(pair, protocol, from_client, vec![0; 20])?;
                ensure!(label == expected, "{protocol}: {label}, not {expected}");
                lasts(pair, protocol, seconds)?;
            }
            let found = pair.connection(name(pair, protocol))?;
            ensure!(
                found.as_ref().is_some_and(|found| found.0.trim() == last),
                "{protocol}: {found:?}, not {last}"
            );
            Ok(())
        };
        lives(GRE, [40, 40, 200, 200], "[ASSURED]")?;
        lives(ESP, [500; 4], "")
    });
    // The kernel's own.
    beside_netfilter("ct_gre", &[], |pair| {
        send(pair, GRE, true, vec![0; 20])?;
        lasts(pair, GRE, 30)?;
        send(pair, GRE, false, vec![0; 20])?;
        send(pair, GRE, true, vec![0; 20])?;
        lasts(pair, GRE, 180)
    });
}

/// UDP-Lite is a stream as soon as both ends have spoken, and UDP after two seconds; a datagram that
/// claims to cover more than it has, or whose sum is missing, is INVALID (RFC 3828 3.1;
/// `nf_conntrack_udplite_packet`, net/netfilter/nf_conntrack_proto_udp.c).
#[test]
fn udp_lite() {
    // Netfilter would verify sums as if they were UDP's, and refuse right ones (`nf_checksum_partial` is
    // given IPPROTO_UDP). fwbpf verifies none.
    let settings = [("netfilter/nf_conntrack_checksum", "0")];
    beside_netfilter("ct_udplite", &settings, |pair| {
        let datagram = |from_client, coverage| {
            let data = udp_lite_datagram(from_client, coverage, 1);
            send(pair, UDPLITE, from_client, data)
        };
        let label = datagram(true, 8)?;
        ensure!(label == "NEW", "the first is {label}");
        lasts(pair, UDPLITE, 30)?;
        datagram(false, 0)?;
        lasts(pair, UDPLITE, 30)?;
        datagram(true, 16)?;
        lasts(pair, UDPLITE, 120)?;
        for coverage in [1, 7, 17, 0xffff] {
            let label = datagram(true, coverage)?;
            ensure!(label == "INVALID", "{coverage} bytes are covered: {label}");
        }
        let data = udp_lite_datagram(true, 8, 0);
        let label = send(pair, UDPLITE, true, data)?;
        ensure!(label == "INVALID", "without a sum: {label}");
        Ok(())
    });
}

fn name(pair: &Pair, protocol: u8) -> Name<'static> {
    Name {
        protocol,
        port: None,
        address: ADDRESSES[pair.version][0],
    }
}

fn send(pair: &Pair, protocol: u8, from_client: bool, data: Vec<u8>) -> Result<&'static str> {
    let payload = Payload::Other { protocol, data };
    let packet = packet(pair.version, from_client, payload);
    pair.send(from_client, &packet, name(pair, protocol))
}

fn lasts(pair: &Pair, protocol: u8, seconds: u64) -> Result<()> {
    let found = pair.connection(name(pair, protocol))?;
    let Some((_, left)) = found else {
        anyhow::bail!("{protocol}: there is no connection");
    };
    ensure!(
        left <= seconds && left + 2 >= seconds,
        "{protocol}: it lives for {left} s, not {seconds}"
    );
    Ok(())
}

/// A datagram of eight bytes of data, with a sum or none.
fn udp_lite_datagram(from_client: bool, coverage: u16, sum: u16) -> Vec<u8> {
    let ports: [u16; 2] = if from_client { [4000, 53] } else { [53, 4000] };
    let words = [ports[0], ports[1], coverage, sum, 0, 0, 0, 0];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
