//! A namespace of its own for each test, and what they do and see in it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{LpmTrie, Map, MapData};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use serde_json::Value;

/// A namespace with `lo` and `eth0`, a state directory, and a directory for files.
pub struct Lab {
    name: String,
    pub state: PathBuf,
    pub directory: PathBuf,
}

impl Lab {
    pub fn new(name: &str) -> Self {
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

    pub fn ip(&self, arguments: &str) {
        must(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(arguments.split(' ')),
        );
    }

    /// Rules that accept these TCP ports, and one for an interface that does not exist.
    pub fn policy(&self, name: &str, ports: &[u16]) -> PathBuf {
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

    pub fn fwbpf(&self) -> Command {
        self.fwbpf_in(&self.state)
    }

    pub fn fwbpf_in(&self, state: &Path) -> Command {
        // Not `ip netns exec`, which mounts another /sys, without the bpffs.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(env!("CARGO_BIN_EXE_fwbpf"))
            .arg("--state-dir")
            .arg(state);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.fwbpf().args(arguments).output().unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.fwbpf().arg("--json").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "fwbpf {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The rules in force, without their counters.
    pub fn shown(&self) -> String {
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

    pub fn killed_load(&self, policy: &Path, after_ms: u64) {
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

    /// Runs fwbpf, which dies when one of its threads comes to its n-th call of this name (from 1), before
    /// the call is made; whether it came so far.
    pub fn dies_at(&self, call: &str, n: u32, arguments: &[&str]) -> bool {
        let fwbpf = self.fwbpf();
        let mut words = fwbpf.get_args();
        let mut command = Command::new(fwbpf.get_program());
        command.arg(words.next().unwrap());
        let output = command
            .args(["strace", "--follow-forks", "--output=/dev/null"])
            .arg(format!("--trace={call}"))
            .arg(format!("--inject={call}:signal=KILL:when={n}"))
            .args(words)
            .args(arguments)
            .output()
            .unwrap();
        if !output.status.success() {
            // strace ends as what it runs does.
            assert_eq!(output.status.signal(), Some(9), "{call} {n}: {output:?}");
        }
        !output.status.success()
    }

    /// The filters and the qdisc at eth0, as `tc` shows them.
    pub fn clsact(&self) -> String {
        let show = |arguments: &str| {
            let mut tc = Command::new("tc");
            tc.args(["-n", &self.name]).args(arguments.split(' '));
            String::from_utf8(tc.output().unwrap().stdout).unwrap()
        };
        let qdiscs = show("qdisc show dev eth0");
        let own = qdiscs.lines().filter(|line| line.contains("clsact"));
        let filters = ["ingress", "egress"].map(|way| show(&format!("filter show dev eth0 {way}")));
        own.map(str::to_owned).chain(filters).collect()
    }

    /// Programs at tcx ingress and egress.
    pub fn tcx_programs(&self, interface: &str) -> [usize; 2] {
        self.inside(|| {
            [TcAttachType::Ingress, TcAttachType::Egress].map(|direction| {
                SchedClassifier::query_tcx(interface, direction).map_or(0, |(_, p)| p.len())
            })
        })
    }

    pub fn program_ids(&self) -> Vec<u32> {
        ["ingress", "egress", "xdp", "sweep"]
            .iter()
            .map(|name| {
                ProgramInfo::from_pin(self.state.join(format!("prog_fwbpf_{name}")))
                    .unwrap()
                    .id()
            })
            .collect()
    }

    pub fn is_local(&self, address: [u8; 4]) -> bool {
        let map = MapData::from_pin(self.state.join("LOCAL")).unwrap();
        let map: LpmTrie<_, [u8; 16], u32> =
            Map::from_map_data(map).and_then(TryInto::try_into).unwrap();
        map.keys().any(|key| {
            let key = key.unwrap();
            key.prefix_len() == 128 && key.data()[10..] == [[0xff; 2].as_slice(), &address].concat()
        })
    }

    pub fn daemon(&self, metrics: &str) -> Daemon {
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

    pub fn get(&self, address: &str, path: &str) -> String {
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
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
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

    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
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

/// A daemon, which ends with this.
pub struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What these tests need and the machine does not have.
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("these tests need root");
    }
    if option_env!("FWBPF_OBJECT").is_none_or(str::is_empty) {
        return Some("fwbpf was built without its BPF programs: run `cargo xtask test`");
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("iproute2 is missing");
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return Some("strace is missing");
    }
    None
}
