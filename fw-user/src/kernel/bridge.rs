//! Whether bridges hand iptables the frames that they only switch (`br_nf_pre_routing`,
//! net/bridge/br_netfilter_hooks.c).

use std::fs;

use rtnetlink::packet_route::link::{InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkInfo};

use super::probe;
use super::sysctl::setting;
use crate::policy::model::Family;

/// For IPv4 and IPv6: whether all bridges of this network namespace do.
pub fn all_hand_over() -> [bool; 2] {
    [Family::Ipv4, Family::Ipv6].map(|family| setting(&path(family)).is_some_and(|on| on != 0))
}

/// The same for one bridge, as far as it is its own setting.
pub fn hands_over(about: &[LinkInfo]) -> [bool; 2] {
    let settings = about.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(settings)) => Some(settings.as_slice()),
        _ => None,
    });
    let mut on = [false; 2];
    for setting in settings.unwrap_or_default() {
        match setting {
            InfoBridge::NfCallIpTables(v4) => on[0] = *v4,
            InfoBridge::NfCallIp6Tables(v6) => on[1] = *v6,
            _ => {}
        }
    }
    on
}

/// Whether a port's bridge sends out of it what came in by it, too.
pub fn is_hairpin(about: &[LinkInfo]) -> bool {
    about.iter().any(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            settings.contains(&InfoBridgePort::HairpinMode(true))
        }
        _ => false,
    })
}

/// The name of the sysctl that says whether all bridges do.
pub fn name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "bridge-nf-call-iptables",
        Family::Ipv6 => "bridge-nf-call-ip6tables",
    }
}

/// Whether the module that makes them is not loaded, but there for iptables to load when it meets `-m physdev`
/// (`physdev_mt_check`, net/netfilter/xt_physdev.c): all bridges hand frames over from then on.
pub fn is_only_a_module() -> bool {
    setting(&path(Family::Ipv4)).is_none() && has_module()
}

fn path(family: Family) -> String {
    format!("bridge/{}", name(family))
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
