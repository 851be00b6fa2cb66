//! The firewall as clsact filters, as on kernels before tcx (Linux 6.6): any kernel can do it.

use anyhow::{Context, Result, ensure};
use fwbpf_tests::guide::GuideLab;
use fwbpf_tests::lab::address::SERVER;
use fwbpf_tests::lab::sockets::{Reach, ip, reach, tcp_echo};
use fwbpf_tests::lab::{Fwbpf, fwbpf_binary, ready, run};
use fwbpf_tests::smoke::CLAIMS;

/// Runs a test in a lab in which every load is told to use clsact; nothing is loaded yet.
fn over_clsact(test: &str, claim: impl FnOnce(&GuideLab) -> Result<()>) {
    if !ready(test, &["ping", "tc"], true) {
        return;
    }
    let result = GuideLab::with_options(test, &["--hook", "clsact"]).and_then(|lab| claim(&lab));
    if let Err(error) = result {
        panic!("{test}: {error:#}");
    }
}

#[test]
fn the_smoke_set_holds_over_clsact() {
    over_clsact("clsact_smoke", |guide| {
        guide.load_guide()?;
        let status: serde_json::Value = serde_json::from_str(&guide.status()?)?;
        ensure!(status["hook"] == "clsact", "attached by {}", status["hook"]);
        ensure!(qdiscs(guide, "eth0")?.contains("clsact"));
        for direction in ["ingress", "egress"] {
            let filters = filters(guide, "eth0", direction)?;
            ensure!(filters.contains("fwbpf_"), "{direction}: {filters}");
        }
        for claim in CLAIMS {
            if let Some(lack) = (claim.lack)() {
                eprintln!("SKIPPED {}: {lack}", claim.name);
                continue;
            }
            (claim.statement)(guide).context(claim.name)?;
        }
        // Reloads replaced the filters and added none.
        for direction in ["ingress", "egress"] {
            let filters = filters(guide, "eth0", direction)?;
            ensure!(
                filters.matches("handle 0x6677").count() == 1,
                "{direction}: {filters}"
            );
        }
        guide.firewall.clear()?;
        for interface in ["lo", "eth0", "eth1", "docker0"] {
            let qdiscs = qdiscs(guide, interface)?;
            ensure!(!qdiscs.contains("clsact"), "{interface} keeps {qdiscs}");
        }
        tcp_echo(&guide.lab.server, 82)?;
        let got = reach(&guide.lab.outside, None, ip(SERVER[0]), 82)?;
        ensure!(got == Reach::Open, "after unload port 82 is {got:?}");
        Ok(())
    });
}

#[test]
fn what_others_attached_stays() {
    over_clsact("clsact_foreign", |guide| {
        // At eth0 the qdisc is somebody's, with a filter that has the first place; at eth1 the
        // qdisc is ours, and somebody puts a filter into it later.
        let tc = |arguments: &str| tc(guide, arguments);
        let filter = "protocol ip pref 1 u32 match ip dst 192.0.2.99/32 flowid 1:1";
        tc("qdisc add dev eth0 clsact")?;
        tc(&format!("filter add dev eth0 ingress {filter}"))?;
        let before = filters(guide, "eth0", "ingress")?;
        guide.load_guide()?;
        tc(
            "filter add dev eth1 egress protocol ip pref 7 u32 match ip dst 192.0.2.99/32 flowid 1:1",
        )?;

        let both = filters(guide, "eth0", "ingress")?;
        ensure!(both.starts_with(&before), "{both}\nbegan as\n{before}");
        ensure!(both.contains("pref 2 bpf"), "not beside it: {both}");
        for port in [22, 81] {
            tcp_echo(&guide.lab.server, port)?;
        }
        let guarded = || -> Result<()> {
            for (port, expected) in [(22, Reach::Open), (81, Reach::Silent)] {
                for server in SERVER {
                    let got = reach(&guide.lab.outside, None, ip(server), port)?;
                    ensure!(got == expected, "port {port} is {got:?}");
                }
            }
            Ok(())
        };
        guarded()?;
        guide.load_guide()?;
        guarded().context("after a reload")?;

        guide.firewall.clear()?;
        let after = filters(guide, "eth0", "ingress")?;
        ensure!(after == before, "{before}\nbecame\n{after}");
        ensure!(qdiscs(guide, "eth0")?.contains("clsact"), "the qdisc went");
        let left = filters(guide, "eth1", "egress")?;
        ensure!(
            left.contains("pref 7 u32") && !left.contains("fwbpf_"),
            "eth1: {left}"
        );
        let qdiscs = qdiscs(guide, "lo")?;
        ensure!(!qdiscs.contains("clsact"), "lo keeps {qdiscs}");
        Ok(())
    });
}

#[test]
fn what_could_not_be_attached_is_not_said_to_be() {
    over_clsact("clsact_refused", |guide| {
        guide.load_guide()?;
        let ip = |arguments: &str| run(guide.lab.server.command("ip").args(arguments.split(' ')));
        ip("link add late0 type veth peer name late1")?;
        ip("link set late0 up")?;
        // A qdisc in clsact's place, which has no egress.
        tc(guide, "qdisc add dev late0 ingress")?;
        let error = guide.load_guide().expect_err("there is no egress");
        ensure!(format!("{error:#}").contains("ingress qdisc"), "{error:#}");
        let hooks = || -> Result<String> {
            let status: serde_json::Value = serde_json::from_str(&guide.status()?)?;
            let interfaces = status["interfaces"].as_array().context("interfaces")?;
            let late = interfaces.iter().find(|it| it["name"] == "late0");
            Ok(late.context("late0")?["hooks"].to_string())
        };
        let refused = hooks()?;
        ensure!(!refused.contains("egress"), "hooks {refused}");
        tc(guide, "qdisc del dev late0 ingress")?;
        guide.load_guide()?;
        let whole = hooks()?;
        ensure!(whole == r#"["egress","ingress"]"#, "hooks {whole}");
        guide.firewall.clear()
    });
}

#[test]
fn a_filter_that_somebody_removed_comes_back_with_the_next_load() {
    over_clsact("clsact_removed", |guide| {
        guide.load_guide()?;
        tc(guide, "qdisc del dev eth0 clsact")?;
        tcp_echo(&guide.lab.server, 81)?;
        let got = reach(&guide.lab.outside, None, ip(SERVER[0]), 81)?;
        ensure!(got == Reach::Open, "without filters port 81 is {got:?}");
        guide.load_guide()?;
        let got = reach(&guide.lab.outside, None, ip(SERVER[0]), 81)?;
        ensure!(got == Reach::Silent, "port 81 is {got:?}");
        // And when it is removed for good, that is no obstacle.
        tc(guide, "qdisc del dev eth0 clsact")?;
        guide.firewall.clear()
    });
}

#[test]
fn a_running_firewall_is_not_moved_between_hooks() {
    over_clsact("clsact_moved", |guide| {
        guide.load_guide()?;
        let binary = fwbpf_binary().context("there is no fwbpf binary")?;
        let fwbpf = Fwbpf::new(guide.lab.server.clone(), binary)?;
        let rules = fwbpf.write_policy("rules.v4", fwbpf_tests::guide::RULES_V4)?;
        let rules = rules.to_str().context("a path of ASCII")?;
        let refused = fwbpf.output(&["load", "--hook", "tcx", rules])?;
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1), "{message}");
        ensure!(
            message.contains("unload") || message.contains("has no tcx"),
            "{message}"
        );
        // Without a wish it stays as it is.
        fwbpf.load_files(&[rules.as_ref()])?;
        let filters = filters(guide, "eth0", "ingress")?;
        ensure!(filters.matches("handle 0x6677").count() == 1, "{filters}");
        Ok(())
    });
}

fn qdiscs(guide: &GuideLab, interface: &str) -> Result<String> {
    tc(guide, &format!("qdisc show dev {interface}"))
}

fn filters(guide: &GuideLab, interface: &str, direction: &str) -> Result<String> {
    tc(guide, &format!("filter show dev {interface} {direction}"))
}

fn tc(guide: &GuideLab, arguments: &str) -> Result<String> {
    run(guide.lab.server.command("tc").args(arguments.split(' ')))
}
