//! By what connections are tracked: the policy says so, else the host's sysctls; `status` tells it.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fwbpf_tests::lab::{Firewall, Fwbpf, Namespace, fwbpf_binary, ready};

#[test]
fn the_policy_comes_before_the_sysctls() {
    if !ready("conntrack_settings", &[], true) {
        return;
    }
    settings().unwrap();
}

fn settings() -> Result<()> {
    let namespace = Arc::new(Namespace::new("conntrack_settings", "host")?);
    namespace.sysctl(&[
        ("netfilter/nf_conntrack_udp_timeout", "77"),
        ("netfilter/nf_conntrack_tcp_timeout_syn_sent", "55"),
        ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ])?;
    let binary = fwbpf_binary().context("there is no fwbpf")?;
    let fwbpf = Fwbpf::new(Arc::clone(&namespace), binary)?;
    let policy = fwbpf.write_policy(
        "policy.toml",
        "[conntrack]\ntcp_timeout_syn_sent = 33\ntcp_loose = false\n",
    )?;
    fwbpf.load_files(&[&policy])?;

    let status: serde_json::Value = serde_json::from_str(&fwbpf.status()?)?;
    for (name, value) in [
        ("udp_timeout", 77),
        ("tcp_timeout_syn_sent", 33),
        ("tcp_timeout_established", 432_000),
        ("tcp_be_liberal", 1),
        ("tcp_loose", 0),
        ("tcp_max_retrans", 3),
    ] {
        let found = &status["conntrack"][name];
        ensure!(*found == value, "{name} is {found}, not {value}");
    }
    let text = fwbpf.text(&["status"])?;
    ensure!(text.contains("tcp_timeout_syn_sent 33"), "{text}");

    let sent = Instant::now();
    namespace.enter(|| -> Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:5000")?;
        socket.send_to(b"hello", "127.0.0.1:5001")?;
        Ok(())
    })??;
    let flows = fwbpf.flows()?;
    let flow = flows
        .lines()
        .find(|line| line.contains("dport=5001"))
        .with_context(|| format!("the datagram's flow is not in\n{flows}"))?;
    let timeout: u64 = flow
        .split_whitespace()
        .nth(2)
        .and_then(|word| word.parse().ok())
        .context("there is no timeout")?;
    // What has passed since, and what is cut off of a second.
    let passed = sent.elapsed().as_secs() + 2;
    ensure!(timeout <= 77 && timeout + passed >= 77, "{flow}");
    Ok(())
}
