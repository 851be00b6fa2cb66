//! What some rules ask of the kernel that they are loaded on, and is not for every kernel.

use anyhow::{Context as _, Result, bail};

use crate::host::Host;
use crate::kernel::{bridge, bypassed, probe, reverse_path};
use crate::policy::model::{Family, Match, Policy, Rule, Target};
use crate::policy::packet_match::{PacketMatch, Physdev};

/// Refuses rules that would not mean here what they say.
pub(super) fn all(policy: &Policy, host: &Host) -> Result<()> {
    credentials(policy)?;
    bridges(policy, host)?;
    no_ipsec(policy)?;
    plain_routes(policy)
}

/// Refuses rules about the way back where the kernel's routes do not tell all about it.
fn plain_routes(policy: &Policy) -> Result<()> {
    for (family, rule) in rules(policy) {
        let strict = rule.matches.iter().find_map(|each| match each {
            Match::Packet(PacketMatch::ReversePath { loose, .. }) => Some(!loose),
            _ => None,
        });
        let Some(strict) = strict else { continue };
        if let Some(why) = reverse_path::obstacle(family, strict)? {
            bail!(
                "{}: `-m rpfilter` is not exact here: {why}",
                place(policy, rule)
            )
        }
    }
    Ok(())
}

/// Refuses rules that tell what IPsec has to do with from other packets, where it may have.
fn no_ipsec(policy: &Policy) -> Result<()> {
    let Some(rule) = about_ipsec(policy) else {
        return Ok(());
    };
    let has_ipsec = bypassed::has_ipsec().with_context(|| {
        format!(
            "{}: cannot ask the kernel for IPsec's policies and states, without which `-m policy --pol none` \
             holds for all packets",
            place(policy, rule)
        )
    })?;
    if has_ipsec {
        bail!(
            "{}: `-m policy --pol none` would hold for all packets, also for those that IPsec has to do with, \
             and this kernel has IPsec's policies or states (`ip xfrm policy`, `ip xfrm state`); match the \
             tunnel's addresses, and `-p esp`",
            place(policy, rule)
        )
    }
    Ok(())
}

/// The first rule that tells what IPsec has to do with from other packets.
pub(super) fn about_ipsec(policy: &Policy) -> Option<&Rule> {
    let asks = |each: &Match| matches!(each, Match::Packet(PacketMatch::WithoutIpsec { .. }));
    let mut rules = rules(policy);
    rules.find_map(|(_, rule)| rule.matches.iter().any(asks).then_some(rule))
}

/// Refuses rules about who opened a socket where the kernel does not say.
fn credentials(policy: &Policy) -> Result<()> {
    let asks = |rule: &Rule| {
        let by_group = rule.matches.iter().any(|each| {
            matches!(each, Match::Packet(PacketMatch::Owner(owner)) if owner.group.is_some())
        });
        let logs = matches!(&rule.target, Target::Log(log) if log.owner);
        by_group
            .then_some("--gid-owner")
            .or(logs.then_some("--log-uid"))
    };
    let mut rules = rules(policy);
    let Some((rule, option)) = rules.find_map(|(_, rule)| Some((rule, asks(rule)?))) else {
        return Ok(());
    };
    if probe::credentials().is_some() {
        return Ok(());
    }
    bail!(
        "{}: `{option}` needs a kernel that says where it keeps who opened a socket: with BTF \
         (CONFIG_DEBUG_INFO_BTF), and not locked down to confidentiality; leave the rule out, or match \
         by user with `--uid-owner`",
        place(policy, rule)
    )
}

/// Refuses rules about ports of bridges where it is not settled whether iptables would see what bridges only switch,
/// and the one that is not exact where it would.
fn bridges(policy: &Policy, host: &Host) -> Result<()> {
    for (family, rule) in rules(policy) {
        let mut physdev = rule.matches.iter().filter_map(|each| match each {
            Match::Packet(PacketMatch::Physdev(physdev)) => Some(physdev),
            _ => None,
        });
        let Some(first) = physdev.next() else {
            continue;
        };
        if bridge::is_only_a_module() {
            bail!(
                "{}: for `-m physdev` iptables loads the module br_netfilter, and from then on sees the frames that \
                 bridges only switch; fwbpf loads none, and they would pass. `modprobe br_netfilter`, set \
                 net.bridge.{} to 1 if they are to be filtered and to 0 if not, and load again",
                place(policy, rule),
                bridge::name(family)
            )
        }
        let family_number = usize::from(family == Family::Ipv6);
        let mut bridges = host.interfaces.iter();
        let asks = bridges.any(|interface| interface.hands_over[family_number]);
        if asks && (first.is_about_other_ports() || physdev.any(Physdev::is_about_other_ports)) {
            bail!(
                "{}: `! --physdev-out` without an option that is not inverted holds of packets that came in by no \
                 bridge, and not of those that came in by one and leave by none, which is not exact here, where a bridge \
                 has iptables see what it switches; add `--physdev-is-bridged`, or name the ports that are meant",
                place(policy, rule)
            )
        }
    }
    Ok(())
}

fn rules(policy: &Policy) -> impl Iterator<Item = (Family, &Rule)> {
    policy.rulesets().flat_map(|(family, ruleset)| {
        let chains = ruleset.tables().flat_map(|(_, table)| &table.chains);
        let rules = chains.flat_map(|chain| &chain.rules);
        rules.map(move |rule| (family, rule))
    })
}

/// The file and line of a rule.
fn place(policy: &Policy, rule: &Rule) -> String {
    let file = policy.files.get(rule.origin.file as usize);
    let file = file.map_or("the policy", String::as_str);
    format!("{file}:{}", rule.origin.line)
}
