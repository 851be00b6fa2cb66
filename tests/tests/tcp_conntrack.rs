//! The corners of TCP connection tracking, one test each, segment by segment beside netfilter: the same
//! frames go through a router with iptables and one with fwbpf, and after each of them the label that
//! rules saw and the connections in the table are the same. The kernel's own tests of these behaviours
//! are tools/testing/selftests/net/netfilter/packetdrill/conntrack_*.pkt.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fwbpf_tests::beside::{self, ADDRESSES, Name};
use fwbpf_tests::packet::flags::{ACK, FIN, PSH, RST, SYN};
use fwbpf_tests::packet::{Packet, Payload};

/// Data of which only the acknowledgements were lost are sent again: they are old, and pass.
#[test]
fn ack_loss_stall() {
    beside_netfilter("ct_ack_loss", |pair| {
        pair.open(1000, 65_535)?;
        let mut next = 101;
        for _ in 0..50 {
            pair.send(client(ACK | PSH).at(next, 5001).data(1400))?;
            next += 1400;
            pair.send(server(ACK).at(5001, next).window(65_535))?;
        }
        // More than a window behind.
        let label = pair.send(client(ACK | PSH).at(101, 5001).data(1400))?;
        ensure!(label == "ESTABLISHED", "an old segment is {label}");
        let label = pair.send(client(ACK).at(next, 5001 + 70_000))?;
        ensure!(
            label == "INVALID",
            "what was never sent is acknowledged: {label}"
        );
        Ok(())
    });
}

/// A reset that is in the window but not exact closes nothing: the peer will challenge it.
#[test]
fn inexact_rst() {
    beside_netfilter("ct_inexact_rst", |pair| {
        pair.open(1000, 65_535)?;
        pair.send(client(ACK | PSH).at(101, 5001).data(100))?;
        pair.send(server(ACK).at(5001, 201))?;
        pair.send(client(RST).at(202, 0).window(0))?;
        pair.expect_state("ESTABLISHED")?;
        // The challenge, and the exact reset that it provokes.
        pair.send(server(ACK).at(5001, 201))?;
        pair.send(client(RST).at(201, 0).window(0))?;
        pair.expect_state("CLOSE")
    });
}

/// A reset of what the peer has acknowledged long ago is somebody else's.
#[test]
fn rst_invalid() {
    beside_netfilter("ct_rst_invalid", |pair| {
        pair.open(1000, 65_535)?;
        pair.send(client(ACK | PSH).at(101, 5001).data(1000))?;
        pair.send(server(ACK).at(5001, 1101))?;
        let label = pair.send(client(RST).at(600, 0).window(0))?;
        ensure!(label == "INVALID", "a reset of the past is {label}");
        pair.expect_state("ESTABLISHED")?;
        let label = pair.send(server(RST | ACK).at(5001, 1101).window(0))?;
        ensure!(label == "ESTABLISHED", "an exact reset is {label}");
        pair.expect_state("CLOSE")
    });
}

/// A server that still knows an old connection challenges a new SYN; the reset that answers the
/// challenge passes, and so does the next SYN.
#[test]
fn syn_challenge_ack() {
    beside_netfilter("ct_challenge", |pair| {
        pair.send(client(SYN).at(100, 0).offers())?;
        pair.send(server(ACK).at(145_824_453, 643_160_523).window(240))?;
        let label = pair.send(client(RST).at(643_160_523, 0).window(0))?;
        ensure!(label != "INVALID", "the reset is {label}");
        pair.send(client(SYN).at(100, 0).offers())?;
        pair.send(server(SYN | ACK).at(5000, 101).window(250))?;
        pair.send(client(ACK).at(101, 5001))?;
        pair.expect_state("ESTABLISHED")?;
        // The same in the last phase of a connection.
        pair.send(client(FIN | ACK).at(101, 5001))?;
        pair.send(server(ACK).at(5001, 102))?;
        pair.send(server(FIN | ACK).at(5001, 102))?;
        pair.send(client(SYN).at(700_000, 0).offers())?;
        pair.send(server(ACK).at(5002, 102))?;
        pair.expect_state("LAST_ACK")?;
        pair.send(client(ACK).at(102, 5002))?;
        pair.expect_state("TIME_WAIT")
    });
}

/// A SYN-ACK of an earlier connection does not keep the right one out.
#[test]
fn synack_old() {
    beside_netfilter("ct_synack_old", |pair| {
        pair.send(client(SYN).at(2_375_731_741, 0).offers().window(65_535))?;
        let label = pair.send(server(SYN | ACK).at(145_824_453, 2_375_900_000).window(240))?;
        ensure!(label == "INVALID", "an old SYN-ACK is {label}");
        pair.send(client(SYN).at(2_375_731_741, 0).offers().window(65_535))?;
        pair.expect_state("SYN_SENT")?;
        let label = pair.send(server(SYN | ACK).at(145_758_918, 2_375_731_742).window(250))?;
        ensure!(label == "ESTABLISHED", "the right SYN-ACK is {label}");
        pair.send(client(ACK | PSH).at(2_375_731_742, 145_758_919).data(1))?;
        pair.expect_state("ESTABLISHED")
    });
}

/// A SYN in the middle of a connection is let through; if the server takes it, tracking follows.
#[test]
fn synack_reuse() {
    beside_netfilter("ct_synack_reuse", |pair| {
        pair.open(1000, 65_535)?;
        pair.send(client(SYN).at(900_000, 0).offers())?;
        pair.expect_state("ESTABLISHED")?;
        pair.send(server(SYN | ACK).at(70_000, 900_001).offers())?;
        pair.expect_state("SYN_RECV")?;
        pair.send(client(ACK).at(900_001, 70_001))?;
        // Scaled by seven bits now.
        pair.send(client(ACK).at(900_001, 70_001).window(100))?;
        let label = pair.send(server(ACK | PSH).at(70_001 + 10_000, 900_001).data(100))?;
        ensure!(label == "ESTABLISHED", "within the scaled window: {label}");
        pair.expect_state("ESTABLISHED")
    });
}

/// A SYN that is sent again and again keeps no entry alive, and the first answer by a reset ends it.
#[test]
fn unreplied() {
    beside_netfilter("ct_unreplied", |pair| {
        pair.send(client(SYN).at(100, 0))?;
        std::thread::sleep(Duration::from_millis(2500));
        pair.send(client(SYN).at(100, 0))?;
        let (_, timeout) = pair.connection()?.context("the SYN's connection is gone")?;
        ensure!(
            timeout <= 118,
            "the second SYN set the timeout to {timeout} s"
        );
        pair.send(server(RST | ACK).at(0, 101).window(0))?;
        ensure!(pair.connection()?.is_none(), "the reset ended nothing");
        // Picked up in the middle, and nobody answers.
        pair.send(client(ACK).at(5000, 6000))?;
        let (_, timeout) = pair
            .connection()?
            .context("the connection was not picked up")?;
        ensure!((298..=300).contains(&timeout), "it lives for {timeout} s");
        pair.send(client(ACK).at(5000, 6000))?;
        pair.send(server(ACK).at(6000, 5000))?;
        pair.expect_state("ESTABLISHED")
    });
}

/// Both ends open at once, with the same ports.
#[test]
fn clash() {
    beside_netfilter("ct_clash", |pair| {
        pair.send(client(SYN).at(100, 0).offers())?;
        pair.send(server(SYN).at(5000, 0).offers())?;
        pair.expect_state("SYN_SENT2")?;
        pair.send(client(SYN | ACK).at(100, 5001).offers())?;
        pair.send(server(SYN | ACK).at(5000, 101).offers())?;
        pair.send(client(ACK).at(101, 5001))?;
        pair.send(server(ACK).at(5001, 101))?;
        pair.expect_state("ESTABLISHED")
    });
}

/// An acknowledgement that comes again and again without progress shortens the connection's life, as do
/// data that nobody acknowledges and a closed window.
#[test]
fn stalled() {
    beside_netfilter("ct_stalled", |pair| {
        pair.open(1000, 65_535)?;
        let lives =
            |pair: &Pair| -> Result<u64> { Ok(pair.connection()?.context("it is gone")?.1) };
        ensure!(lives(pair)? > 400_000);
        pair.send(client(ACK | PSH).at(101, 5001).data(10))?;
        ensure!(lives(pair)? <= 300, "data are not acknowledged");
        pair.send(server(ACK).at(5001, 111))?;
        ensure!(lives(pair)? > 400_000);
        pair.send(server(ACK).at(5001, 111).window(0))?;
        ensure!(lives(pair)? <= 300, "the window is closed");
        pair.send(server(ACK).at(5001, 111).window(50))?;
        ensure!(lives(pair)? > 400_000);
        for _ in 0..4 {
            pair.send(client(ACK).at(111, 5001))?;
        }
        ensure!(lives(pair)? <= 300, "nobody gets on");
        Ok(())
    });
}

/// What was lost in between is known by selective acknowledgements.
#[test]
fn selective_acknowledgements() {
    beside_netfilter("ct_sack", |pair| {
        pair.send(client(SYN).at(100, 0).offers())?;
        pair.send(server(SYN | ACK).at(5000, 101).offers())?;
        pair.send(client(ACK).at(101, 5001))?;
        pair.send(client(ACK | PSH).at(101, 5001).data(100))?;
        pair.send(client(ACK | PSH).at(301, 5001).data(100))?;
        let label = pair.send(server(ACK).at(5001, 201).sack(301, 401))?;
        ensure!(
            label == "ESTABLISHED",
            "a selective acknowledgement is {label}"
        );
        let label = pair.send(server(ACK).at(5001, 201).sack(301, 500))?;
        ensure!(label == "INVALID", "of what was never sent: {label}");
        Ok(())
    });
}

/// Where windows are not held against anybody (`nf_conntrack_tcp_be_liberal`), segments out of the window
/// belong to their connection and move it on; elsewhere they are INVALID.
#[test]
fn out_of_the_window() {
    for (test, liberal) in [("ct_strict", false), ("ct_liberal", true)] {
        let setting = if liberal { "1" } else { "0" };
        let settings = [("netfilter/nf_conntrack_tcp_be_liberal", setting)];
        beside_netfilter_with(test, &settings, |pair| {
            let expected = if liberal { "ESTABLISHED" } else { "INVALID" };
            let expect = |what: &str, segment: Segment| {
                let label = pair.send(segment)?;
                ensure!(label == expected, "{what}: {label}, not {expected}");
                Ok(())
            };
            pair.open(1000, 1000)?;
            expect(
                "far beyond the window",
                client(ACK | PSH).at(101 + 500_000, 5001).data(10),
            )?;
            expect(
                "an acknowledgement of what was never sent",
                client(ACK).at(101, 5001 + 70_000),
            )?;
            expect(
                "the server's numbers are off by half the space",
                server(ACK | PSH).at(5001 + (1 << 31), 101).data(10),
            )?;
            // What is in the window goes on as ever, and nothing was learned from the others.
            pair.send(client(ACK | PSH).at(101, 5001).data(100))?;
            pair.send(server(ACK).at(5001, 201))?;
            // An end out of the window ends the connection only where it counts.
            expect("an end", client(FIN | ACK).at(201 + 500_000, 5001))?;
            pair.expect_state(if liberal { "FIN_WAIT" } else { "ESTABLISHED" })?;
            expect("the other end", server(FIN | ACK).at(5001 + 500_000, 201))?;
            pair.expect_state(if liberal { "LAST_ACK" } else { "ESTABLISHED" })
        });
    }
}

/// Resets are looked at more closely, also where windows are not held against anybody: what the peer has
/// acknowledged long ago is INVALID, and what does not come exactly where it was expected closes nothing.
/// Only `nf_conntrack_tcp_ignore_invalid_rst` lets resets of the past through.
#[test]
fn resets_where_windows_do_not_count() {
    let liberal = ("netfilter/nf_conntrack_tcp_be_liberal", "1");
    beside_netfilter_with("ct_liberal_rst", &[liberal], |pair| {
        pair.open(1000, 65_535)?;
        pair.send(client(ACK | PSH).at(101, 5001).data(1000))?;
        pair.send(server(ACK).at(5001, 1101))?;
        let label = pair.send(client(RST).at(600, 0).window(0))?;
        ensure!(label == "INVALID", "a reset of the past is {label}");
        pair.expect_state("ESTABLISHED")?;
        let label = pair.send(client(RST).at(1101 + 900_000, 0).window(0))?;
        ensure!(
            label == "ESTABLISHED",
            "a reset out of the window is {label}"
        );
        pair.expect_state("ESTABLISHED")?;
        let label = pair.send(client(RST).at(1101, 0).window(0))?;
        ensure!(label == "ESTABLISHED", "an exact reset is {label}");
        pair.expect_state("CLOSE")
    });
    let any = ("netfilter/nf_conntrack_tcp_ignore_invalid_rst", "1");
    beside_netfilter_with("ct_any_rst", &[any], |pair| {
        pair.open(1000, 65_535)?;
        pair.send(client(ACK | PSH).at(101, 5001).data(1000))?;
        pair.send(server(ACK).at(5001, 1101))?;
        let label = pair.send(client(RST).at(600, 0).window(0))?;
        ensure!(label == "ESTABLISHED", "a reset of the past is {label}");
        Ok(())
    });
}

/// Where nothing is picked up in the middle (`nf_conntrack_tcp_loose` is 0), what is no SYN opens nothing.
#[test]
fn not_loose() {
    let settings = [("netfilter/nf_conntrack_tcp_loose", "0")];
    beside_netfilter_with("ct_not_loose", &settings, |pair| {
        let label = pair.send(client(ACK | PSH).at(101, 5001).data(10))?;
        ensure!(label == "INVALID", "the middle of a connection is {label}");
        ensure!(pair.connection()?.is_none(), "it was picked up");
        pair.open(1000, 1000)
    });
}

/// One segment.
#[derive(Clone, Debug)]
struct Segment {
    from_client: bool,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    window: u16,
    options: Vec<u8>,
    length: usize,
}

fn client(flags: u8) -> Segment {
    Segment {
        from_client: true,
        flags,
        sequence: 0,
        acknowledgement: 0,
        window: 1000,
        options: Vec::new(),
        length: 0,
    }
}

fn server(flags: u8) -> Segment {
    Segment {
        from_client: false,
        ..client(flags)
    }
}

impl Segment {
    fn at(self, sequence: u32, acknowledgement: u32) -> Self {
        Self {
            sequence,
            acknowledgement,
            ..self
        }
    }

    fn window(self, window: u16) -> Self {
        Self { window, ..self }
    }

    fn data(self, length: usize) -> Self {
        Self { length, ..self }
    }

    /// A window scale of seven bits, and selective acknowledgements.
    fn offers(self) -> Self {
        Self {
            options: vec![2, 4, 5, 180, 4, 2, 1, 3, 3, 7],
            ..self
        }
    }

    fn sack(self, left: u32, right: u32) -> Self {
        let mut options = vec![1, 1, 5, 10];
        options.extend(left.to_be_bytes());
        options.extend(right.to_be_bytes());
        Self { options, ..self }
    }

    fn packet(&self, version: usize) -> Packet {
        let mut ports = (CLIENT_PORT, SERVER_PORT);
        if !self.from_client {
            ports = (ports.1, ports.0);
        }
        let payload = Payload::Tcp {
            ports,
            sequence: self.sequence,
            acknowledgement: self.acknowledgement,
            flags: self.flags,
            window: self.window,
            options: self.options.clone(),
            data: vec![0; self.length],
        };
        beside::packet(version, self.from_client, payload)
    }
}

const CLIENT_PORT: u16 = 40_000;
const SERVER_PORT: u16 = 80;

/// Both routers, and the one connection that goes through them.
struct Pair<'a>(&'a beside::Pair);

impl Pair<'_> {
    fn name(&self) -> Name<'static> {
        Name {
            protocol: 6,
            port: Some(CLIENT_PORT),
            address: ADDRESSES[self.0.version][0],
        }
    }

    /// Sends a segment through both; the label, which is the same, as is the connection afterwards.
    fn send(&self, segment: Segment) -> Result<&'static str> {
        let packet = segment.packet(self.0.version);
        self.0.send(segment.from_client, &packet, self.name())
    }

    /// The connection, which is the same on both sides.
    fn connection(&self) -> Result<Option<(String, u64)>> {
        self.0.connection(self.name())
    }

    fn expect_state(&self, state: &str) -> Result<()> {
        let found = self.connection()?.context("there is no connection")?.0;
        let word = found.split(' ').next().unwrap_or_default();
        ensure!(word == state, "the connection is {found}, not {state}");
        Ok(())
    }

    /// Opens a connection: the client's numbers begin at 100, the server's at 5000.
    fn open(&self, client_window: u16, server_window: u16) -> Result<()> {
        self.send(client(SYN).at(100, 0).window(client_window))?;
        self.send(server(SYN | ACK).at(5000, 101).window(server_window))?;
        self.send(client(ACK).at(101, 5001).window(client_window))?;
        self.expect_state("ESTABLISHED")
    }
}

/// Runs a scenario for IPv4 and IPv6.
fn beside_netfilter(test: &str, scenario: impl Fn(&Pair) -> Result<()>) {
    beside_netfilter_with(test, &[], scenario);
}

/// The same with other settings of tracking, which either side finds in its namespace.
fn beside_netfilter_with(
    test: &str,
    settings: &[(&str, &str)],
    scenario: impl Fn(&Pair) -> Result<()>,
) {
    beside::beside_netfilter(test, settings, |pair| scenario(&Pair(pair)));
}
