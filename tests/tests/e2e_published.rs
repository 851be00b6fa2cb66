//! Translated destinations by real sockets, under iptables and under fwbpf: a published port, from
//! outside and from the container beside, and a redirected one. TCP and UDP, IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use fwbpf_tests::guide::{GuideLab, under_both, with_fwbpf};
use fwbpf_tests::lab::Namespace;
use fwbpf_tests::lab::address::{BRIDGE, CONTAINER1, CONTAINER2, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{
    PATIENCE, Reach, connect, datagram, ip, listen, reach, round_trip, send, udp,
};

const PUBLISHED: u16 = 8080;
const INNER: u16 = 80;
const REDIRECTED: u16 = 8443;
const SERVICE: u16 = 4443;

/// What Docker writes for `-p 8080:80`, and a redirection for what comes to the host itself.
fn rules(version: usize) -> String {
    let container = CONTAINER1[version];
    let inner = match version {
        0 => format!("{container}:{INNER}"),
        _ => format!("[{container}]:{INNER}"),
    };
    let mut text = format!(
        "*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\n\
         -A POSTROUTING -s {container} -d {container} -j MASQUERADE\n"
    );
    for protocol in ["tcp", "udp"] {
        text += &format!(
            "-A PREROUTING -d {} -p {protocol} -m {protocol} --dport {PUBLISHED} -j DNAT --to-destination {inner}\n\
             -A PREROUTING -p {protocol} -m {protocol} --dport {REDIRECTED} -j REDIRECT --to-ports {SERVICE}\n\
             -A POSTROUTING -o docker0 -s {} -p {protocol} -j SNAT --to-source {}\n",
            SERVER[version], CONTAINER2[version], BRIDGE[version],
        );
    }
    text += "COMMIT\n*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n\
             -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    if version == 1 {
        text += "-A INPUT -p ipv6-icmp -j ACCEPT\n";
    }
    text += &format!(
        "-A INPUT -p tcp --dport {SERVICE} -j ACCEPT\n-A INPUT -p udp --dport {SERVICE} -j ACCEPT\n\
         -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -d {container} -p tcp --dport {INNER} -m conntrack --ctstate DNAT -j ACCEPT\n\
         -A FORWARD -d {container} -p udp --dport {INNER} -m conntrack --ctstate DNAT -j ACCEPT\n\
         COMMIT\n"
    );
    text
}

fn load(guide: &GuideLab) -> Result<()> {
    guide.load(&rules(0), &rules(1))
}

#[test]
fn a_published_port_is_reached_from_outside() {
    under_both("published_outside", |guide| {
        load(guide)?;
        let lab = &guide.lab;
        for version in 0..2 {
            let (client, server) = (ip(INTERNET[version]), ip(SERVER[version]));
            let port = PUBLISHED;
            talk(
                (&lab.outside, client),
                (&lab.container1, ip(CONTAINER1[version]), INNER),
                SocketAddr::new(server, port),
                client,
            )?;
            // FORWARD lets only translated packets in, and only to what is published.
            ensure!(
                reach(&lab.outside, None, server, INNER)? == Reach::Silent,
                "{server} port {INNER} is open"
            );
        }
        shows_both_names(guide)
    });
}

#[test]
fn a_published_port_is_reached_from_the_container_beside() {
    under_both("published_hairpin", |guide| {
        load(guide)?;
        let lab = &guide.lab;
        for version in 0..2 {
            talk(
                (&lab.container2, ip(CONTAINER2[version])),
                (&lab.container1, ip(CONTAINER1[version]), INNER),
                SocketAddr::new(ip(SERVER[version]), PUBLISHED),
                ip(BRIDGE[version]),
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_redirected_port_leads_to_another_one_of_the_host() {
    under_both("redirected", |guide| {
        load(guide)?;
        let lab = &guide.lab;
        for version in 0..2 {
            let (client, server) = (ip(INTERNET[version]), ip(SERVER[version]));
            talk(
                (&lab.outside, client),
                (&lab.server, server, SERVICE),
                SocketAddr::new(server, REDIRECTED),
                client,
            )?;
        }
        Ok(())
    });
}

/// What policy.toml publishes is open without a further line, and nothing else is.
#[test]
fn policy_toml_publishes_in_both_ip_versions() {
    with_fwbpf("published_toml", &[], |lab, fwbpf| {
        let publish = |at: &str| {
            format!(
                "[[publish]]\nprotocol = [\"tcp\", \"udp\"]\nports = [{PUBLISHED}]\nat = \"{at}\"\n\
                 in = \"eth0\"\n"
            )
        };
        let mut text = publish(&format!("{}:{INNER}", CONTAINER1[0]));
        text += &publish(&format!("[{}]:{INNER}", CONTAINER1[1]));
        text += &format!(
            "[[publish]]\nprotocol = [\"tcp\", \"udp\"]\nports = [{REDIRECTED}]\nat = \":{SERVICE}\"\n"
        );
        let policy = fwbpf.write_policy("policy.toml", &text)?;
        fwbpf.load_files(&[&policy])?;
        for version in 0..2 {
            let (client, server) = (ip(INTERNET[version]), ip(SERVER[version]));
            let (there, here): (&Namespace, &Namespace) = (&lab.container1, &lab.server);
            let container = (there, ip(CONTAINER1[version]), INNER);
            let outside: (&Namespace, IpAddr) = (&lab.outside, client);
            let published = SocketAddr::new(server, PUBLISHED);
            talk(outside, container, published, client)?;
            let redirected = SocketAddr::new(server, REDIRECTED);
            talk(outside, (here, server, SERVICE), redirected, client)?;
            for (to, port) in [(server, SERVICE), (container.1, INNER)] {
                ensure!(
                    reach(&lab.outside, None, to, port)? == Reach::Silent,
                    "{to} port {port} is open"
                );
            }
        }
        Ok(())
    });
}

/// A client talks to a service under another name than the service's own, by TCP and UDP. The service
/// sees the client under `seen`, and the client sees whom it wrote to.
fn talk(
    client: (&Namespace, IpAddr),
    service: (&Namespace, IpAddr, u16),
    to: SocketAddr,
    seen: IpAddr,
) -> Result<()> {
    let listener = listen(service.0, service.2)?;
    let mut stream = connect(client.0, Some(SocketAddr::new(client.1, 0)), to, PATIENCE)
        .with_context(|| format!("{} connects to {to}", client.1))?;
    let (mut accepted, peer) = listener.accept()?;
    ensure!(plain(peer.ip()) == seen, "TCP's client is seen as {peer}");
    let own = accepted.local_addr()?;
    ensure!(
        (plain(own.ip()), own.port()) == (service.1, service.2),
        "TCP's service is {own}"
    );
    std::thread::spawn(move || std::io::copy(&mut accepted.try_clone()?, &mut accepted));
    let text: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    round_trip(&mut stream, &text)?;
    drop(stream);

    let own: UdpSocket = udp(client.0, client.1, 6000)?;
    let there = udp(service.0, service.1, service.2)?;
    for text in [&b"question"[..], b"another"] {
        send(&own, to.ip(), to.port(), text)?;
        let mut bytes = [0; 100];
        let (length, peer) = there.recv_from(&mut bytes).context("the datagram")?;
        ensure!(&bytes[..length] == text, "the datagram is another");
        ensure!(peer.ip() == seen, "UDP's client is seen as {peer}");
        send(&there, peer.ip(), peer.port(), b"answer")?;
        ensure!(datagram(&own)? == Some(to), "the answer is not from {to}");
    }
    Ok(())
}

/// The list of connections says what clients wrote to, and where that is.
fn shows_both_names(guide: &GuideLab) -> Result<()> {
    let flows = guide.firewall.flows()?;
    for version in 0..2 {
        let (client, server, container) = (INTERNET[version], SERVER[version], CONTAINER1[version]);
        let names = [
            format!("src={client} dst={server} sport=6000 dport={PUBLISHED} "),
            format!("src={container} dst={client} sport={INNER} dport=6000 "),
        ];
        ensure!(
            flows
                .lines()
                .any(|line| names.iter().all(|name| line.contains(name))),
            "no {names:?} in\n{flows}"
        );
    }
    Ok(())
}

fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
