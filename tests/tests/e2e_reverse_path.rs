//! `-m rpfilter` beside iptables' own: whether answers would leave by where a packet came in.

use anyhow::{Context as _, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{GuideLab, under_both, with_fwbpf};
use fwbpf_tests::lab::address::SERVER;
use fwbpf_tests::lab::sockets::{ip, send, udp};
use fwbpf_tests::lab::{Firewall as _, run};

/// Rules that are asked about every datagram to these ports, in the table raw.
const PORTS: &str = "-p udp -m udp --dport 5000:5009";

fn rules() -> String {
    format!(
        "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A PREROUTING {PORTS} -m rpfilter\n\
         -A PREROUTING {PORTS} -m rpfilter --loose\n\
         -A PREROUTING {PORTS} -m rpfilter --loose --invert\n\
         -A PREROUTING {PORTS} -m rpfilter --invert -j DROP\n\
         COMMIT\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    )
}

/// Sources, and what the four rules count of a datagram from each that comes in by eth0.
const SOURCES: [[(&str, [u64; 4]); 5]; 2] = [
    [
        // Of the link, of somewhere behind it, of containers, of this host, and of nowhere.
        ("198.51.100.77", [1, 1, 0, 0]),
        ("203.0.113.77", [1, 1, 0, 0]),
        ("172.17.0.77", [0, 1, 0, 1]),
        ("172.17.0.1", [0, 0, 1, 1]),
        ("10.66.0.1", [0, 0, 1, 1]),
    ],
    [
        ("2001:db8:1::77", [1, 1, 0, 0]),
        ("2001:db8:7::77", [1, 1, 0, 0]),
        ("fd17::77", [0, 1, 0, 1]),
        ("fd17::1", [0, 0, 1, 1]),
        ("fd66::1", [0, 0, 1, 1]),
    ],
];

#[test]
fn the_way_back_is_the_kernels() {
    under_both("rpfilter", |guide| {
        guide.lab.server.ip("route add blackhole 10.66.0.0/16\n\
             route add blackhole fd66::/16\n")?;
        guide.load(&rules(), &rules())?;
        for version in [0, 1] {
            let mut expected = [0; 4];
            for (source, counts) in SOURCES[version] {
                let bits = [32, 128][version];
                let add = format!("addr add {source}/{bits} dev wire0 nodad\n");
                let add = [add.replace(" nodad", ""), add];
                guide.lab.outside.ip(&add[version])?;
                let socket = udp(&guide.lab.outside, ip(source), 0)?;
                send(&socket, ip(SERVER[version]), 5000, b"whence?")?;
                for (sum, count) in expected.iter_mut().zip(counts) {
                    *sum += count;
                }
                let counted = counted(guide, version)?;
                ensure!(
                    counted == expected,
                    "after {source}: {counted:?} instead of {expected:?}"
                );
            }
        }
        Ok(())
    });
}

fn counted(guide: &GuideLab, version: usize) -> Result<[u64; 4]> {
    let family = [Family::Ipv4, Family::Ipv6][version];
    let mut counts = [0; 4];
    let options = ["", " --loose", " --loose --invert", " --invert -j DROP"];
    for (count, option) in counts.iter_mut().zip(options) {
        let rule = format!("-A PREROUTING {PORTS} -m rpfilter{option}");
        *count = guide.count(family, &rule)?.0;
    }
    Ok(counts)
}

/// Where the kernel does not tell all, a load says so, and what to do.
#[test]
fn it_is_refused_where_it_would_not_be_exact() {
    with_fwbpf("rpfilter-refused", &["sysctl"], |lab, fwbpf| {
        let refused = |wanted: &str, what: &str| -> Result<()> {
            let text = rules();
            let loaded =
                fwbpf.load(&[(Family::Ipv4, text.as_str()), (Family::Ipv6, text.as_str())]);
            let error = loaded.err().map(|error| format!("{error:#}"));
            let error = error.with_context(|| format!("it is loaded with {what}"))?;
            ensure!(error.contains(wanted), "{error}");
            Ok(())
        };
        let forward = |value: &str| {
            let name = "net.ipv4.conf.lo.forwarding";
            let mut command = lab.server.command("sysctl");
            run(command.args(["-w", &format!("{name}={value}")]))
        };
        forward("0")?;
        refused(
            "net.ipv4.conf.lo.forwarding=1",
            "loopback that does not forward",
        )?;
        forward("1")?;
        let two = "route add 192.0.2.0/25 nexthop dev eth0 nexthop dev eth1\n";
        lab.server.ip(two)?;
        refused("192.0.2.0/25 by several interfaces", "two ways")?;
        lab.server.ip("route del 192.0.2.0/25\n")?;
        lab.server
            .ip("route add 2001:db8:9::/48 dev eth0 metric 5\n")?;
        lab.server
            .ip("route add 2001:db8:9::/48 dev eth1 metric 6\n")?;
        refused("2001:db8:9::/48 by several interfaces", "two routes")?;
        let loose = rules()
            .replace("rpfilter\n", "rpfilter --loose\n")
            .replace("rpfilter --invert", "rpfilter --loose --invert");
        fwbpf.load(&[(Family::Ipv6, loose.as_str())])
    });
}
