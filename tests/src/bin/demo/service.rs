//! The programs that the probes talk to: each says whom it sees at the other end, which is how a
//! probe learns of the masquerade.

use std::{
    io::Write,
    net::{TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use fwbpf_tests::lab::{Namespace, ServerLab, address};

/// How often an idle service looks whether it is to end.
const PAUSE: Duration = Duration::from_millis(10);

/// Running services; they end when this is dropped.
pub struct Services {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Services {
    /// Starts all that the probes want to reach, whether the policy lets them or not.
    pub fn start(lab: &ServerLab) -> Result<Self> {
        let mut services = Self {
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        for port in [22, 80, 81, 443] {
            services.tcp(&lab.server, port)?;
        }
        for port in [25, 80] {
            services.tcp(&lab.outside, port)?;
        }
        services.tcp(&lab.container1, 80)?;
        services.tcp(&lab.other, 80)?;
        // UDP answers from the address that a socket is bound to, so these are bound to one.
        for host in address::SERVER {
            services.udp(&lab.server, host, 5353)?;
        }
        for host in address::INTERNET {
            services.udp(&lab.outside, host, 53)?;
        }
        Ok(services)
    }

    /// Accepts on both IP versions, says `address:port` of the peer, and hangs up.
    fn tcp(&mut self, namespace: &Namespace, port: u16) -> Result<()> {
        let listener = namespace
            .enter(|| TcpListener::bind(("::", port)))?
            .with_context(|| format!("cannot listen at TCP port {port}"))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that is already gone is its own affair.
                    Ok((mut client, peer)) => drop(write!(client, "{}", canonical(peer))),
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        }));
        Ok(())
    }

    /// Answers every datagram with `address:port` of its sender.
    fn udp(&mut self, namespace: &Namespace, host: &str, port: u16) -> Result<()> {
        let socket = namespace
            .enter(|| UdpSocket::bind((host, port)))?
            .with_context(|| format!("cannot bind UDP {host} port {port}"))?;
        socket.set_nonblocking(true)?;
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match socket.recv_from(&mut [0; 64]) {
                    Ok((_, peer)) => drop(socket.send_to(peer.to_string().as_bytes(), peer)),
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        }));
        Ok(())
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// An IPv4 peer of a socket for both versions, as IPv4.
fn canonical(peer: std::net::SocketAddr) -> std::net::SocketAddr {
    (peer.ip().to_canonical(), peer.port()).into()
}
