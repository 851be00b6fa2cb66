//! What some rules ask of the kernel that they are loaded on, and is not for every kernel.

use anyhow::{Context as _, Result, bail};

use crate::kernel::{bridge, bypassed, probe, reverse_path};
use crate::policy::model::{Family, Match, Policy, Rule, Target};
use crate::policy::packet_match::PacketMatch;

/// Refuses rules that would not mean here what they say.
pub(super) fn all(policy: &Policy) -> Result<()> {
    credentials(policy)?;
    plain_bridges(policy)?;
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

/// Refuses rules about ports of a bridge where bridges ask iptables about frames that they only switch:
/// here nobody asks, so that a rule may miss what it is meant for.
fn plain_bridges(policy: &Policy) -> Result<()> {
    let asks = |rule: &Rule| {
        let mut matches = rule.matches.iter();
        matches.any(|each| matches!(each, Match::Packet(PacketMatch::Physdev(_))))
    };
    for (family, rule) in rules(policy).filter(|(_, rule)| asks(rule)) {
        let Some(why) = bridge::why_asked(family)? else {
            continue;
        };
        bail!(
            "{}: `-m physdev` is about frames that a bridge only switches, which iptables would see here \
             ({why}), and fwbpf does not: they pass. If that is as it should be, {} and load again; if not, \
             filter them at the bridge (nftables' table bridge)",
            place(policy, rule),
            why.remedy()
        )
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
