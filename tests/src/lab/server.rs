//! The server of the guide and its surroundings:
//!
//! ```text
//!  outside ──wire0═eth0── server ──docker0──┬─ container1
//!  other   ──wire0═eth1──┘                  └─ container2
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;

use super::Namespace;

/// The addresses of the lab, as text; documentation ranges, and Docker's own for its bridge.
pub mod address {
    /// The outside host that is the server's default gateway.
    pub const OUTSIDE: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
    /// The administrator's address that the guide exempts; also at the outside host.
    pub const ADMIN: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
    /// A host of the internet; also at the outside host.
    pub const INTERNET: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
    /// A host of the ranges that the guide forbids to talk to; also at the outside host.
    pub const FORBIDDEN: [&str; 2] = ["10.1.2.3", "fd00:10::3"];
    /// The server at eth0.
    pub const SERVER: [&str; 2] = ["198.51.100.10", "2001:db8:1::10"];
    /// The server at eth1.
    pub const SERVER_OTHER: [&str; 2] = ["192.168.50.1", "2001:db8:50::1"];
    /// The server at docker0.
    pub const BRIDGE: [&str; 2] = ["172.17.0.1", "fd17::1"];
    /// The first container.
    pub const CONTAINER1: [&str; 2] = ["172.17.0.2", "fd17::2"];
    /// The second container.
    pub const CONTAINER2: [&str; 2] = ["172.17.0.3", "fd17::3"];
    /// The host behind eth1.
    pub const OTHER: [&str; 2] = ["192.168.50.9", "2001:db8:50::9"];
    /// Loopback.
    pub const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];
}

/// The link-layer addresses of the lab.
pub mod mac {
    /// wire0 of the outside host.
    pub const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 1, 0x01];
    /// eth0 of the server.
    pub const SERVER: [u8; 6] = [2, 0, 0, 0, 1, 0x0a];
    /// docker0 of the server.
    pub const BRIDGE: [u8; 6] = [2, 0, 0, 0, 2, 0x01];
    /// eth0 of the first container.
    pub const CONTAINER1: [u8; 6] = [2, 0, 0, 0, 2, 0x02];
    /// eth0 of the second container.
    pub const CONTAINER2: [u8; 6] = [2, 0, 0, 0, 2, 0x03];
    /// eth1 of the server.
    pub const SERVER_OTHER: [u8; 6] = [2, 0, 0, 0, 3, 0x01];
    /// wire0 of the host behind eth1.
    pub const OTHER: [u8; 6] = [2, 0, 0, 0, 3, 0x09];
}

/// What stands at the server's wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Hosts with addresses and routes, for real sockets.
    Real,
    /// Interfaces without addresses that never answer by themselves: the test plays the hosts.
    Emulated,
}

/// The namespaces; all gone on drop.
#[derive(Debug)]
pub struct ServerLab {
    /// The host at the other end of eth0.
    pub outside: Arc<Namespace>,
    /// The host at the other end of eth1.
    pub other: Arc<Namespace>,
    /// The host that is firewalled.
    pub server: Arc<Namespace>,
    /// The first container.
    pub container1: Arc<Namespace>,
    /// The second container.
    pub container2: Arc<Namespace>,
}

impl ServerLab {
    /// Builds everything, docker0 included.
    pub fn new(test: &str, peers: Peers) -> Result<Self> {
        let lab = Self::without_bridge(test, peers)?;
        lab.add_bridge()?;
        if peers == Peers::Real {
            lab.container1.ip(&container_config(address::CONTAINER1))?;
            lab.container2.ip(&container_config(address::CONTAINER2))?;
        } else {
            lab.container1.ip("link set eth0 up\n")?;
            lab.container2.ip("link set eth0 up\n")?;
        }
        Ok(lab)
    }

    /// Builds the server with eth0 and eth1 only; a real dockerd makes docker0 itself.
    pub fn without_bridge(test: &str, peers: Peers) -> Result<Self> {
        let make = |role| Namespace::new(test, role).map(Arc::new);
        let lab = Self {
            outside: make("out")?,
            other: make("oth")?,
            server: make("srv")?,
            container1: make("c1")?,
            container2: make("c2")?,
        };
        lab.quiet(peers)?;
        let (outside, other) = (lab.outside.name(), lab.other.name());
        lab.server.ip(&format!(
            "link add eth0 address {} type veth peer name wire0 address {} netns {outside}\n\
             link add eth1 address {} type veth peer name wire0 address {} netns {other}\n\
             link set eth0 up\n\
             link set eth1 up\n",
            text(mac::SERVER),
            text(mac::OUTSIDE),
            text(mac::SERVER_OTHER),
            text(mac::OTHER),
        ))?;
        lab.outside.ip("link set wire0 up\n")?;
        lab.other.ip("link set wire0 up\n")?;
        lab.server.ip(&server_config())?;
        if peers == Peers::Real {
            lab.outside.ip(&outside_config())?;
            lab.other.ip(&other_config())?;
        }
        Ok(lab)
    }

    /// Has the hosts' interfaces take frames that XDP redirects to them: GRO switches NAPI on in
    /// veth, without which it takes none (`veth_xdp_xmit`, drivers/net/veth.c).
    pub fn take_redirected(&self) -> Result<()> {
        for namespace in [&self.outside, &self.other] {
            let mut command = namespace.command("ethtool");
            super::namespace::run(command.args(["-K", "wire0", "gro", "on"]))?;
        }
        Ok(())
    }

    /// Tells the server neighbours: interface, link-layer address, address.
    pub fn add_neighbours(&self, all: &[(&str, [u8; 6], IpAddr)]) -> Result<()> {
        let batch: String = all
            .iter()
            .map(|(device, link, address)| neighbour(&address.to_string(), &text(*link), device))
            .collect();
        self.server.ip(&batch)
    }

    /// Has the server's bridge hand over what it only switches, or not: both IP versions.
    pub fn hand_over(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        self.server.sysctl(&[
            ("bridge/bridge-nf-call-iptables", value),
            ("bridge/bridge-nf-call-ip6tables", value),
        ])
    }

    /// No host speaks unasked, and the server routes.
    fn quiet(&self, peers: Peers) -> Result<()> {
        for namespace in [
            &self.outside,
            &self.other,
            &self.server,
            &self.container1,
            &self.container2,
        ] {
            quiet(namespace)?;
        }
        self.server
            .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        if peers == Peers::Emulated {
            for namespace in [
                &self.outside,
                &self.other,
                &self.container1,
                &self.container2,
            ] {
                namespace.sysctl(&[
                    ("ipv6/conf/all/disable_ipv6", "1"),
                    ("ipv6/conf/default/disable_ipv6", "1"),
                ])?;
            }
        }
        Ok(())
    }

    fn add_bridge(&self) -> Result<()> {
        let bridge = text(mac::BRIDGE);
        let mut batch = format!(
            "link add docker0 address {bridge} type bridge stp_state 0 mcast_snooping 0\n\
             link set docker0 up\n\
             address add {}/16 dev docker0\n\
             address add {}/64 dev docker0 nodad\n",
            address::BRIDGE[0],
            address::BRIDGE[1],
        );
        for (number, namespace, link, addresses) in [
            (1, &self.container1, mac::CONTAINER1, address::CONTAINER1),
            (2, &self.container2, mac::CONTAINER2, address::CONTAINER2),
        ] {
            let (name, link) = (namespace.name(), text(link));
            batch += &format!(
                "link add veth{number} type veth peer name eth0 address {link} netns {name}\n\
                 link set veth{number} master docker0 up\n"
            );
            for address in addresses {
                batch += &neighbour(address, &link, "docker0");
            }
        }
        self.server.ip(&batch)?;
        let mut fdb = String::new();
        for (number, link) in [(1, mac::CONTAINER1), (2, mac::CONTAINER2)] {
            fdb += &format!(
                "fdb replace {} dev veth{number} master static\n",
                text(link)
            );
        }
        super::namespace::run_with_input(self.server.command("bridge").args(["-batch", "-"]), &fdb)
    }
}

/// Stops all that would speak unasked, so that counters hold nothing but the test's packets.
pub fn quiet(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        // No link-local addresses: static neighbours make them needless.
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        // Which redirects the kernel sends depends on the time between packets.
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // ICMP answers are part of what is tested; the kernel must not ration them.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ])?;
    namespace.enter(|| set_if_present("ipv4/icmp_msgs_per_sec", "1000000"))?;
    namespace.enter(|| set_if_present("ipv4/icmp_msgs_burst", "1000000"))?;
    namespace.enter(|| set_if_present("ipv6/mld_qrv", "1"))?;
    // Bridged frames are layer 2, unless a test has the bridge hand them over.
    for key in ["iptables", "ip6tables", "arptables"] {
        namespace.enter(|| set_if_present(&format!("bridge/bridge-nf-call-{key}"), "0"))?;
    }
    Ok(())
}

fn server_config() -> String {
    let mut batch = format!(
        "address add {}/24 dev eth0\n\
         address add {}/64 dev eth0 nodad\n\
         address add {}/24 dev eth1\n\
         address add {}/64 dev eth1 nodad\n\
         route add default via {}\n\
         route add default via {}\n",
        address::SERVER[0],
        address::SERVER[1],
        address::SERVER_OTHER[0],
        address::SERVER_OTHER[1],
        address::OUTSIDE[0],
        address::OUTSIDE[1],
    );
    for address in address::OUTSIDE {
        batch += &neighbour(address, &text(mac::OUTSIDE), "eth0");
    }
    for address in address::OTHER {
        batch += &neighbour(address, &text(mac::OTHER), "eth1");
    }
    batch
}

/// The outside host: everybody on the internet, with a route to the containers' network as a
/// neighbour on the same wire could have one.
fn outside_config() -> String {
    let mut batch = format!(
        "address add {}/24 dev wire0\n\
         address add {}/64 dev wire0 nodad\n",
        address::OUTSIDE[0],
        address::OUTSIDE[1],
    );
    for [v4, v6] in [address::ADMIN, address::INTERNET, address::FORBIDDEN] {
        batch += &format!("address add {v4}/32 dev lo\naddress add {v6}/128 dev lo nodad\n");
    }
    for address in address::SERVER {
        batch += &neighbour(address, &text(mac::SERVER), "wire0");
    }
    batch += &format!(
        "route add 172.17.0.0/16 via {}\n\
         route add 192.168.50.0/24 via {}\n\
         route add fd17::/64 via {}\n\
         route add 2001:db8:50::/64 via {}\n",
        address::SERVER[0],
        address::SERVER[0],
        address::SERVER[1],
        address::SERVER[1],
    );
    batch
}

fn other_config() -> String {
    let mut batch = format!(
        "address add {}/24 dev wire0\n\
         address add {}/64 dev wire0 nodad\n\
         route add default via {}\n\
         route add default via {}\n",
        address::OTHER[0],
        address::OTHER[1],
        address::SERVER_OTHER[0],
        address::SERVER_OTHER[1],
    );
    for address in address::SERVER_OTHER {
        batch += &neighbour(address, &text(mac::SERVER_OTHER), "wire0");
    }
    batch
}

fn container_config([v4, v6]: [&str; 2]) -> String {
    let mut batch = format!(
        "link set eth0 up\n\
         address add {v4}/16 dev eth0\n\
         address add {v6}/64 dev eth0 nodad\n\
         route add default via {}\n\
         route add default via {}\n",
        address::BRIDGE[0],
        address::BRIDGE[1],
    );
    for address in address::BRIDGE {
        batch += &neighbour(address, &text(mac::BRIDGE), "eth0");
    }
    batch
}

fn neighbour(address: &str, link: &str, device: &str) -> String {
    format!("neighbour replace {address} lladdr {link} dev {device} nud permanent\n")
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Some settings exist only on newer kernels or with br_netfilter, and their absence is as good.
fn set_if_present(key: &str, value: &str) {
    let path = std::path::Path::new("/proc/sys/net").join(key);
    if path.exists()
        && let Err(error) = std::fs::write(&path, value)
    {
        eprintln!("cannot write {}: {error}", path.display());
    }
}
