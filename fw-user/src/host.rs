//! The host as plain data: interfaces, their addresses, and the kernel's table of local addresses.
//!
//! Everything is read through rtnetlink, never from /sys, because a process that entered a network
//! namespace still sees the /sys of the namespace that mounted it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use fw_common::abi::device::address_kind;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use serde::Serialize;

use crate::kernel::bridge;

/// What the firewall needs to know of the network namespace that it guards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The interfaces, in the kernel's order.
    pub interfaces: Vec<Interface>,
    /// Destinations that the kernel delivers to this host: local, broadcast and anycast routes.
    pub local: Vec<LocalRoute>,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// The interface index.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The kind of virtual interface (`veth`, `bridge`, ...), if it is one.
    pub kind: Option<String>,
    /// `ARPHRD_*`: what the link layer is (include/uapi/linux/if_arp.h).
    pub link_layer: u16,
    /// The link-layer address, if it is one of six bytes.
    pub link: Option<[u8; 6]>,
    /// The bridge, bond or VRF that this interface is a port of.
    pub master: Option<u32>,
    /// Of a bridge, for IPv4 and IPv6: whether it hands iptables the packets of frames that it only
    /// switches (`bridge-nf-call-iptables`, `-ip6tables`, its own setting or all bridges').
    pub hands_over: [bool; 2],
    /// Of a bridge's port: whether the bridge sends out of it what came in by it, too.
    pub hairpin: bool,
    /// Whether a hardware (or virtio) device is behind it.
    pub hardware: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// The XDP program on it, if any.
    pub xdp: Option<XdpProgram>,
    /// The addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// An XDP program that is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct XdpProgram {
    /// The program's id.
    pub id: u32,
    /// Whether the driver runs it, and not the generic hook.
    pub native: bool,
}

/// One address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub prefix_len: u8,
    /// Whether its scope is global.
    pub global: bool,
    /// Whether the scope is `link`.
    pub link: bool,
    /// IPv4: a secondary address; IPv6: a temporary one.
    pub secondary: bool,
    /// IPv6: not for new flows.
    pub deprecated: bool,
    /// IPv6: duplicate address detection has not finished, or failed.
    pub tentative: bool,
}

/// A destination that is delivered locally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LocalRoute {
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub prefix_len: u8,
    /// Index of the interface that it is on; 0 if the kernel does not say.
    pub device: u32,
    /// What kind of address it is.
    pub kind: LocalKind,
}

/// The kinds of routes in the kernel's table `local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalKind {
    /// An address of this host's.
    Local,
    /// A broadcast address.
    Broadcast,
    /// An anycast address that this host answers for.
    Anycast,
}

impl LocalKind {
    /// As the kernel and the programs number it.
    pub fn number(self) -> u32 {
        match self {
            Self::Local => address_kind::LOCAL,
            Self::Broadcast => address_kind::BROADCAST,
            Self::Anycast => address_kind::ANYCAST,
        }
    }
}

const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;

impl Host {
    /// Reads the network namespace of the calling thread.
    pub fn read() -> Result<Self> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the netlink runtime")?
            .block_on(Self::read_async())
    }

    /// [`Host::read`] for callers that run in a tokio runtime already.
    pub async fn read_async() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let connection = tokio::spawn(connection);

        let links: Vec<LinkMessage> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot list the interfaces")?;
        let addresses: Vec<AddressMessage> = handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot list the addresses")?;
        let mut local = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let mut routes = Box::pin(handle.route().get(query).execute());
            while let Some(route) = routes
                .try_next()
                .await
                .context("cannot list the local routes")?
            {
                local.extend(local_route(&route));
            }
        }
        connection.abort();

        let mut interfaces: Vec<Interface> = links.iter().map(interface).collect();
        let all = bridge::all_hand_over();
        for interface in &mut interfaces {
            if interface.kind.as_deref() == Some("bridge") {
                for (one, all) in interface.hands_over.iter_mut().zip(all) {
                    *one |= all;
                }
            }
        }
        for message in &addresses {
            if let Some(interface) = interfaces
                .iter_mut()
                .find(|interface| interface.index == message.header.index)
            {
                interface.addresses.extend(address(message));
            }
        }
        // Of routes to one prefix the kernel takes the first.
        local.sort_by_key(|route| (route.address, route.prefix_len));
        local.dedup_by_key(|route| (route.address, route.prefix_len));
        Ok(Self { interfaces, local })
    }

    /// The interface of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.name == name)
    }

    /// The interfaces that layer 3 sees. The ports of a bridge or bond hand their packets to the
    /// master, where the policy applies, as `-i`/`-o` name the master too.
    pub fn layer3(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces
            .iter()
            .filter(|interface| interface.master.is_none_or(|master| self.is_vrf(master)))
    }

    /// The ports of bridges that hand over what they only switch, and their bridges: there the policy applies
    /// to what is not the bridge's own business.
    pub fn ports(&self) -> impl Iterator<Item = (&Interface, &Interface)> {
        let all = self.interfaces.iter();
        // Few, where there may be very many ports.
        let bridges: Vec<&Interface> = all
            .clone()
            .filter(|one| one.hands_over != [false; 2])
            .collect();
        let ethernet = all.filter(|port| port.link_layer == ARPHRD_ETHER);
        ethernet.filter_map(move |port| {
            let bridge = bridges.iter().find(|one| Some(one.index) == port.master)?;
            Some((port, *bridge))
        })
    }

    /// The interfaces that the programs belong on: [`Host::layer3`], and [`Host::ports`].
    pub fn guarded(&self) -> impl Iterator<Item = &Interface> {
        self.layer3().chain(self.ports().map(|(port, _)| port))
    }

    /// The source that MASQUERADE takes for IPv4 on this interface, as far as it can be known
    /// before the next hop is: the primary global address, or, on an interface without one, the
    /// first global address of any other (`inet_select_addr` in net/ipv4/devinet.c).
    pub fn masquerade4(&self, device: &Interface) -> Option<Ipv4Addr> {
        let primary = |interface: &Interface| {
            interface.addresses.iter().find_map(|a| match a.address {
                IpAddr::V4(address) if a.global && !a.secondary => Some(address),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            })
        };
        primary(device).or_else(|| self.interfaces.iter().find_map(primary))
    }

    /// The same for IPv6. `ipv6_dev_get_saddr` (net/ipv6/addrconf.c) weighs candidates against the
    /// destination; for a global destination that is: not deprecated, outgoing interface, global
    /// unicast before unique local (RFC 6724 2.1 label match), public before temporary.
    pub fn masquerade6(&self, device: &Interface) -> Option<Ipv6Addr> {
        let candidate = |interface: &Interface| {
            interface
                .addresses
                .iter()
                .filter_map(|a| match a.address {
                    IpAddr::V6(address) if a.global && !a.tentative => {
                        let rank = (a.deprecated, address.is_unique_local(), a.secondary);
                        Some((rank, address))
                    }
                    IpAddr::V4(_) | IpAddr::V6(_) => None,
                })
                // `min_by_key` keeps the first of equals, as the kernel does.
                .min_by_key(|(rank, _)| *rank)
                .map(|(_, address)| address)
        };
        candidate(device).or_else(|| self.interfaces.iter().find_map(candidate))
    }

    fn is_vrf(&self, index: u32) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.index == index && interface.kind.as_deref() == Some("vrf"))
    }
}

impl Interface {
    /// Whether this is the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.link_layer == ARPHRD_LOOPBACK
    }

    /// Bytes before the network header, or nothing for link layers that the programs do not read:
    /// there the firewall sees no IP packets.
    pub fn l2_len(&self) -> Option<u32> {
        // ARPHRD_PPP, RAWIP, NONE (tun, WireGuard), TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE: the skb
        // begins with the IP header at the tc hooks.
        const NO_HEADER: [u16; 8] = [512, 519, 0xfffe, 768, 769, 776, 778, 823];
        match self.link_layer {
            ARPHRD_ETHER | ARPHRD_LOOPBACK => Some(14),
            other if NO_HEADER.contains(&other) => Some(0),
            _ => None,
        }
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: message.header.index,
        link_layer: u16::from(message.header.link_layer_type),
        up: message.header.flags.contains(LinkFlags::Up),
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Controller(master) if *master != 0 => interface.master = Some(*master),
            LinkAttribute::Address(address) => interface.link = address.as_slice().try_into().ok(),
            LinkAttribute::ParentDevName(_) => interface.hardware = true,
            LinkAttribute::LinkInfo(infos) => {
                interface.hands_over = bridge::hands_over(infos);
                interface.hairpin = bridge::is_hairpin(infos);
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind_name(kind)),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => interface.xdp = xdp_program(xdp),
            _ => {}
        }
    }
    interface
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn xdp_program(attributes: &[LinkXdp]) -> Option<XdpProgram> {
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::DrvProgId(id) if *id != 0 => Some(XdpProgram {
            id: *id,
            native: true,
        }),
        LinkXdp::SkbProgId(id) if *id != 0 => Some(XdpProgram {
            id: *id,
            native: false,
        }),
        _ => None,
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface IFA_ADDRESS is the far end; IFA_LOCAL is ours.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        address: local.or(peer)?,
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        link: message.header.scope == AddressScope::Link,
        secondary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
        tentative: flags.contains(AddressFlags::Dadfailed)
            || flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic),
    })
}

fn local_route(message: &RouteMessage) -> Option<LocalRoute> {
    // The kind alone decides: VRFs keep their local routes in tables of their own.
    let kind = match message.header.kind {
        RouteType::Local => LocalKind::Local,
        RouteType::Broadcast => LocalKind::Broadcast,
        RouteType::Anycast => LocalKind::Anycast,
        _ => return None,
    };
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })?;
    let device = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    Some(LocalRoute {
        address,
        prefix_len: message.header.destination_prefix_length,
        device: device.unwrap_or_default(),
        kind,
    })
}

/// By which interface the kernel sends packets to each of these addresses; one that it has no way to
/// is left out.
pub fn routes(addresses: impl IntoIterator<Item = IpAddr>) -> Result<HashMap<IpAddr, u32>> {
    let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
    netlink(async |handle| {
        let mut routes = HashMap::new();
        for address in addresses {
            let query = match address {
                IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(address, 32)
                    .build(),
                IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(address, 128)
                    .build(),
            };
            let mut answers = Box::pin(handle.route().get(query).execute());
            // "Unreachable" is an error, too.
            if let Ok(Some(route)) = answers.try_next().await {
                let mut attributes = route.attributes.iter();
                let index = attributes.find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                routes.extend(index.map(|index| (address, index)));
            }
        }
        Ok(routes)
    })
}

/// Asks the kernel by a netlink socket of its own.
pub(crate) fn netlink<T>(
    question: impl AsyncFnOnce(rtnetlink::Handle) -> Result<T, rtnetlink::Error>,
) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the netlink runtime")?
        .block_on(async {
            let (connection, handle, _) =
                rtnetlink::new_connection().context("cannot open a netlink socket")?;
            let connection = tokio::spawn(connection);
            let answer = question(handle).await;
            connection.abort();
            Ok(answer?)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Address);

    fn with(addresses: &[(&str, Change)]) -> Interface {
        Interface {
            addresses: addresses
                .iter()
                .map(|(text, change)| {
                    let mut address = Address {
                        address: text.parse().unwrap(),
                        prefix_len: 24,
                        global: true,
                        link: false,
                        secondary: false,
                        deprecated: false,
                        tentative: false,
                    };
                    change(&mut address);
                    address
                })
                .collect(),
            ..Interface::default()
        }
    }

    #[test]
    fn masquerade_takes_the_primary_global_address() {
        let device = with(&[
            ("169.254.3.4", |a| a.global = false),
            ("198.51.100.9", |a| a.secondary = true),
            ("198.51.100.10", |_| {}),
            ("203.0.113.1", |_| {}),
        ]);
        let host = Host::default();
        assert_eq!(
            host.masquerade4(&device),
            Some(Ipv4Addr::new(198, 51, 100, 10))
        );
        assert_eq!(host.masquerade6(&device), None);
    }

    #[test]
    fn an_interface_without_address_borrows_one() {
        let host = Host {
            interfaces: vec![with(&[("198.51.100.10", |_| {})])],
            ..Host::default()
        };
        assert_eq!(
            host.masquerade4(&Interface::default()),
            Some(Ipv4Addr::new(198, 51, 100, 10))
        );
    }

    #[test]
    fn masquerade6_prefers_usable_public_addresses() {
        let device = with(&[
            ("fe80::1", |a| a.global = false),
            ("2001:db8::1", |a| a.deprecated = true),
            ("fd00::2", |_| {}),
            ("2001:db8::3", |a| a.secondary = true),
            ("2001:db8::4", |_| {}),
            ("2001:db8::5", |a| a.tentative = true),
        ]);
        assert_eq!(
            Host::default().masquerade6(&device),
            Some("2001:db8::4".parse().unwrap())
        );
    }

    #[test]
    fn the_ports_of_a_bridge_are_not_layer_3() {
        let host = Host {
            interfaces: vec![
                Interface {
                    index: 1,
                    ..Interface::default()
                },
                Interface {
                    index: 2,
                    master: Some(1),
                    ..Interface::default()
                },
                Interface {
                    index: 3,
                    kind: Some("vrf".into()),
                    ..Interface::default()
                },
                Interface {
                    index: 4,
                    master: Some(3),
                    ..Interface::default()
                },
            ],
            ..Host::default()
        };
        let indexes: Vec<u32> = host.layer3().map(|interface| interface.index).collect();
        assert_eq!(indexes, [1, 3, 4]);
    }

    #[test]
    fn ports_are_guarded_where_their_bridge_hands_over() {
        let interface = |index, master, hands_over| Interface {
            index,
            master,
            hands_over,
            link_layer: ARPHRD_ETHER,
            ..Interface::default()
        };
        let host = Host {
            interfaces: vec![
                interface(1, None, [false; 2]),
                interface(2, None, [false, true]),
                interface(3, Some(1), [false; 2]),
                interface(4, Some(2), [false; 2]),
            ],
            ..Host::default()
        };
        let ports: Vec<_> = host
            .ports()
            .map(|(port, on)| (port.index, on.index))
            .collect();
        assert_eq!(ports, [(4, 2)]);
        let guarded: Vec<u32> = host.guarded().map(|one| one.index).collect();
        assert_eq!(guarded, [1, 2, 4]);
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let host = Host::read().unwrap();
        let loopback = host.interface("lo").unwrap();
        assert!(loopback.is_loopback());
        assert_eq!(loopback.l2_len(), Some(14));
    }
}
