//! The corners of TCP connection tracking, one test each, segment by segment beside netfilter: the same
//! frames go through a router with iptables and one with fwbpf, and after each of them the label that
//! rules saw and the connections in the table are the same. The kernel's own tests of these behaviours
//! are tools/testing/selftests/net/netfilter/packetdrill/conntrack_*.pkt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::lab::{
    Firewall, FrameSocket, Fwbpf, Iptables, Namespace, fwbpf_binary, ready, run, saved,
};
use fwbpf_tests::packet::flags::{ACK, FIN, PSH, RST, SYN};
use fwbpf_tests::packet::{Dressing, Packet, Payload, describe, frame};

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
        let [client, server] = ADDRESSES[version];
        let ((source, sport), (destination, dport)) = if self.from_client {
            ((client, CLIENT_PORT), (server, SERVER_PORT))
        } else {
            ((server, SERVER_PORT), (client, CLIENT_PORT))
        };
        let address = |text: &str| text.parse().expect("the addresses are written right");
        Packet {
            source: address(source),
            destination: address(destination),
            ttl: 64,
            id: 1,
            tos: 0,
            mss: None,
            dressing: Dressing::Plain,
            payload: Payload::Tcp {
                ports: (sport, dport),
                sequence: self.sequence,
                acknowledgement: self.acknowledgement,
                flags: self.flags,
                window: self.window,
                options: self.options.clone(),
                data: vec![0; self.length],
            },
        }
    }
}

const ADDRESSES: [[&str; 2]; 2] = [
    ["192.0.2.2", "198.51.100.2"],
    ["2001:db8::2", "2001:db8:1::2"],
];
const CLIENT_PORT: u16 = 40_000;
const SERVER_PORT: u16 = 80;
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A router between two wires. Nobody is at their ends but the test, so that nothing answers by itself.
struct Router {
    firewall: Box<dyn Firewall>,
    namespace: Arc<Namespace>,
    wires: [FrameSocket; 2],
    _ends: [Namespace; 2],
}

/// Link-layer addresses: of the router, and of whoever is behind a wire.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 2];

const RULES: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
    -A FORWARD -m conntrack --ctstate INVALID\n\
    -A FORWARD -m conntrack --ctstate NEW\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED\n\
    COMMIT\n";
const LABELS: [&str; 3] = ["INVALID", "NEW", "ESTABLISHED"];

impl Router {
    fn new(test: &str, role: &str, fwbpf: bool) -> Result<Self> {
        let namespace = Arc::new(Namespace::new(test, role)?);
        let ends = [
            Namespace::new(test, &format!("{role}a"))?,
            Namespace::new(test, &format!("{role}b"))?,
        ];
        namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        for (number, end) in ends.iter().enumerate() {
            let own = ["192.0.2.1/24", "198.51.100.1/24"][number];
            let own6 = ["2001:db8::1/64", "2001:db8:1::1/64"][number];
            let far = ADDRESSES.map(|pair| pair[number]);
            namespace.ip(&format!(
                "link add wire{number} address 02:00:00:00:00:01 type veth peer name far \
                 address 02:00:00:00:00:02 netns {}\n\
                 address add {own} dev wire{number}\n\
                 address add {own6} dev wire{number} nodad\n\
                 link set wire{number} up\n\
                 neighbour add {} lladdr 02:00:00:00:00:02 dev wire{number}\n\
                 neighbour add {} lladdr 02:00:00:00:00:02 dev wire{number}\n",
                end.name(),
                far[0],
                far[1],
            ))?;
            // Nobody speaks there by itself.
            end.sysctl(&[("ipv6/conf/far/disable_ipv6", "1")])?;
            end.ip("link set far arp off up\n")?;
        }
        let firewall: Box<dyn Firewall> = if fwbpf {
            let binary = fwbpf_binary().context("there is no fwbpf")?;
            // The slow way is the one that has to know; the fast one is compared elsewhere.
            Box::new(Fwbpf::new(Arc::clone(&namespace), binary)?)
        } else {
            Box::new(Iptables::new(Arc::clone(&namespace)))
        };
        firewall.load(&FAMILIES.map(|family| (family, RULES)))?;
        let wires = [
            FrameSocket::open(&ends[0], "far")?,
            FrameSocket::open(&ends[1], "far")?,
        ];
        Ok(Self {
            firewall,
            namespace,
            wires,
            _ends: ends,
        })
    }

    fn counts(&self, version: usize) -> Result<[u64; 3]> {
        let save = self.firewall.save(FAMILIES[version])?;
        let mut counts = [0; 3];
        for (count, label) in counts.iter_mut().zip(LABELS) {
            let rule = format!("-A FORWARD -m conntrack --ctstate {label}");
            *count = saved::count(&save, &rule)?.0;
        }
        Ok(counts)
    }

    /// Sends a segment through; the label that it had.
    fn send(&self, segment: &Segment, version: usize) -> Result<&'static str> {
        let before = self.counts(version)?;
        let bytes = frame(FAR, ROUTER, &segment.packet(version).bytes());
        self.wires[usize::from(!segment.from_client)].send(&bytes)?;
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let after = self.counts(version)?;
            if let Some(place) = (0..3).find(|place| after[*place] != before[*place]) {
                return Ok(LABELS[place]);
            }
            ensure!(
                Instant::now() < deadline,
                "{}: {segment:?} was not seen",
                self.firewall.name()
            );
        }
    }

    /// The connection: its state with what `conntrack -L` prints of it, and the seconds that it has.
    fn connection(&self, version: usize) -> Result<Option<(String, u64)>> {
        let port = format!("sport={CLIENT_PORT}");
        let text = match self.firewall.name() {
            "iptables" => run(self.namespace.command("cat").arg("/proc/net/nf_conntrack"))?,
            _ => self.firewall.flows()?,
        };
        let own = ["ipv4", "ipv6"][version];
        let address = ADDRESSES[version][0];
        for line in text.lines() {
            // The kernel puts the family before what fwbpf prints, and addresses in full length.
            let words: Vec<&str> = line.split_whitespace().collect();
            let words = match words.first() {
                Some(&"ipv4" | &"ipv6") if words[0] != own => continue,
                Some(&"ipv4" | &"ipv6") => &words[2..],
                _ if !line.contains(address) => continue,
                _ => &words[..],
            };
            if words.first() != Some(&"tcp") || !words.contains(&port.as_str()) {
                continue;
            }
            let timeout = words[2].parse().context("the timeout is no number")?;
            let mut state = words[3].to_owned();
            for word in ["[UNREPLIED]", "[ASSURED]"] {
                if words.contains(&word) {
                    state = format!("{state} {word}");
                }
            }
            return Ok(Some((state, timeout)));
        }
        Ok(None)
    }
}

/// Both routers, for one IP version.
struct Pair {
    routers: [Router; 2],
    version: usize,
}

impl Pair {
    /// Sends a segment through both; the label, which is the same, as is the connection afterwards.
    fn send(&self, segment: Segment) -> Result<&'static str> {
        let [iptables, fwbpf] = &self.routers;
        let what = describe(&segment.packet(self.version).bytes());
        let expected = iptables.send(&segment, self.version)?;
        let label = fwbpf.send(&segment, self.version)?;
        ensure!(label == expected, "{what}: {label} instead of {expected}");
        self.connection().with_context(|| format!("after {what}"))?;
        Ok(label)
    }

    /// The connection, which is the same on both sides.
    fn connection(&self) -> Result<Option<(String, u64)>> {
        let [iptables, fwbpf] = &self.routers;
        let expected = iptables.connection(self.version)?;
        let found = fwbpf.connection(self.version)?;
        let same = match (&expected, &found) {
            (Some((state, timeout)), Some((found, seconds))) => {
                state == found && timeout.abs_diff(*seconds) <= 2
            }
            (None, None) => true,
            _ => false,
        };
        ensure!(same, "the connection is {found:?} instead of {expected:?}");
        Ok(found)
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
    let programs = ["iptables-legacy-restore", "ip6tables-legacy-restore"];
    if !ready(test, &programs, true) {
        return;
    }
    for version in 0..2 {
        if let Err(error) = run_scenario(test, version, &scenario) {
            panic!("{test}, {}: {error:?}", ["IPv4", "IPv6"][version]);
        }
    }
}

fn run_scenario(test: &str, version: usize, scenario: &impl Fn(&Pair) -> Result<()>) -> Result<()> {
    let pair = Pair {
        routers: [
            Router::new(test, "i", false)?,
            Router::new(test, "f", true)?,
        ],
        version,
    };
    scenario(&pair)
}
