//! The machine that the datapath believes to run on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::host::LocalKind;

/// Interfaces and local addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The interfaces.
    pub devices: Vec<HostDevice>,
    /// Addresses that are this host's. These three are what the kernel's table `local` holds.
    pub local: Vec<IpNet>,
    /// Broadcast addresses.
    pub broadcast: Vec<IpNet>,
    /// Anycast addresses that this host answers for.
    pub anycast: Vec<IpNet>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    /// Interface index.
    pub index: u32,
    /// Name, which interface patterns are compared with.
    pub name: String,
    /// Bytes before the network header: 14 on Ethernet and loopback.
    pub l2_len: u32,
    /// Whether this is the loopback interface.
    pub loopback: bool,
    /// The address that MASQUERADE uses for IPv4.
    pub masquerade4: Option<Ipv4Addr>,
    /// The address that MASQUERADE uses for IPv6.
    pub masquerade6: Option<Ipv6Addr>,
    /// Its link-layer address.
    #[serde(default)]
    pub link: [u8; 6],
    /// Its own addresses, in the kernel's order: REDIRECT takes the first.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl HostDevice {
    /// An Ethernet interface without addresses.
    pub fn ethernet(index: u32, name: &str) -> Self {
        Self {
            index,
            name: name.to_owned(),
            l2_len: 14,
            loopback: false,
            masquerade4: None,
            masquerade6: None,
            link: [0; 6],
            addresses: Vec::new(),
        }
    }

    /// The loopback interface.
    pub fn loopback() -> Self {
        Self {
            loopback: true,
            ..Self::ethernet(1, "lo")
        }
    }
}

impl From<&crate::host::Host> for Host {
    /// The host as the kernel describes it. Interfaces whose link layer the programs do not read
    /// are left out.
    fn from(host: &crate::host::Host) -> Self {
        let device = |interface: &crate::host::Interface| {
            Some(HostDevice {
                index: interface.index,
                name: interface.name.clone(),
                l2_len: interface.l2_len()?,
                loopback: interface.is_loopback(),
                masquerade4: host.masquerade4(interface),
                masquerade6: host.masquerade6(interface),
                link: interface.link.unwrap_or_default(),
                addresses: interface.addresses.iter().map(|own| own.address).collect(),
            })
        };
        let of_kind = |kind| {
            let routes = host.local.iter().filter(|route| route.kind == kind);
            routes
                .filter_map(|route| IpNet::new(route.address, route.prefix_len).ok())
                .collect()
        };
        Self {
            devices: host.layer3().filter_map(device).collect(),
            local: of_kind(LocalKind::Local),
            broadcast: of_kind(LocalKind::Broadcast),
            anycast: of_kind(LocalKind::Anycast),
        }
    }
}

impl Host {
    /// The interface of this name.
    pub fn device(&self, name: &str) -> Option<&HostDevice> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// Whether packets to this address are for the host itself: its own and broadcast addresses,
    /// and every multicast group.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_multicast() || self.local_kind(address) != 0
    }

    /// The [`address_kind`](fw_common::abi::device::address_kind) of the longest prefix that contains
    /// the address, 0 if none does.
    pub fn local_kind(&self, address: IpAddr) -> u32 {
        let of_kind = |prefixes: &[IpNet], kind: LocalKind| {
            let longest = prefixes.iter().filter(|prefix| prefix.contains(&address));
            longest
                .map(IpNet::prefix_len)
                .max()
                .map(|length| (length, kind))
        };
        // `max_by_key` keeps the last of equals.
        [
            of_kind(&self.anycast, LocalKind::Anycast),
            of_kind(&self.broadcast, LocalKind::Broadcast),
            of_kind(&self.local, LocalKind::Local),
        ]
        .into_iter()
        .flatten()
        .max_by_key(|(length, _)| *length)
        .map_or(0, |(_, kind)| kind.number())
    }
}
