//! Loading, replacing, following the interfaces, unloading: the `fwbpf` binary
//! against the kernel, in network namespaces that the tests make and remove.
//!
//! Needs root, iproute2, and a binary that carries its BPF programs (`cargo xtask test` builds
//! one). What is missing is said; with `CI=true` it fails.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use lab::{Lab, missing};

/// Skips the test, or fails it in CI.
macro_rules! require {
    () => {
        if let Some(missing) = missing() {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "cannot run: {missing}"
            );
            eprintln!("SKIPPED {}: {missing}", module_path!());
            return;
        }
    };
}

mod interrupted;
mod lab;

#[test]
fn load_replace_unload() {
    require!();
    let lab = Lab::new("life");
    let first = lab.policy("first.v4", &[22, 80]);
    let second = lab.policy("second.v4", &[22, 443]);

    let outcome = lab.json(&["load", first.to_str().unwrap()]);
    assert_eq!(outcome["generation"], 1);
    assert_eq!(outcome["counters_kept"], 0);
    assert_eq!(outcome["missing"], serde_json::json!(["absent0"]));
    let mut attached: Vec<&str> = outcome["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|interface| interface["interface"].as_str().unwrap())
        .collect();
    attached.sort_unstable();
    assert_eq!(attached, ["eth0", "far0", "lo"]);
    assert_eq!(lab.tcx_programs("eth0"), [1, 1]);
    assert_eq!(lab.tcx_programs("lo"), [1, 1]);
    assert!(lab.shown().contains("--dport 80"));

    let programs = lab.program_ids();
    let outcome = lab.json(&["load", second.to_str().unwrap()]);
    assert_eq!(outcome["generation"], 2);
    // Three chain policies, the rule of lo, the rule of absent0, and port 22; port 443 is new.
    assert_eq!(outcome["counters_kept"], 6);
    assert_eq!(outcome["counters"], 7);
    assert_eq!(lab.program_ids(), programs, "programs are reused");
    assert_eq!(lab.tcx_programs("eth0"), [1, 1]);
    let shown = lab.shown();
    assert!(
        shown.contains("--dport 443") && !shown.contains("--dport 80"),
        "{shown}"
    );

    let status = lab.json(&["status"]);
    assert_eq!(status["generation"], 2);
    assert_eq!(
        status["files"],
        serde_json::json!([second.to_str().unwrap()])
    );
    assert_eq!(lab.json(&["flows"]), serde_json::json!([]));

    assert!(lab.run(&["unload"]).status.success());
    assert!(!lab.state.exists(), "nothing is left of the pins");
    assert_eq!(lab.tcx_programs("eth0"), [0, 0], "nothing is attached");
    assert_eq!(lab.tcx_programs("lo"), [0, 0]);
    assert_eq!(lab.run(&["unload"]).status.code(), Some(4));
    assert_eq!(lab.run(&["show"]).status.code(), Some(4));
}

#[test]
fn a_refused_policy_changes_nothing() {
    require!();
    let lab = Lab::new("refused");
    let good = lab.policy("good.v4", &[22]);
    let bad = lab.directory.join("bad.v4");
    fs::write(&bad, "*filter\n-A INPUT -j NOWHERE\nCOMMIT\n").unwrap();

    assert_eq!(
        lab.run(&["load", bad.to_str().unwrap()]).status.code(),
        Some(3)
    );
    assert!(
        !lab.state.exists(),
        "a first load that fails leaves nothing"
    );

    lab.json(&["load", good.to_str().unwrap()]);
    let before = lab.shown();
    assert_eq!(
        lab.run(&["load", bad.to_str().unwrap()]).status.code(),
        Some(3)
    );
    assert_eq!(lab.shown(), before);
    assert_eq!(lab.json(&["status"])["generation"], 1);
}

#[test]
fn other_peoples_directories_are_left_alone() {
    require!();
    let lab = Lab::new("stranger");
    let good = lab.policy("good.v4", &[22]);
    let stranger = lab.state.join("somebody");
    fs::create_dir_all(&stranger).unwrap();
    for command in [vec!["load", good.to_str().unwrap()], vec!["unload"]] {
        let output = lab.run(&command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("somebody"));
        assert!(stranger.is_dir());
    }
    fs::remove_dir(&stranger).unwrap();
    fs::remove_dir(&lab.state).unwrap();
}

#[test]
fn a_second_namespace_cannot_take_the_directory() {
    require!();
    let lab = Lab::new("own");
    let other = Lab::new("other");
    let good = lab.policy("good.v4", &[22]);
    lab.json(&["load", good.to_str().unwrap()]);
    let output = other
        .fwbpf_in(&lab.state)
        .args(["load", good.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another network namespace"));
    assert_eq!(lab.json(&["status"])["generation"], 1);
}

#[test]
fn the_daemon_follows_interfaces_and_addresses() {
    require!();
    let lab = Lab::new("follow");
    let good = lab.policy("good.v4", &[22, 9977]);
    lab.json(&["load", good.to_str().unwrap()]);
    let daemon = lab.daemon("127.0.0.1:9977");

    lab.ip("addr add 10.77.0.1/24 dev eth0");
    lab.wait("the new address is local", || lab.is_local([10, 77, 0, 1]));
    lab.wait("its broadcast address too", || {
        lab.is_local([10, 77, 0, 255])
    });
    lab.ip("addr del 10.77.0.1/24 dev eth0");
    lab.wait("the address is gone", || !lab.is_local([10, 77, 0, 1]));

    lab.ip("link add absent0 type veth peer name absent1");
    lab.wait("a new interface is guarded", || {
        lab.tcx_programs("absent0") == [1, 1]
    });
    lab.inside(|| {
        // Where the kernel's bridges hand over what they switch, ports are guarded, too.
        for family in ["iptables", "ip6tables"] {
            let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
            if std::fs::exists(&setting).unwrap() {
                std::fs::write(setting, "0").unwrap();
            }
        }
    });
    lab.ip("link add br0 type bridge");
    lab.ip("link set absent0 master br0");
    lab.wait("a port is the bridge's business", || {
        lab.tcx_programs("absent0") == [0, 0] && lab.tcx_programs("br0") == [1, 1]
    });
    lab.ip("link del absent1");

    let metrics = lab.get("127.0.0.1:9977", "/metrics");
    for line in [
        "fwbpf_loaded 1",
        "fwbpf_generation 1",
        "fwbpf_interface_attached{interface=\"eth0\"} 1",
        "rule=\"the way in\"",
        "chain=\"INPUT\",family=\"ipv4\",policy=\"DROP\",table=\"filter\"",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    promtool(&metrics);

    drop(daemon);
    assert_eq!(
        lab.tcx_programs("eth0"),
        [1, 1],
        "the firewall outlives the daemon"
    );
}

fn promtool(metrics: &str) {
    let Ok(mut child) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "promtool is missing"
        );
        eprintln!("SKIPPED promtool check metrics: promtool is missing");
        return;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "promtool: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
