//! Marks are the kernel's: they choose routes.

use anyhow::ensure;
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, OTHER};
use fwbpf_tests::lab::sockets::{datagram, ip, send, udp};
use fwbpf_tests::lab::{Firewall, run};

#[test]
fn a_mark_that_prerouting_sets_chooses_the_route() {
    with_fwbpf("marks", &[], |lab, fwbpf| {
        const RULES: &str = "*mangle\n-A PREROUTING -i docker0 -p udp --dport 5001 -j MARK --set-mark 0x7\nCOMMIT\n";
        fwbpf.load(&[(Family::Ipv4, RULES), (Family::Ipv6, RULES)])?;
        for (version, length) in [(0, 32), (1, 128)] {
            let (far, other) = (INTERNET[version], OTHER[version]);
            let version_flag = ["-4", "-6"][version];
            let far_prefix = format!("{far}/{length}");
            let route = format!("{far_prefix} via {other} table 100");
            for words in ["rule add fwmark 7 table 100", &format!("route add {route}")] {
                let mut ip = lab.server.command("ip");
                run(ip.arg(version_flag).args(words.split(' ')))?;
            }
            lab.other
                .ip(&format!("address add {far}/{length} dev lo"))?;
            let by_default = udp(&lab.outside, ip(far), 5000)?;
            let by_mark = udp(&lab.other, ip(far), 5001)?;
            let astray = udp(&lab.outside, ip(far), 5001)?;
            let own = udp(&lab.container1, ip(CONTAINER1[version]), 0)?;
            send(&own, ip(far), 5000, b"unmarked")?;
            ensure!(datagram(&by_default)?.is_some(), "the usual way to {far}");
            send(&own, ip(far), 5001, b"marked")?;
            ensure!(datagram(&by_mark)?.is_some(), "the marked way to {far}");
            ensure!(
                datagram(&astray)?.is_none(),
                "a marked datagram went the usual way"
            );
        }
        Ok(())
    });
}
