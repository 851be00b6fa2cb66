//! The path that is measured: two wires and the firewalled host between them.
//!
//! ```text
//!  wan: wire0 ══ eth0 (host) docker0 ══ wire0 :lan
//! ```
//!
//! The names on the host are those that the guide's rules speak of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::station::Station;
use crate::lab::{Namespace, run};

/// The host at eth0.
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// The host at eth0.
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
/// The lowest of the addresses that floods come from (RFC 2544's range for benchmarks).
pub const FLOOD: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0));
/// The lowest of the addresses that floods come from.
pub const FLOOD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0x2, 0, 0, 0, 0, 0x1200, 0));
/// A server on the internet.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
/// The lowest of the inner hosts' addresses.
pub const INNER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 1, 0));

/// The link-layer addresses: of wan's end, of eth0, of docker0, of lan's end.
pub const MACS: [[u8; 6]; 4] = [
    [2, 0, 0, 0, 9, 1],
    [2, 0, 0, 0, 9, 2],
    [2, 0, 0, 0, 9, 3],
    [2, 0, 0, 0, 9, 4],
];

/// What is at the far ends of the two wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The generator and the sink: nothing there answers by itself.
    Generated,
    /// Hosts with sockets.
    Real,
}

/// Three namespaces and two wires.
pub struct PathLab {
    /// Where floods come from, and where masqueraded packets go.
    pub wan: Arc<Namespace>,
    /// The host with the firewall.
    pub host: Arc<Namespace>,
    /// Where masqueraded packets come from.
    pub lan: Arc<Namespace>,
}

impl PathLab {
    /// Makes them. `name` tells contenders' labs apart.
    pub fn new(name: &str, ends: Ends) -> Result<Self> {
        let make = |role| Namespace::new(&format!("bench-{name}"), role).map(Arc::new);
        let lab = Self {
            wan: make("wan")?,
            host: make("host")?,
            lan: make("lan")?,
        };
        for namespace in [&lab.wan, &lab.host, &lab.lan] {
            namespace.sysctl(&[
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/conf/default/router_solicitations", "0"),
            ])?;
        }
        lab.host
            .sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        if ends == Ends::Generated {
            // A kernel with IPv6 reports its multicast groups some time after a link came up, which
            // would count as a packet of the flood.
            for namespace in [&lab.wan, &lab.lan] {
                namespace.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
            }
        }
        let [wan_mac, eth0, docker0, lan_mac] = MACS.map(mac_text);
        let (wan, lan) = (lab.wan.name(), lab.lan.name());
        lab.host.ip(&format!(
            "link add eth0 address {eth0} type veth peer name wire0 address {wan_mac} netns {wan}\n\
             link add docker0 address {docker0} type veth peer name wire0 address {lan_mac} netns {lan}\n\
             link set eth0 up\n\
             link set docker0 up\n"
        ))?;
        lab.wan.ip("link set wire0 up\n")?;
        lab.lan.ip("link set wire0 up\n")?;
        lab.host.ip(&format!(
            "addr add 198.51.100.10/24 dev eth0\n\
             addr add 2001:db8:1::10/64 dev eth0 nodad\n\
             addr add 172.17.0.1/16 dev docker0\n\
             neigh add 198.51.100.1 lladdr {wan_mac} dev eth0 nud permanent\n\
             neigh add 2001:db8:1::1 lladdr {wan_mac} dev eth0 nud permanent\n\
             neigh add 172.17.0.2 lladdr {lan_mac} dev docker0 nud permanent\n\
             route add default via 198.51.100.1 dev eth0\n\
             route add ::/0 via 2001:db8:1::1 dev eth0\n\
             route add 172.17.1.0/24 via 172.17.0.2 dev docker0\n"
        ))?;
        match ends {
            // GRO switches NAPI on in veth, without which it takes no XDP frames; every contender
            // gets it, those with an XDP program would have NAPI anyhow.
            Ends::Generated => {
                for interface in ["eth0", "docker0"] {
                    run(lab
                        .host
                        .command("ethtool")
                        .args(["-K", interface, "gro", "on"]))
                    .context("switch NAPI on")?;
                }
            }
            Ends::Real => {
                lab.wan.ip(&format!(
                    "addr add 198.51.100.1/24 dev wire0\n\
                     addr add 203.0.113.7/32 dev wire0\n\
                     addr add 192.0.2.2/32 dev wire0\n\
                     addr add 2001:db8:1::1/64 dev wire0 nodad\n\
                     neigh add 198.51.100.10 lladdr {eth0} dev wire0 nud permanent\n\
                     route add default via 198.51.100.10 dev wire0\n"
                ))?;
                lab.lan.ip(&format!(
                    "addr add 172.17.0.2/16 dev wire0\n\
                     neigh add 172.17.0.1 lladdr {docker0} dev wire0 nud permanent\n\
                     route add default via 172.17.0.1 dev wire0\n"
                ))?;
            }
        }
        Ok(lab)
    }

    /// The generator and the sink at wan's end.
    pub fn wan_station(&self, object: &[u8]) -> Result<Station> {
        let mut station = Station::new(Arc::clone(&self.wan), "wire0", object)?;
        station.attach("sink")?;
        Ok(station)
    }

    /// The generator and the sink at lan's end.
    pub fn lan_station(&self, object: &[u8]) -> Result<Station> {
        let mut station = Station::new(Arc::clone(&self.lan), "wire0", object)?;
        station.attach("sink")?;
        Ok(station)
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
