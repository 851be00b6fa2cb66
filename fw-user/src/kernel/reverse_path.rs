//! Whether the kernel tells programs the way back of a packet as `-m rpfilter` of iptables finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::sysctl::setting;
use crate::host::{Host, netlink};
use crate::policy::model::Family;

/// Why it does not, and what to do. `strict`: it matters by which interface.
///
/// Programs ask for the way of what comes by an interface that forwards, and get one way
/// (`bpf_fib_lookup`): iptables looks at all next hops of an IPv4 route (`fib_info_nh_uses_dev`), and at all
/// IPv6 routes to a prefix (`rt6_device_match`).
pub fn obstacle(family: Family, strict: bool) -> Result<Option<String>> {
    let version = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    if setting(&format!("{version}/conf/lo/forwarding")) != Some(1) {
        return Ok(Some(format!(
            "the kernel tells the way only of what comes by an interface that forwards, and loopback \
             has not to forward anything; `sysctl -w net.{version}.conf.lo.forwarding=1`"
        )));
    }
    let vrf = Host::read()?.interfaces.into_iter();
    let mut vrf = vrf.filter(|interface| interface.kind.as_deref() == Some("vrf"));
    if let Some(vrf) = vrf.next() {
        return Ok(Some(format!(
            "ways in the VRF {} are not told; leave the rule out, and use `sysctl net.ipv4.conf.all.rp_filter`",
            vrf.name
        )));
    }
    if !strict {
        return Ok(None);
    }
    Ok(ambiguous(family)?.map(|prefix| {
        format!(
            "routes lead to {prefix} by several interfaces, of which the kernel tells one; write `--loose`"
        )
    }))
}

/// A prefix to which several interfaces lead.
fn ambiguous(family: Family) -> Result<Option<String>> {
    let mut ways: BTreeMap<(u32, Option<IpAddr>, u8), BTreeSet<u32>> = BTreeMap::new();
    for route in routes(family)? {
        if route.header.kind != RouteType::Unicast {
            continue;
        }
        let table = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Table(table) => Some(*table),
                _ => None,
            });
        let prefix = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    Some(IpAddr::V4(*address))
                }
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                    Some(IpAddr::V6(*address))
                }
                _ => None,
            });
        if let Some(IpAddr::V6(address)) = prefix
            && (address.is_unicast_link_local() || address.is_multicast())
        {
            // No packet's source is many, and each interface is asked about its own link.
            continue;
        }
        let table = table.unwrap_or(route.header.table.into());
        let bits = route.header.destination_prefix_length;
        // Of two IPv4 routes to a prefix, the one of lower metric counts.
        let mut hops = BTreeSet::new();
        let hops = match family {
            Family::Ipv4 => &mut hops,
            Family::Ipv6 => ways.entry((table, prefix, bits)).or_default(),
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => {
                    hops.insert(*index);
                }
                RouteAttribute::MultiPath(several) => {
                    hops.extend(several.iter().map(|hop| hop.interface_index));
                }
                _ => {}
            }
        }
        if hops.len() > 1 {
            return Ok(Some(match prefix {
                Some(address) => format!("{address}/{bits}"),
                None => "everywhere".to_owned(),
            }));
        }
    }
    Ok(None)
}

fn routes(family: Family) -> Result<Vec<RouteMessage>> {
    netlink(async |handle| {
        let mut query = RouteMessage::default();
        query.header.address_family = match family {
            Family::Ipv4 => AddressFamily::Inet,
            Family::Ipv6 => AddressFamily::Inet6,
        };
        handle.route().get(query).execute().try_collect().await
    })
}
