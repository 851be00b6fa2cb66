//! Two networks of the same addresses behind the lab's server, which has a zone for each.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;

use crate::guide::GuideLab;
use crate::lab::address::INTERNET;
use crate::lab::saved::count;
use crate::lab::sockets::{PATIENCE, connect, datagram, ip, round_trip, send, tcp_echo, udp};
use crate::lab::{Namespace, quiet, run};

/// The tenants' one address, the server's in both networks, and the length of their prefix.
const TENANT: [&str; 2] = ["10.77.0.2", "fd77::2"];
const GATEWAY: [&str; 2] = ["10.77.0.1", "fd77::1"];
const LENGTH: [u8; 2] = [24, 64];

/// Each tenant has a zone, and is masqueraded to ports that tell the answers' zone and way. An answer that is
/// in no flow of its zone does not get through.
pub const RULES: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A PREROUTING -i ten1 -j CT --zone 1\n\
    -A PREROUTING -i ten2 -j CT --zone 40002\n\
    -A PREROUTING -i eth0 -p udp -m udp --dport 10000:10999 -j CT --zone 1\n\
    -A PREROUTING -i eth0 -p udp -m udp --dport 20000:20999 -j CT --zone 40002\n\
    -A PREROUTING -i eth0 -p tcp -m tcp --dport 10000:10999 -j CT --zone 1\n\
    -A PREROUTING -i eth0 -p tcp -m tcp --dport 20000:20999 -j CT --zone 40002\nCOMMIT\n\
    *mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    :POSTROUTING ACCEPT [0:0]\n\
    -A PREROUTING -i ten1 -j CONNMARK --set-xmark 0x1/0xffffffff\n\
    -A PREROUTING -i ten2 -j CONNMARK --set-xmark 0x2/0xffffffff\n\
    -A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\nCOMMIT\n\
    *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    -A POSTROUTING -o eth0 -p udp -m mark --mark 0x1 -j MASQUERADE --to-ports 10000-10999\n\
    -A POSTROUTING -o eth0 -p udp -m mark --mark 0x2 -j MASQUERADE --to-ports 20000-20999\n\
    -A POSTROUTING -o eth0 -p tcp -m mark --mark 0x1 -j MASQUERADE --to-ports 10000-10999\n\
    -A POSTROUTING -o eth0 -p tcp -m mark --mark 0x2 -j MASQUERADE --to-ports 20000-20999\nCOMMIT\n\
    *filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i ten1 -o eth0 -m conntrack --ctstate NEW -j ACCEPT\n\
    -A FORWARD -i ten2 -o eth0 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n";

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// A network with one host in it, beside the server's others. Dropping it takes it away.
struct Tenant {
    host: Namespace,
    server: Arc<Namespace>,
    number: usize,
}

impl Tenant {
    fn new(guide: &GuideLab, number: usize) -> Result<Self> {
        let host = Namespace::new(&format!("tenant-{:?}", guide.kind), &format!("t{number}"))?;
        quiet(&host)?;
        let (name, device) = (host.name(), format!("ten{number}"));
        let table = table(number);
        let link = |last| format!("02:00:00:00:07:{number}{last}");
        let (own, gateway) = (link(2), link(1));
        let mut server = format!(
            "link add {device} address {gateway} type veth peer name eth0 address {own} netns {name}\n\
             link set {device} up\n"
        );
        let mut inner = "link set eth0 up\n".to_owned();
        for (version, length) in LENGTH.into_iter().enumerate() {
            let (tenant, router) = (TENANT[version], GATEWAY[version]);
            let nodad = ["", " nodad"][version];
            server += &format!(
                "address add {router}/{length} dev {device}{nodad}\n\
                 neighbour replace {tenant} lladdr {own} dev {device} nud permanent\n\
                 route add {tenant} dev {device} table {table}\n"
            );
            inner += &format!(
                "address add {tenant}/{length} dev eth0{nodad}\n\
                 neighbour replace {router} lladdr {gateway} dev eth0 nud permanent\n\
                 route add default via {router}\n"
            );
        }
        guide.lab.server.ip(&server)?;
        host.ip(&inner)?;
        let tenant = Self {
            host,
            server: guide.lab.server.clone(),
            number,
        };
        tenant.route_by_mark("add")?;
        Ok(tenant)
    }

    /// What has the tenant's mark goes to this tenant, and not to the other who has its addresses.
    fn route_by_mark(&self, action: &str) -> Result<()> {
        let (number, table) = (self.number, table(self.number));
        for version in ["-4", "-6"] {
            let words = format!("{version} rule {action} fwmark {number} table {table}");
            run(self.server.command("ip").args(words.split(' ')))?;
        }
        Ok(())
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        // With its namespace the interface would go, too, but later. Its routes go with it.
        let link = self.server.ip(&format!("link del ten{}\n", self.number));
        if let Err(error) = self.route_by_mark("del").and(link) {
            eprintln!("tenant {} is not taken away whole: {error:#}", self.number);
        }
    }
}

/// The routing table of a tenant.
fn table(number: usize) -> usize {
    100 + number
}

/// Both tenants.
pub struct Tenants([Tenant; 2]);

impl Tenants {
    /// Makes them, beside all else that the lab has.
    pub fn new(guide: &GuideLab) -> Result<Self> {
        Ok(Self([Tenant::new(guide, 1)?, Tenant::new(guide, 2)?]))
    }

    /// Both talk to the same host from the same endpoint, and each gets its own answers, under [`RULES`].
    pub fn talk(&self, guide: &GuideLab) -> Result<()> {
        tcp_echo(&guide.lab.outside, 7)?;
        let hosts = [&self.0[0].host, &self.0[1].host];
        for version in 0..2 {
            datagrams(guide, hosts, version)?;
            streams(guide, hosts, version)?;
        }
        Ok(())
    }
}

fn datagrams(guide: &GuideLab, tenants: [&Namespace; 2], version: usize) -> Result<()> {
    let (far, family) = (ip(INTERNET[version]), FAMILIES[version]);
    let peer = udp(&guide.lab.outside, far, 5000)?;
    let own = [
        udp(tenants[0], ip(TENANT[version]), 6000)?,
        udp(tenants[1], ip(TENANT[version]), 6000)?,
    ];
    let rule = |number: usize| {
        let (device, zone) = [("ten1", 1), ("ten2", 40_002)][number];
        format!("-A PREROUTING -i {device} -j CT --zone {zone}")
    };
    let answers = |number: usize| {
        let (ports, zone) = [("10000:10999", 1), ("20000:20999", 40_002)][number];
        format!("-A PREROUTING -i eth0 -p udp -m udp --dport {ports} -j CT --zone {zone}")
    };
    let before = guide.firewall.save(family)?;
    let mut mappings = Vec::new();
    for socket in &own {
        for text in [&b"one"[..], b"another"] {
            send(socket, far, 5000, text)?;
            let seen = datagram(&peer)?.context("a tenant's datagram did not get out")?;
            mappings.push(seen);
        }
    }
    ensure!(
        mappings[0] == mappings[1] && mappings[2] == mappings[3],
        "{mappings:?}"
    );
    let ports = [mappings[0].port(), mappings[2].port()];
    ensure!(
        (10_000..11_000).contains(&ports[0]) && (20_000..21_000).contains(&ports[1]),
        "{ports:?}"
    );
    for (number, socket) in own.iter().enumerate() {
        let mapping: SocketAddr = mappings[2 * number];
        send(&peer, mapping.ip(), mapping.port(), b"answer")?;
        ensure!(
            datagram(socket)? == Some(peer.local_addr()?),
            "no answer to tenant {number}"
        );
        // What is in the tenant's zone, and in none of its flows.
        let others = [999, 998].map(|last| 10_000 * (number as u16 + 1) + last);
        let stranger = others[usize::from(others[0] == mapping.port())];
        send(&peer, mapping.ip(), stranger, b"stranger")?;
    }
    for (number, socket) in own.iter().enumerate() {
        ensure!(
            datagram(socket)?.is_none(),
            "tenant {number} got what is a stranger's or the other's"
        );
    }
    let after = guide.firewall.save(family)?;
    // What the headers have.
    let header = [28, 48][version];
    for number in [0, 1] {
        for (rule, texts) in [
            (rule(number), "oneanother"),
            (answers(number), "answerstranger"),
        ] {
            let (before, after) = (count(&before, &rule)?, count(&after, &rule)?);
            let counted = (after.0 - before.0, after.1 - before.1);
            let expected = (2, 2 * header + texts.len() as u64);
            ensure!(counted == expected, "{rule}: {counted:?}, not {expected:?}");
        }
    }
    // Flows, as conntrack -L prints them.
    let flows = guide.firewall.flows()?;
    for (zone, port) in [(1, ports[0]), (40_002, ports[1])] {
        let original = format!("src={} dst={far} sport=6000 dport=5000 ", TENANT[version]);
        let line = flows
            .lines()
            .find(|line| line.contains(&original) && line.contains(&format!(" dport={port} ")))
            .with_context(|| format!("no flow to port {port} in\n{flows}"))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words.contains(&&*format!("zone={zone}")), "{line}");
    }
    Ok(())
}

/// Connections from the same port of both tenants, at once.
fn streams(guide: &GuideLab, tenants: [&Namespace; 2], version: usize) -> Result<()> {
    let own = SocketAddr::new(ip(TENANT[version]), 6001);
    let to = SocketAddr::new(ip(INTERNET[version]), 7);
    let mut streams = Vec::new();
    for tenant in tenants {
        let stream = connect(tenant, Some(own), to, PATIENCE);
        streams.push(stream.with_context(|| format!("{} connects", tenant.name()))?);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let text: Vec<u8> = (0..60_000).map(|byte| (byte / 7 + number) as u8).collect();
        round_trip(stream, &text)?;
    }
    let flows = guide.firewall.flows()?;
    let original = format!("src={} dst={} sport=6001 dport=7 ", own.ip(), to.ip());
    let established = flows
        .lines()
        .filter(|line| line.contains(&original) && line.contains(" ESTABLISHED "));
    ensure!(established.count() == 2, "{flows}");
    Ok(())
}
