//! Loading, replacing, dying on the way, following the interfaces, unloading: the `fwbpf` binary
//! against the kernel, in network namespaces that the tests make and remove.
//!
//! Needs root, iproute2, and a binary that carries its BPF programs (`cargo xtask test` builds
//! one). What is missing is said; with `CI=true` it fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{LpmTrie, Map, MapData};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use serde_json::Value;

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
fn killed_at_any_moment_leaves_the_old_policy_or_the_new() {
    require!();
    let lab = Lab::new("kill");
    let policies = [
        lab.policy("even.v4", &[22, 80]),
        lab.policy("odd.v4", &[22, 443]),
    ];
    let mut random = Random(0x5eed);

    // The first load, from nothing: whatever it leaves, the next one makes whole.
    for _ in 0..8 {
        lab.killed_load(&policies[0], random.below(400));
        let code = lab.run(&["show"]).status.code();
        assert!(matches!(code, Some(0 | 4)), "{code:?}");
        if code == Some(0) {
            lab.run(&["unload"]);
        }
    }
    lab.json(&["load", policies[0].to_str().unwrap()]);
    let whole: Vec<String> = policies
        .iter()
        .map(|policy| {
            lab.json(&["load", policy.to_str().unwrap()]);
            lab.shown()
        })
        .collect();
    assert_ne!(whole[0], whole[1]);

    let started = Instant::now();
    lab.json(&["load", policies[1].to_str().unwrap()]);
    let usual = started.elapsed().as_millis() as u64;
    let (mut old, mut new) = (0, 0);
    for round in 0..60 {
        let before = lab.shown();
        let wanted = usize::from(before == whole[0]);
        lab.killed_load(&policies[wanted], random.below(usual + usual / 2));
        let after = lab.shown();
        assert!(
            whole.contains(&after),
            "round {round}: neither old nor new:\n{after}"
        );
        if after == before {
            old += 1
        } else {
            new += 1
        }
        assert_eq!(lab.tcx_programs("eth0"), [1, 1]);
    }
    assert!(
        old > 0 && new > 0,
        "the kills should hit both sides of the flip: {old} old, {new} new"
    );
    lab.json(&["load", policies[0].to_str().unwrap()]);
    assert_eq!(lab.shown(), whole[0]);
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

/// A namespace with `lo` and `eth0`, a state directory, and a directory for files.
struct Lab {
    name: String,
    state: PathBuf,
    directory: PathBuf,
}

impl Lab {
    fn new(name: &str) -> Self {
        let name = format!("fwl-{name}-{}", std::process::id());
        let lab = Self {
            state: Path::new("/sys/fs/bpf").join(&name),
            directory: std::env::temp_dir().join(&name),
            name,
        };
        fs::create_dir_all(&lab.directory).unwrap();
        must(Command::new("ip").args(["netns", "add", &lab.name]));
        lab.ip("link set lo up");
        lab.ip("link add eth0 type veth peer name far0");
        // Both ends stay in the namespace: no test may touch the machine's own.
        lab.ip("link set eth0 up");
        lab
    }

    fn ip(&self, arguments: &str) {
        must(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(arguments.split(' ')),
        );
    }

    /// Rules that accept these TCP ports, and one for an interface that does not exist.
    fn policy(&self, name: &str, ports: &[u16]) -> PathBuf {
        let mut text = String::from(
            "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
             -A INPUT -i lo -m comment --comment \"the way in\" -j ACCEPT\n\
             -A INPUT -i absent0 -j DROP\n",
        );
        for port in ports {
            text += &format!("-A INPUT -p tcp -m tcp --dport {port} -j ACCEPT\n");
        }
        text += "COMMIT\n";
        let path = self.directory.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn fwbpf(&self) -> Command {
        self.fwbpf_in(&self.state)
    }

    fn fwbpf_in(&self, state: &Path) -> Command {
        // Not `ip netns exec`, which mounts another /sys, without the bpffs.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(env!("CARGO_BIN_EXE_fwbpf"))
            .arg("--state-dir")
            .arg(state);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.fwbpf().args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.fwbpf().arg("--json").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "fwbpf {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The rules in force, without their counters.
    fn shown(&self) -> String {
        let output = self.run(&["show", "--save"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| match line.split_once("] ") {
                Some((_, rule)) if line.starts_with('[') => rule.to_owned(),
                _ => line.split(" [").next().unwrap_or(line).to_owned(),
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn killed_load(&self, policy: &Path, after_ms: u64) {
        let mut load = self
            .fwbpf()
            .arg("load")
            .arg(policy)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(after_ms));
        // nsenter has become fwbpf by exec, so this is SIGKILL to fwbpf itself.
        load.kill().unwrap();
        load.wait().unwrap();
    }

    /// Programs at tcx ingress and egress.
    fn tcx_programs(&self, interface: &str) -> [usize; 2] {
        self.inside(|| {
            [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| {
                SchedClassifier::query_tcx(interface, direction).map_or(0, |(_, p)| p.len())
            })
        })
    }

    fn program_ids(&self) -> Vec<u32> {
        ["ingress", "egress", "xdp", "sweep"]
            .iter()
            .map(|name| {
                ProgramInfo::from_pin(self.state.join(format!("prog_fwbpf_{name}")))
                    .unwrap()
                    .id()
            })
            .collect()
    }

    fn is_local(&self, address: [u8; 4]) -> bool {
        let map = MapData::from_pin(self.state.join("LOCAL")).unwrap();
        let map: LpmTrie<_, [u8; 16], u32> =
            Map::from_map_data(map).and_then(TryInto::try_into).unwrap();
        map.keys().any(|key| {
            let key = key.unwrap();
            key.prefix_len() == 128 && key.data()[10..] == [[0xff; 2].as_slice(), &address].concat()
        })
    }

    fn daemon(&self, metrics: &str) -> Daemon {
        let child = self
            .fwbpf()
            .args(["daemon", "--metrics", metrics])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon(child);
        self.wait("the daemon serves", || {
            self.inside(|| TcpStream::connect(metrics).is_ok())
        });
        daemon
    }

    fn get(&self, address: &str, path: &str) -> String {
        self.inside(|| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
            )
            .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            body.to_owned()
        })
    }

    /// Runs something in a thread that has entered the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    rustix::thread::move_into_link_name_space(
                        std::os::fd::AsFd::as_fd(&namespace),
                        Some(rustix::thread::LinkNameSpaceType::Network),
                    )
                    .unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.state.exists() {
            let _ = self.fwbpf().arg("unload").output();
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small linear congruential generator: the moments to kill at.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit.max(1)
    }
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

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("these tests need root");
    }
    if option_env!("FWBPF_OBJECT").is_none_or(str::is_empty) {
        return Some("fwbpf was built without its BPF programs: run `cargo xtask test`");
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("iproute2 is missing");
    }
    None
}
