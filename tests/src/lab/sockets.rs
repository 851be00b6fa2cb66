//! Real sockets in a namespace, and what a firewall does to them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};

use super::Namespace;

/// How long something that must happen may take, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long something must not happen to count as prevented. The namespaces answer within
/// microseconds, and TCP repeats its first segment after one second.
pub const SILENCE: Duration = Duration::from_millis(400);

/// What became of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Connected, and bytes went both ways.
    Open,
    /// No answer at all.
    Silent,
    /// The other host answered that nobody listens.
    Refused,
}

/// An address of the lab from its text.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("the lab's addresses are written right")
}

/// A TCP listener on every address of the namespace, both IP versions, that sends every byte back.
/// It serves until the process ends.
pub fn tcp_echo(namespace: &Namespace, port: u16) -> Result<()> {
    let listener = listen(namespace, port)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    Ok(())
}

/// A TCP listener on every address of the namespace. A listener of the same port that has just been
/// closed may live on for a moment, in the copy of its descriptor that a program has which another
/// test starts just now, until it executes: that is waited for.
pub fn listen(namespace: &Namespace, port: u16) -> Result<TcpListener> {
    let until = Instant::now() + PATIENCE;
    let attempt = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([0u16; 8], port)).into())?;
        socket.listen(2048)?;
        Ok(socket.into())
    };
    loop {
        match namespace.enter(attempt)? {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            listener => {
                return listener
                    .with_context(|| format!("listen at port {port} in {}", namespace.name()));
            }
        }
    }
}

/// A connected TCP socket; `from` binds its own address, port 0 being any.
pub fn connect(
    namespace: &Namespace,
    from: Option<SocketAddr>,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    namespace
        .enter(|| -> io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(from) = from {
                socket.set_reuse_address(true)?;
                socket.bind(&from.into())?;
            }
            socket.connect_timeout(&to.into(), patience)?;
            Ok(socket.into())
        })
        .map_err(io::Error::other)?
}

/// Tries to talk to a [`tcp_echo`].
pub fn reach(namespace: &Namespace, from: Option<IpAddr>, to: IpAddr, port: u16) -> Result<Reach> {
    let from = from.map(|address| SocketAddr::new(address, 0));
    match connect(namespace, from, SocketAddr::new(to, port), SILENCE) {
        Ok(mut stream) => {
            round_trip(&mut stream, b"are you there?")?;
            Ok(Reach::Open)
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Reach::Refused),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(Reach::Silent),
        Err(error) => {
            Err(error).with_context(|| format!("{} connects to {to} port {port}", namespace.name()))
        }
    }
}

/// Sends bytes to an echo and waits for them.
pub fn round_trip(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).context("the echo")?;
    anyhow::ensure!(back == text, "the echo is another text");
    Ok(())
}

/// A UDP socket; port 0 is any. Reading gives up after [`SILENCE`].
pub fn udp(namespace: &Namespace, address: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = namespace
        .enter(|| UdpSocket::bind(SocketAddr::new(address, port)))?
        .with_context(|| format!("bind {address} port {port} in {}", namespace.name()))?;
    socket.set_read_timeout(Some(SILENCE))?;
    Ok(socket)
}

/// The next datagram's sender, or nothing within [`SILENCE`].
pub fn datagram(socket: &UdpSocket) -> Result<Option<SocketAddr>> {
    match socket.recv_from(&mut [0; 2048]) {
        Ok((_, from)) => Ok(Some(from)),
        // A waiting call with a time limit is not taken up again after a signal (signal(7)).
        Err(error) if error.kind() == ErrorKind::Interrupted => datagram(socket),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Sends a datagram. iptables tells a sender with EPERM that OUTPUT dropped it, fwbpf does not:
/// both are a send.
pub fn send(socket: &UdpSocket, to: IpAddr, port: u16, text: &[u8]) -> Result<()> {
    match socket.send_to(text, SocketAddr::new(to, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether one real `ping` is answered.
pub fn ping(namespace: &Namespace, to: IpAddr) -> Result<bool> {
    let status = namespace
        .command("ping")
        .args(["-n", "-q", "-c", "1", "-W", "1", &to.to_string()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .context("start ping")?;
    Ok(status.success())
}

/// Repeats a question until it is answered with yes.
pub fn wait_for(what: &str, ready: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_up_to(PATIENCE, what, ready)
}

/// [`wait_for`] what takes its time.
pub fn wait_up_to(
    patience: Duration,
    what: &str,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain for: {what}");
        }
        std::thread::sleep((patience / 1000).max(Duration::from_millis(5)));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length) = stream.read(&mut buffer) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
