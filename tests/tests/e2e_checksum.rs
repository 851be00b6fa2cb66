//! CHECKSUM: what this host sends to a guest has its checksum before it gets there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER1, SERVER};
use fwbpf_tests::lab::sockets::{PATIENCE, datagram, ip, send, udp};
use fwbpf_tests::lab::{Firewall as _, FrameSocket};
use fwbpf_tests::packet::{Layers, checksum_is_sound, checksum_is_unfinished, protocol};

const OPEN: &str = "*filter\n:INPUT ACCEPT\nCOMMIT\n";
const FILL: &str = "*mangle\n-A POSTROUTING -o docker0 -p udp -m udp --dport 5000 -j CHECKSUM --checksum-fill\nCOMMIT\n";

/// Whether the next datagram on the wire has a checksum that was left to the card.
fn is_unfinished(wire: &FrameSocket) -> Result<bool> {
    const L2: usize = 14;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let Some(frame) = wire.receive()? else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let packet = frame.get(L2..).context("a frame")?;
        if Layers::read(packet).is_none_or(|layers| layers.protocol != protocol::UDP) {
            continue;
        }
        ensure!(checksum_is_sound(packet), "a wrong checksum");
        return Ok(checksum_is_unfinished(packet));
    }
    bail!("nothing came")
}

#[test]
fn datagrams_to_guests_are_finished() {
    with_fwbpf("checksum", &[], |lab, fwbpf| {
        let wire = FrameSocket::open(&lab.container1, "eth0")?;
        for version in 0..2 {
            let family = [Family::Ipv4, Family::Ipv6][version];
            let (from, to) = (ip(SERVER[version]), ip(CONTAINER1[version]));
            let own = udp(&lab.server, from, 0)?;
            let guest = udp(&lab.container1, to, 5000)?;
            for (rules, unfinished) in [(OPEN, true), (FILL, false)] {
                fwbpf.load(&[(family, rules)])?;
                for length in [0, 1, 10, 255, 301, 512, 1200] {
                    send(&own, to, 5000, &vec![0x5a; length])?;
                    let found = is_unfinished(&wire)?;
                    ensure!(
                        found == unfinished,
                        "{length} bytes to {to}: left to the card: {found}"
                    );
                    ensure!(datagram(&guest)?.is_some(), "{length} bytes did not arrive");
                }
            }
            // What is too long goes as it was.
            send(&own, to, 5000, &[0x5a; 1400])?;
            ensure!(is_unfinished(&wire)?, "a long one");
            ensure!(datagram(&guest)?.is_some(), "a long one did not arrive");
        }
        Ok(())
    });
}
