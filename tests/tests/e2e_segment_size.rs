//! TCPMSS: what two hosts hear of each other's segments through a router.

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, OUTSIDE};
use fwbpf_tests::lab::sockets::{PATIENCE, connect, ip, listen, round_trip};
use fwbpf_tests::lab::{Firewall as _, Namespace, ServerLab};
use socket2::SockRef;

/// The largest segments that the two ends of a new connection send, the opener's first.
fn segments(
    from: &Namespace,
    listener: &TcpListener,
    own: SocketAddr,
    to: SocketAddr,
) -> Result<[u32; 2]> {
    let near = connect(from, Some(own), to, PATIENCE).context("the connection")?;
    let (far, _) = listener.accept()?;
    let mut pair = [near, far];
    let [near, far] = &mut pair;
    std::thread::scope(|scope| -> Result<()> {
        let echo = scope.spawn(|| -> Result<()> {
            let mut text = [0; 4];
            std::io::Read::read_exact(far, &mut text)?;
            Ok(std::io::Write::write_all(far, &text)?)
        });
        round_trip(near, b"text")?;
        echo.join().expect("no panic")
    })?;
    let size = |stream: &TcpStream| SockRef::from(stream).tcp_mss();
    Ok([size(&pair[0])?, size(&pair[1])?])
}

/// Both ends have timestamps in each segment.
const TIMESTAMPS: u32 = 12;

fn both_ways(lab: &ServerLab, port: u16, version: usize) -> Result<([u32; 2], [u32; 2])> {
    let far = ip(INTERNET[version]);
    let near = ip(CONTAINER1[version]);
    let listener = listen(&lab.outside, port)?;
    let out = segments(
        &lab.container1,
        &listener,
        SocketAddr::new(near, port + 1),
        SocketAddr::new(far, port),
    )?;
    let listener = listen(&lab.container1, port + 2)?;
    let into = segments(
        &lab.outside,
        &listener,
        SocketAddr::new(far, port + 3),
        SocketAddr::new(near, port + 2),
    )?;
    Ok((out, into))
}

#[test]
fn segments_are_as_short_as_the_narrower_way() {
    with_fwbpf("segment_size", &[], |lab, fwbpf| {
        const CLAMP: &str = "*mangle\n-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\nCOMMIT\n";
        const SET: &str = "*mangle\n-A POSTROUTING -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000\nCOMMIT\n";
        const OPEN: &str = "*filter\n:INPUT ACCEPT\nCOMMIT\n";
        for version in 0..2 {
            let family = [Family::Ipv4, Family::Ipv6][version];
            let headers = [40, 60][version] + TIMESTAMPS;
            // Only the router knows how little its outer link carries: neither end does.
            lab.server.ip("link set eth0 mtu 1400")?;
            fwbpf.load(&[(family, CLAMP)])?;
            let narrow = [1400 - headers; 2];
            let found = both_ways(lab, 7000, version)?;
            ensure!(found == (narrow, narrow), "clamped: {found:?}");
            lab.server.ip("link set eth0 mtu 1500")?;
            let wide = [1500 - headers; 2];
            let found = both_ways(lab, 7010, version)?;
            ensure!(found == (wide, wide), "nothing to clamp: {found:?}");
            // A route's own.
            let prefix = format!("{}/{}", INTERNET[version], [32, 128][version]);
            lab.server.ip(&format!(
                "route add {prefix} via {} mtu lock 1300",
                OUTSIDE[version]
            ))?;
            let shorter = [1300 - headers; 2];
            let found = both_ways(lab, 7020, version)?;
            ensure!(
                found == (shorter, shorter),
                "clamped by the route: {found:?}"
            );
            lab.server.ip(&format!("route del {prefix}"))?;
            fwbpf.load(&[(family, SET)])?;
            let found = both_ways(lab, 7030, version)?;
            let set = [1000 - TIMESTAMPS; 2];
            ensure!(found == (set, set), "set: {found:?}");
            fwbpf.load(&[(family, OPEN)])?;
            let found = both_ways(lab, 7040, version)?;
            ensure!(found == (wide, wide), "without a rule: {found:?}");
        }
        Ok(())
    });
}
