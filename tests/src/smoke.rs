//! The smoke set: a few claims of each kind about the guide's policy, short enough for an emulated
//! processor. `vm_smoke` makes them on other kernels, and a test makes them over clsact filters.

mod bridge;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;

use crate::association;
use crate::guide::{GuideLab, MASQUERADE_V6, RULES_V4, RULES_V6};
use crate::lab::address::{
    ADMIN, BRIDGE, CONTAINER1, CONTAINER2, FORBIDDEN, INTERNET, OTHER, OUTSIDE, SERVER,
};
use crate::lab::sockets::{
    PATIENCE, Reach, connect, datagram, ip, listen, ping, reach, round_trip, send, tcp_echo, udp,
};
use crate::lab::{Namespace, no_hand_over};
use crate::tenants::{self, Tenants};

/// Something that holds.
#[derive(Clone, Copy)]
pub struct Claim {
    /// What it is about.
    pub name: &'static str,
    /// Why it cannot be made on this kernel, in words.
    pub lack: fn() -> Option<String>,
    /// It is made for IPv4 and for IPv6, of a lab in which the guide is loaded, and leaves the guide loaded.
    pub statement: fn(&GuideLab) -> Result<()>,
}

/// All of them.
pub const CLAIMS: [Claim; 8] = [
    always("filter", filter),
    always("conntrack", conntrack),
    always("masquerade", masquerade),
    always("zones", zones),
    Claim {
        name: "bridge",
        lack: no_hand_over,
        statement: bridge::switched,
    },
    Claim {
        name: "sctp",
        lack: association::lack,
        statement: sctp,
    },
    always("reload", reload),
    always("counters", counters),
];

const fn always(name: &'static str, statement: fn(&GuideLab) -> Result<()>) -> Claim {
    Claim {
        name,
        lack: || None,
        statement,
    }
}

fn filter(guide: &GuideLab) -> Result<()> {
    let lab = &guide.lab;
    for port in [22, 81] {
        tcp_echo(&lab.server, port)?;
    }
    for port in [25, 80, 8079] {
        tcp_echo(&lab.outside, port)?;
    }
    tcp_echo(&lab.other, 8079)?;
    for version in 0..2 {
        for (from, own, to, port, expected) in [
            (&lab.outside, None, SERVER, 22, Reach::Open),
            (&lab.outside, None, SERVER, 81, Reach::Silent),
            (&lab.outside, Some(ADMIN), SERVER, 81, Reach::Open),
            (&lab.server, None, INTERNET, 80, Reach::Open),
            (&lab.server, None, INTERNET, 25, Reach::Silent),
            (&lab.server, None, FORBIDDEN, 80, Reach::Silent),
            (&lab.container1, None, INTERNET, 8079, Reach::Open),
            (&lab.container1, None, OTHER, 8079, Reach::Silent),
            (&lab.outside, None, OTHER, 8079, Reach::Silent),
        ] {
            let own = own.map(|own| ip(own[version]));
            let to = ip(to[version]);
            let got = reach(from, own, to, port)?;
            ensure!(
                got == expected,
                "{to} port {port} from {} is {got:?}, not {expected:?}",
                from.name()
            );
        }
        ensure!(
            ping(&lab.outside, ip(SERVER[version]))?,
            "ping from outside"
        );
        ensure!(
            !ping(&lab.server, ip(FORBIDDEN[version]))?,
            "a ping to a forbidden network is answered"
        );
    }
    ensure!(
        ping(&lab.container1, ip(BRIDGE[0]))?,
        "ping from a container"
    );
    Ok(())
}

fn conntrack(guide: &GuideLab) -> Result<()> {
    let lab = &guide.lab;
    for version in 0..2 {
        let (own, peer) = (ip(SERVER[version]), ip(OUTSIDE[version]));
        let client = udp(&lab.server, own, 5300)?;
        let asked = udp(&lab.outside, peer, 53)?;
        let same_host = udp(&lab.outside, peer, 54)?;
        send(&asked, own, 5300, b"unasked")?;
        ensure!(datagram(&client)?.is_none(), "a datagram came in unasked");
        send(&client, peer, 53, b"question")?;
        ensure!(datagram(&asked)?.is_some(), "the question did not go out");
        send(&same_host, own, 5300, b"not me")?;
        ensure!(datagram(&client)?.is_none(), "a stranger's answer came in");
        send(&asked, own, 5300, b"answer")?;
        ensure!(datagram(&client)?.is_some(), "the answer did not come in");

        // The kernel's error about a closed port is related to the datagram that caused it.
        let curious = udp(&lab.server, own, 5301)?;
        curious.connect(SocketAddr::new(peer, 9))?;
        curious.send(b"anybody?")?;
        let refused = curious.recv(&mut [0; 16]).err().map(|error| error.kind());
        ensure!(
            refused == Some(std::io::ErrorKind::ConnectionRefused),
            "the ICMP error about a closed port did not come in: {refused:?}"
        );
    }
    Ok(())
}

fn masquerade(guide: &GuideLab) -> Result<()> {
    let lab = &guide.lab;
    for version in 0..2 {
        let to = ip(INTERNET[version]);
        let port = 9000 + version as u16;
        let listener = listen(&lab.outside, port)?;
        let mut streams = Vec::new();
        for (namespace, own) in [(&lab.container1, CONTAINER1), (&lab.container2, CONTAINER2)] {
            let from = SocketAddr::new(ip(own[version]), 40_000);
            let stream = connect(namespace, Some(from), SocketAddr::new(to, port), PATIENCE)
                .with_context(|| format!("{from} connects to {to}"))?;
            let (_, seen) = listener.accept()?;
            ensure!(
                seen.ip().to_canonical() == ip(SERVER[version]),
                "{from} is seen as {seen}"
            );
            streams.push((stream, seen));
        }
        ensure!(
            streams[0].1 != streams[1].1,
            "two containers are seen as one"
        );
        masqueraded_datagram(&lab.outside, &lab.container1, version)?;
        ensure!(ping(&lab.container1, to)?, "a container's ping to {to}");
    }
    Ok(())
}

fn masqueraded_datagram(outside: &Namespace, container: &Namespace, version: usize) -> Result<()> {
    let to = ip(INTERNET[version]);
    let peer = udp(outside, to, 5000)?;
    let own = udp(container, ip(CONTAINER1[version]), 6000)?;
    send(&own, to, 5000, b"hello")?;
    let seen = datagram(&peer)?.context("the datagram did not get out")?;
    ensure!(seen.ip() == ip(SERVER[version]), "seen as {seen}");
    send(&peer, seen.ip(), seen.port(), b"answer")?;
    ensure!(
        datagram(&own)? == Some(SocketAddr::new(to, 5000)),
        "the answer did not come back"
    );
    Ok(())
}

fn zones(guide: &GuideLab) -> Result<()> {
    let tenants = Tenants::new(guide)?;
    guide.load(tenants::RULES, tenants::RULES)?;
    tenants.talk(guide)?;
    drop(tenants);
    guide.load_guide()
}

fn sctp(guide: &GuideLab) -> Result<()> {
    let [v4, v6] = [0, 1].map(|version| association::rules(version, " --to-ports 30000-30999"));
    guide.load(&v4, &v6)?;
    association::talk_both_ways(guide)?;
    guide.load_guide()
}

/// Flows go on over a reload, the new rules hold after it, and at no moment is there no firewall.
fn reload(guide: &GuideLab) -> Result<()> {
    const ROUNDS: usize = 2;
    let lab = &guide.lab;
    tcp_echo(&lab.outside, 8078)?;
    tcp_echo(&lab.server, 80)?;
    let mut streams = Vec::new();
    for number in 0..20 {
        let (from, to, port) = if number % 2 == 0 {
            (&lab.container1, INTERNET[number / 2 % 2], 8078)
        } else {
            (&lab.outside, SERVER[number / 2 % 2], 80)
        };
        let mut stream = connect(from, None, SocketAddr::new(ip(to), port), PATIENCE)?;
        round_trip(&mut stream, b"before")?;
        streams.push(stream);
    }
    let closed = |rules: &str| rules.replace("-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n", "");
    let (v4, v6) = (closed(RULES_V4), closed(RULES_V6) + MASQUERADE_V6);
    ensure!(
        v4 != RULES_V4,
        "the guide has no rule about port 80 any more"
    );

    let over = AtomicBool::new(false);
    let (sent, arrived) = thread::scope(|scope| -> Result<_> {
        let probe = scope.spawn(|| blocked_datagrams(lab, &over));
        let reloads = (0..ROUNDS).try_for_each(|_| {
            guide.load_guide()?;
            guide.load(&v4, &v6)
        });
        over.store(true, Ordering::Relaxed);
        let probed = probe
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        reloads.and(probed)
    })?;
    ensure!(
        arrived == 0,
        "{arrived} of {sent} datagrams that every policy drops came through while reloading"
    );
    for (number, stream) in streams.iter_mut().enumerate() {
        round_trip(stream, b"after").with_context(|| format!("flow {number} is lost"))?;
    }
    for server in SERVER {
        let got = reach(&lab.outside, None, ip(server), 80)?;
        ensure!(
            got == Reach::Silent,
            "the new rules do not hold: port 80 is {got:?}"
        );
    }
    guide.load_guide()?;
    for server in SERVER {
        let got = reach(&lab.outside, None, ip(server), 80)?;
        ensure!(
            got == Reach::Open,
            "after the last reload port 80 is {got:?}"
        );
    }
    Ok(())
}

/// Sends datagrams that the guide drops until told to stop: how many were sent, how many came.
fn blocked_datagrams(lab: &crate::lab::ServerLab, over: &AtomicBool) -> Result<(usize, usize)> {
    let target = udp(&lab.server, ip(SERVER[0]), 9999)?;
    target.set_nonblocking(true)?;
    let sender = udp(&lab.outside, ip(INTERNET[0]), 0)?;
    let (mut sent, mut arrived) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        send(&sender, ip(SERVER[0]), 9999, b"let me in")?;
        sent += 1;
        while target.recv(&mut [0; 16]).is_ok() {
            arrived += 1;
        }
        thread::sleep(std::time::Duration::from_micros(200));
    }
    Ok((sent, arrived))
}

fn counters(guide: &GuideLab) -> Result<()> {
    const PACKETS: u64 = 37;
    const LENGTH: u64 = 100;
    for version in 0..2 {
        let family = [Family::Ipv4, Family::Ipv6][version];
        let header = [20 + 8, 40 + 8][version];
        let before = guide.count(family, "-A INPUT -j DROP")?;
        let sender = udp(&guide.lab.outside, ip(INTERNET[version]), 0)?;
        for _ in 0..PACKETS {
            send(&sender, ip(SERVER[version]), 9, &[0; LENGTH as usize])?;
        }
        let after = guide.count(family, "-A INPUT -j DROP")?;
        let expected = (before.0 + PACKETS, before.1 + PACKETS * (LENGTH + header));
        ensure!(after == expected, "{family:?}: {after:?}, not {expected:?}");
    }
    Ok(())
}
