//! The probes: what the guide promises, each tried with a real program's socket or with `ping`.

use std::{
    io::{self, ErrorKind, Read},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use fw_user::policy::model::Family;
use fwbpf_tests::lab::{Namespace, ServerLab, address};
use socket2::{Domain, Socket, Type};

/// Shorter than TCP's first retransmission (1 s), so that a blocked connection is one packet.
const PATIENCE: Duration = Duration::from_millis(700);

/// What the guide says will happen, and what did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It gets through; the note says what the other side saw, where that matters.
    Passes(String),
    /// Silence.
    Blocked,
}

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// It gets through.
    Passes,
    /// It gets through, and the other side sees this address.
    SeenAs(&'static str),
    /// It does not.
    Blocked,
}

impl Promise {
    /// Whether it was kept.
    pub fn is_kept_by(self, effect: &Effect) -> bool {
        match (self, effect) {
            (Self::Passes, Effect::Passes(_)) | (Self::Blocked, Effect::Blocked) => true,
            (Self::SeenAs(address), Effect::Passes(note)) => {
                note.split(", ").all(|seen| is_at(seen, address))
            }
            _ => false,
        }
    }
}

/// One promise of the guide and how to try it.
pub struct Probe {
    /// What is tried.
    pub what: &'static str,
    /// Over which IP version.
    pub family: Family,
    /// What the guide says.
    pub promise: Promise,
    /// The chain whose line decides.
    pub chain: &'static str,
    /// Where the first packet that the chain sees comes in.
    pub enters: Option<&'static str>,
    /// Tries it.
    pub run: fn(&Scene, Family) -> Result<Effect>,
}

/// The hosts between which the probes run.
pub struct Scene {
    lab: ServerLab,
}

impl Scene {
    /// Takes the namespaces over.
    pub fn new(lab: ServerLab) -> Self {
        Self { lab }
    }
}

/// All probes, in the order in which the table shows them.
pub fn all() -> Vec<Probe> {
    let mut probes: Vec<Probe> = [Family::Ipv4, Family::Ipv6]
        .into_iter()
        .flat_map(|family| incoming(family).into_iter().chain(outgoing(family)))
        .chain(forwarded(Family::Ipv4))
        .chain(forwarded(Family::Ipv6))
        .collect();
    probes.sort_by_key(|probe| probe.family == Family::Ipv6);
    probes
}

fn incoming(family: Family) -> Vec<Probe> {
    let from_outside = |what, promise, run| Probe {
        what,
        family,
        promise,
        chain: "INPUT",
        enters: Some("eth0"),
        run,
    };
    vec![
        Probe {
            enters: Some("lo"),
            ..from_outside(
                "server -> itself, loopback, TCP 81",
                Promise::Passes,
                |scene, family| tcp(&scene.lab.server, None, pick(address::LOOPBACK, family), 81),
            )
        },
        from_outside(
            "internet -> server, ping",
            Promise::Passes,
            |scene, family| ping(&scene.lab.outside, pick(address::SERVER, family)),
        ),
        from_outside(
            "internet -> server, TCP 22",
            Promise::Passes,
            |scene, family| from_internet(scene, family, 22),
        ),
        from_outside(
            "internet -> server, TCP 80",
            Promise::Passes,
            |scene, family| from_internet(scene, family, 80),
        ),
        from_outside(
            "internet -> server, TCP 443",
            Promise::Passes,
            |scene, family| from_internet(scene, family, 443),
        ),
        from_outside(
            "internet -> server, TCP 81",
            Promise::Blocked,
            |scene, family| from_internet(scene, family, 81),
        ),
        from_outside(
            "admin's address -> server, TCP 81",
            Promise::Passes,
            |scene, family| {
                let (admin, server) = (address::ADMIN, address::SERVER);
                let from = pick(admin, family);
                tcp(
                    &scene.lab.outside,
                    Some((from, 0)),
                    pick(server, family),
                    81,
                )
            },
        ),
        from_outside(
            "internet -> server, UDP 5353 unasked",
            Promise::Blocked,
            |scene, family| {
                let from = pick(address::INTERNET, family);
                udp(
                    &scene.lab.outside,
                    Some(from),
                    pick(address::SERVER, family),
                    5353,
                )
            },
        ),
        from_outside(
            "internet's reply -> server, own TCP 80",
            Promise::Passes,
            |scene, family| tcp(&scene.lab.server, None, pick(address::INTERNET, family), 80),
        ),
        from_outside(
            "internet's reply -> server, own UDP 53",
            Promise::Passes,
            |scene, family| udp(&scene.lab.server, None, pick(address::INTERNET, family), 53),
        ),
    ]
}

fn outgoing(family: Family) -> Vec<Probe> {
    let by_server = |what, promise, run| Probe {
        what,
        family,
        promise,
        chain: "OUTPUT",
        enters: None,
        run,
    };
    vec![
        by_server(
            "server -> internet, TCP 80",
            Promise::Passes,
            |scene, family| tcp(&scene.lab.server, None, pick(address::INTERNET, family), 80),
        ),
        by_server(
            "server -> internet, TCP 25",
            Promise::Blocked,
            |scene, family| tcp(&scene.lab.server, None, pick(address::INTERNET, family), 25),
        ),
        by_server(
            "server -> admin, TCP 25",
            Promise::Passes,
            |scene, family| tcp(&scene.lab.server, None, pick(address::ADMIN, family), 25),
        ),
        by_server(
            match family {
                Family::Ipv4 => "server -> 10.1.2.3, TCP 80",
                Family::Ipv6 => "server -> fd00:10::3, TCP 80",
            },
            Promise::Blocked,
            |scene, family| {
                tcp(
                    &scene.lab.server,
                    None,
                    pick(address::FORBIDDEN, family),
                    80,
                )
            },
        ),
    ]
}

fn forwarded(family: Family) -> Vec<Probe> {
    let through = |enters, what, promise, run| Probe {
        what,
        family,
        promise,
        chain: "FORWARD",
        enters: Some(enters),
        run,
    };
    // The guide masquerades IPv4 only; its IPv6 containers have addresses of their own.
    let seen_as = |container| match family {
        Family::Ipv4 => Promise::SeenAs(address::SERVER[0]),
        Family::Ipv6 => Promise::SeenAs(container),
    };
    let mut probes = vec![
        through(
            "docker0",
            "container -> internet, ping",
            Promise::Passes,
            |scene, family| ping(&scene.lab.container1, pick(address::INTERNET, family)),
        ),
        through(
            "docker0",
            "container -> internet, TCP 80",
            seen_as(address::CONTAINER1[1]),
            |scene, family| {
                tcp(
                    &scene.lab.container1,
                    None,
                    pick(address::INTERNET, family),
                    80,
                )
            },
        ),
        through(
            "docker0",
            "container -> internet, UDP 53",
            seen_as(address::CONTAINER1[1]),
            |scene, family| {
                udp(
                    &scene.lab.container1,
                    None,
                    pick(address::INTERNET, family),
                    53,
                )
            },
        ),
        through(
            "docker0",
            "container -> internet, its ICMP error comes back",
            Promise::Passes,
            refusal,
        ),
        // The guide's IPv4 rules let eth0 -> docker0 in whatever the state; the IPv6 ones do not.
        through(
            "eth0",
            "internet -> container, TCP 80",
            match family {
                Family::Ipv4 => Promise::Passes,
                Family::Ipv6 => Promise::Blocked,
            },
            |scene, family| {
                let from = pick(address::INTERNET, family);
                let to = pick(address::CONTAINER1, family);
                tcp(&scene.lab.outside, Some((from, 0)), to, 80)
            },
        ),
        through(
            "eth1",
            "host at eth1 -> container, TCP 80",
            Promise::Blocked,
            |scene, family| {
                tcp(
                    &scene.lab.other,
                    None,
                    pick(address::CONTAINER1, family),
                    80,
                )
            },
        ),
        through(
            "docker0",
            "container -> host at eth1, TCP 80",
            Promise::Blocked,
            |scene, family| {
                tcp(
                    &scene.lab.container1,
                    None,
                    pick(address::OTHER, family),
                    80,
                )
            },
        ),
    ];
    if family == Family::Ipv4 {
        probes.push(through(
            "docker0",
            "two containers -> internet, same source port",
            Promise::SeenAs(address::SERVER[0]),
            same_source_port,
        ));
    }
    probes
}

fn from_internet(scene: &Scene, family: Family, port: u16) -> Result<Effect> {
    let from = pick(address::INTERNET, family);
    tcp(
        &scene.lab.outside,
        Some((from, 0)),
        pick(address::SERVER, family),
        port,
    )
}

/// Both containers connect from port 40000 at the same time, and both connections live.
fn same_source_port(scene: &Scene, family: Family) -> Result<Effect> {
    let to = pick(address::INTERNET, family);
    let connect = |namespace, container: [&str; 2]| {
        tcp(namespace, Some((pick(container, family), 40_000)), to, 80)
    };
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| connect(&scene.lab.container1, address::CONTAINER1));
        let second = connect(&scene.lab.container2, address::CONTAINER2);
        (first.join().expect("the probe does not panic"), second)
    });
    Ok(match (first?, second?) {
        (Effect::Passes(first), Effect::Passes(second)) => {
            Effect::Passes(format!("{first}, {second}"))
        }
        _ => Effect::Blocked,
    })
}

/// A datagram to a port where nobody listens: the refusal is an ICMP error about the masqueraded
/// packet, and reaches the container only if the firewall translates it back.
fn refusal(scene: &Scene, family: Family) -> Result<Effect> {
    let socket = udp_socket(
        &scene.lab.container1,
        None,
        pick(address::INTERNET, family),
        9,
    )?;
    socket.send(b"anybody there?")?;
    match socket.recv(&mut [0; 64]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Ok(Effect::Passes("refused".into()))
        }
        Err(error) if is_silence(&error) => Ok(Effect::Blocked),
        Err(error) => Err(error).context("receive"),
        Ok(_) => Ok(Effect::Passes("an answer".into())),
    }
}

/// Sends one echo request with the real `ping`.
fn ping(from: &Namespace, to: IpAddr) -> Result<Effect> {
    let output = from
        .command("ping")
        .args(["-n", "-c", "1", "-W", "1", &to.to_string()])
        .output()
        .context("cannot run ping")?;
    // ping(8): 1 means that no reply came, anything above that it could not be sent.
    match output.status.code() {
        Some(0) => Ok(Effect::Passes(String::new())),
        Some(1) => Ok(Effect::Blocked),
        _ => anyhow::bail!("ping: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// Connects, and reads as whom the service sees this end.
fn tcp(from: &Namespace, bind: Option<(IpAddr, u16)>, to: IpAddr, port: u16) -> Result<Effect> {
    let to = SocketAddr::new(to, port);
    let socket = from.enter(|| Socket::new(Domain::for_address(to), Type::STREAM, None))??;
    if let Some((address, port)) = bind {
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(address, port).into())?;
    }
    match socket.connect_timeout(&to.into(), PATIENCE) {
        Ok(()) => {}
        Err(error) if is_silence(&error) => return Ok(Effect::Blocked),
        Err(error) => return Err(error).with_context(|| format!("connect to {to}")),
    }
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut seen = String::new();
    match stream.read_to_string(&mut seen) {
        Ok(_) => Ok(Effect::Passes(seen)),
        Err(error) if is_silence(&error) => Ok(Effect::Blocked),
        Err(error) => Err(error).with_context(|| format!("read from {to}")),
    }
}

/// Sends a datagram, and reads as whom the service sees this end.
fn udp(from: &Namespace, bind: Option<IpAddr>, to: IpAddr, port: u16) -> Result<Effect> {
    let socket = udp_socket(from, bind, to, port)?;
    socket.send(b"who am I?")?;
    let mut answer = [0; 64];
    match socket.recv(&mut answer) {
        Ok(length) => Ok(Effect::Passes(
            String::from_utf8_lossy(&answer[..length]).into_owned(),
        )),
        Err(error) if is_silence(&error) => Ok(Effect::Blocked),
        Err(error) => Err(error).with_context(|| format!("receive from {to}")),
    }
}

fn udp_socket(from: &Namespace, bind: Option<IpAddr>, to: IpAddr, port: u16) -> Result<UdpSocket> {
    let unspecified = match to {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let socket = from.enter(|| UdpSocket::bind((bind.unwrap_or(unspecified), 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((to, port))?;
    Ok(socket)
}

/// A packet that the firewall drops is not answered at all.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn pick([v4, v6]: [&str; 2], family: Family) -> IpAddr {
    let text = match family {
        Family::Ipv4 => v4,
        Family::Ipv6 => v6,
    };
    text.parse().expect("the lab's addresses are addresses")
}

/// Whether `seen` (`address:port`) is at `address`.
fn is_at(seen: &str, address: &str) -> bool {
    seen.parse::<SocketAddr>()
        .is_ok_and(|seen| address.parse() == Ok(seen.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises() {
        let seen = Effect::Passes("198.51.100.10:40000, 198.51.100.10:1024".into());
        assert!(Promise::SeenAs("198.51.100.10").is_kept_by(&seen));
        assert!(!Promise::SeenAs("172.17.0.2").is_kept_by(&seen));
        assert!(!Promise::Blocked.is_kept_by(&seen));
        assert!(!Promise::Passes.is_kept_by(&Effect::Blocked));
    }
}
