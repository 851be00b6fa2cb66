//! Connection tracking beside netfilter's, packet by packet: the same frames go through a router with
//! iptables and one with fwbpf, and after each of them the label that rules saw and the connections in
//! the table are the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;

use crate::lab::{
    Firewall, FrameSocket, Fwbpf, Iptables, Namespace, fwbpf_binary, ready, run, saved,
};
use crate::packet::{Dressing, Packet, Payload, describe, frame};

/// The client's and the server's address, of IPv4 and of IPv6.
pub const ADDRESSES: [[&str; 2]; 2] = [
    ["192.0.2.2", "198.51.100.2"],
    ["2001:db8::2", "2001:db8:1::2"],
];
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// Runs a scenario for IPv4 and IPv6, in namespaces that have these settings (below
/// `/proc/sys/net`), which either side finds there.
pub fn beside_netfilter(
    test: &str,
    settings: &[(&str, &str)],
    scenario: impl Fn(&Pair) -> Result<()>,
) {
    let programs = ["iptables-legacy-restore", "ip6tables-legacy-restore"];
    if !ready(test, &programs, true) {
        return;
    }
    for version in 0..2 {
        let outcome = Pair::new(test, version, settings).and_then(|pair| scenario(&pair));
        if let Err(error) = outcome {
            panic!("{test}, {}: {error:?}", ["IPv4", "IPv6"][version]);
        }
    }
}

/// A packet of the IP version in hand, from the client or from the server.
pub fn packet(version: usize, from_client: bool, payload: Payload) -> Packet {
    let address = |end: usize| -> IpAddr {
        let text = ADDRESSES[version][end];
        text.parse().expect("the addresses are written right")
    };
    let (source, destination) = if from_client { (0, 1) } else { (1, 0) };
    Packet {
        source: address(source),
        destination: address(destination),
        ttl: 64,
        id: 1,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload,
    }
}

/// How a connection is told from others in what lists them.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// The protocol's number.
    pub protocol: u8,
    /// The opener's port, where there are ports.
    pub port: Option<u16>,
    /// The opener's address.
    pub address: &'a str,
}

/// What a list says of a connection: its state, if it has one, with `[UNREPLIED]` and `[ASSURED]`, and
/// the seconds that it has.
pub type Connection = (String, u64);

/// Both routers, for one IP version.
pub struct Pair {
    /// The one with iptables, then the one with fwbpf.
    pub routers: [Router; 2],
    /// 0 for IPv4, 1 for IPv6.
    pub version: usize,
}

impl Pair {
    fn new(test: &str, version: usize, settings: &[(&str, &str)]) -> Result<Self> {
        Ok(Self {
            routers: [
                Router::new(test, "i", false, settings)?,
                Router::new(test, "f", true, settings)?,
            ],
            version,
        })
    }

    /// Sends a packet through both, from the client's side or the server's; the label, which is the same.
    pub fn label(&self, from_client: bool, packet: &Packet) -> Result<&'static str> {
        let [iptables, fwbpf] = &self.routers;
        let expected = iptables.label(self.version, from_client, packet)?;
        let label = fwbpf.label(self.version, from_client, packet)?;
        let what = describe(&packet.bytes());
        ensure!(label == expected, "{what}: {label} instead of {expected}");
        Ok(label)
    }

    /// [`Pair::label`], and the connection afterwards is the same, too.
    pub fn send(&self, from_client: bool, packet: &Packet, name: Name<'_>) -> Result<&'static str> {
        let label = self.label(from_client, packet)?;
        self.connection(name)
            .with_context(|| format!("after {}", describe(&packet.bytes())))?;
        Ok(label)
    }

    /// The connection, which is the same on both sides.
    pub fn connection(&self, name: Name<'_>) -> Result<Option<Connection>> {
        let [iptables, fwbpf] = &self.routers;
        let expected = iptables.connection(self.version, name)?;
        let found = fwbpf.connection(self.version, name)?;
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
}

/// A router between two wires. Nobody is at their ends but the test, so that nothing answers by itself.
pub struct Router {
    firewall: Box<dyn Firewall>,
    /// Where it is.
    pub namespace: Arc<Namespace>,
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
    fn new(test: &str, role: &str, fwbpf: bool, settings: &[(&str, &str)]) -> Result<Self> {
        let namespace = Arc::new(Namespace::new(test, role)?);
        let ends = [
            Namespace::new(test, &format!("{role}a"))?,
            Namespace::new(test, &format!("{role}b"))?,
        ];
        namespace.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        namespace.sysctl(settings)?;
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

    /// What it is.
    pub fn name(&self) -> &'static str {
        self.firewall.name()
    }

    /// Its status, as [`Firewall::status`] has it.
    pub fn status(&self) -> Result<String> {
        self.firewall.status()
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

    /// Puts a packet on a wire, without waiting for anything.
    pub fn push(&self, from_client: bool, packet: &Packet) -> Result<()> {
        let bytes = frame(FAR, ROUTER, &packet.bytes());
        // The wire's queue may be full for a moment.
        while let Err(error) = self.wires[usize::from(!from_client)].send(&bytes) {
            ensure!(error.raw_os_error() == Some(libc::ENOBUFS), "{error}");
        }
        Ok(())
    }

    /// Sends a packet through; the label that it had.
    pub fn label(
        &self,
        version: usize,
        from_client: bool,
        packet: &Packet,
    ) -> Result<&'static str> {
        let before = self.counts(version)?;
        self.push(from_client, packet)?;
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let after = self.counts(version)?;
            if let Some(place) = (0..3).find(|place| after[*place] != before[*place]) {
                return Ok(LABELS[place]);
            }
            ensure!(
                Instant::now() < deadline,
                "{}: {} was not seen",
                self.name(),
                describe(&packet.bytes())
            );
        }
    }

    /// The connection of this name, if there is one.
    pub fn connection(&self, version: usize, name: Name<'_>) -> Result<Option<Connection>> {
        let text = match self.name() {
            "iptables" => run(self.namespace.command("cat").arg("/proc/net/nf_conntrack"))?,
            _ => self.firewall.flows()?,
        };
        let own = ["ipv4", "ipv6"][version];
        let protocol = name.protocol.to_string();
        let port = name.port.map(|port| format!("sport={port}"));
        for line in text.lines() {
            // The kernel puts the family before what fwbpf prints, and addresses in full length.
            let words: Vec<&str> = line.split_whitespace().collect();
            let words = match words.first() {
                Some(&"ipv4" | &"ipv6") if words[0] != own => continue,
                Some(&"ipv4" | &"ipv6") => &words[2..],
                _ => &words[..],
            };
            if words.get(1) != Some(&protocol.as_str()) || !is_from(words, name.address) {
                continue;
            }
            if port.as_ref().is_some_and(|port| {
                let first = words.iter().find(|word| word.starts_with("sport="));
                first != Some(&port.as_str())
            }) {
                continue;
            }
            let timeout = words[2].parse().context("the timeout is no number")?;
            let state = words[3].split('=').count() == 1;
            let mut state = if state { words[3] } else { "" }.to_owned();
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

/// Whether the first address of a line is this one.
fn is_from(words: &[&str], address: &str) -> bool {
    let first = words.iter().find_map(|word| word.strip_prefix("src="));
    let parse = |text: &str| text.parse::<IpAddr>().ok();
    first.is_some_and(|first| parse(first) == parse(address))
}
