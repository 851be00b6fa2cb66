//! Whether bridges hand iptables the frames that they only switch (`br_nf_pre_routing`,
//! net/bridge/br_netfilter_hooks.c).

use std::{fmt, fs};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoBridge, InfoData, LinkAttribute, LinkInfo, LinkMessage};

use super::probe;
use super::sysctl::setting;
use crate::host::netlink;
use crate::policy::model::Family;

/// Why they do, or would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The namespace's sysctl of this name is 1, which it is from the module's loading on.
    Everywhere(&'static str),
    /// This bridge has the setting of this name.
    Bridge(String, &'static str),
    /// The module is not loaded, but is there for iptables to load when it meets `-m physdev`
    /// (`physdev_mt_check`, net/netfilter/xt_physdev.c).
    Module(&'static str),
}

/// Whether and why iptables would see frames of an IP version that a bridge only switches, if it ran rules
/// about ports of bridges.
pub fn why_asked(family: Family) -> Result<Option<Why>> {
    let (name, of_bridge) = match family {
        Family::Ipv4 => ("bridge-nf-call-iptables", "nf_call_iptables"),
        Family::Ipv6 => ("bridge-nf-call-ip6tables", "nf_call_ip6tables"),
    };
    Ok(match setting(&format!("bridge/{name}")) {
        Some(0) => bridge_that_asks(family)?.map(|bridge| Why::Bridge(bridge, of_bridge)),
        Some(_) => Some(Why::Everywhere(name)),
        None => has_module().then_some(Why::Module(name)),
    })
}

/// A bridge that asks though not all do.
fn bridge_that_asks(family: Family) -> Result<Option<String>> {
    let links: Vec<LinkMessage> =
        netlink(async |handle| handle.link().get().execute().try_collect().await)
            .context("cannot list the interfaces")?;
    let asking = links.iter().find(|link| {
        let mut settings = link.attributes.iter().flat_map(settings);
        settings.any(|setting| match (setting, family) {
            (InfoBridge::NfCallIpTables(on), Family::Ipv4)
            | (InfoBridge::NfCallIp6Tables(on), Family::Ipv6) => *on,
            _ => false,
        })
    });
    Ok(asking.and_then(|link| {
        link.attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
    }))
}

fn settings(attribute: &LinkAttribute) -> &[InfoBridge] {
    let LinkAttribute::LinkInfo(info) = attribute else {
        return &[];
    };
    let settings = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(settings)) => Some(settings.as_slice()),
        _ => None,
    });
    settings.unwrap_or_default()
}

fn has_module() -> bool {
    let list = format!("/lib/modules/{}/modules.dep", probe::kernel_version());
    fs::read_to_string(list).is_ok_and(|list| names_module(&list))
}

/// Each line begins with a module's file, maybe a compressed one, and a colon.
fn names_module(list: &str) -> bool {
    let files = list.lines().filter_map(|line| line.split(':').next());
    let mut names = files.filter_map(|file| file.rsplit('/').next());
    names.any(|name| name.split('.').next() == Some("br_netfilter"))
}

impl Why {
    /// What to do where such frames may pass.
    pub fn remedy(&self) -> String {
        match self {
            Self::Everywhere(name) => format!("`sysctl -w net.bridge.{name}=0`"),
            Self::Bridge(bridge, name) => {
                format!("`echo 0 > /sys/class/net/{bridge}/bridge/{name}`")
            }
            Self::Module(name) => {
                format!("`modprobe br_netfilter`, `sysctl -w net.bridge.{name}=0`")
            }
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere(name) => write!(f, "net.bridge.{name} is 1"),
            Self::Bridge(bridge, name) => write!(f, "{name} of {bridge} is 1"),
            Self::Module(name) => write!(
                f,
                "it loads br_netfilter for such a rule, and net.bridge.{name} is 1 then"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::names_module;

    #[test]
    fn the_module_is_found_in_the_list() {
        assert!(names_module(
            "kernel/a.ko: kernel/b.ko\nkernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\n"
        ));
        assert!(!names_module(
            "kernel/net/x.ko: kernel/net/bridge/br_netfilter.ko\n"
        ));
    }
}
