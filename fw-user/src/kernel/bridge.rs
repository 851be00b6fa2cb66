//! Whether bridges hand iptables the frames that they only switch (`br_nf_pre_routing`,
//! net/bridge/br_netfilter_hooks.c).

use std::{fmt, fs};

use super::probe;
use super::sysctl::setting;
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
pub fn why_asked(family: Family) -> Option<Why> {
    let (name, of_bridge) = match family {
        Family::Ipv4 => ("bridge-nf-call-iptables", "nf_call_iptables"),
        Family::Ipv6 => ("bridge-nf-call-ip6tables", "nf_call_ip6tables"),
    };
    match setting(&format!("bridge/{name}")) {
        Some(0) => bridge_that_asks(of_bridge).map(|bridge| Why::Bridge(bridge, of_bridge)),
        Some(_) => Some(Why::Everywhere(name)),
        None => has_module().then_some(Why::Module(name)),
    }
}

fn bridge_that_asks(setting: &str) -> Option<String> {
    let interfaces = fs::read_dir("/sys/class/net").ok()?.flatten();
    let mut asking = interfaces.filter(|interface| {
        let on = fs::read_to_string(interface.path().join("bridge").join(setting));
        on.is_ok_and(|on| on.trim() == "1")
    });
    Some(asking.next()?.file_name().to_string_lossy().into_owned())
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
