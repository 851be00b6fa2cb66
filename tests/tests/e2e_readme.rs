//! README's way from iptables to fwbpf and back, its commands as they stand there, on a server of
//! the lab: with an /etc, a /root and a systemctl of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{
    PATIENCE, Reach, connect, ip, reach, round_trip, tcp_echo, wait_for,
};
use fwbpf_tests::lab::{Peers, ServerLab, fwbpf_binary, ready, run, scrape};

const README: &str = include_str!("../../README.md");

/// What the server has before: its own rules with Docker's among them.
const BEFORE_V4: &str = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    :DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n\
    -A INPUT -i lo -j ACCEPT\n\
    -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
    -A FORWARD -j DOCKER-USER\n\
    -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -o docker0 -j DOCKER\n\
    -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
    -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT\n\
    -A DOCKER-USER -j RETURN\n\
    COMMIT\n\
    *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
    :DOCKER - [0:0]\n\
    -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
    -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n\
    COMMIT\n";

const BEFORE_V6: &str = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A INPUT -i lo -j ACCEPT\n\
    -A INPUT -p ipv6-icmp -j ACCEPT\n\
    -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
    COMMIT\n";

#[test]
fn from_iptables_to_fwbpf_and_back() {
    let programs = ["unshare", "iptables", "ip6tables", "bash"];
    if !ready("readme", &programs, true) {
        return;
    }
    if let Err(error) = there_and_back() {
        panic!("{error:#}");
    }
}

fn there_and_back() -> Result<()> {
    let guide = Guide::read()?;
    let lab = ServerLab::new("readme", Peers::Real)?;
    let server = Server::start(&lab)?;
    server.write("/root/v4", BEFORE_V4)?;
    server.write("/root/v6", BEFORE_V6)?;
    server.bash("iptables-restore < /root/v4; ip6tables-restore < /root/v6")?;
    let before = server.rules()?;
    for port in [22, 81] {
        tcp_echo(&lab.server, port)?;
    }
    tcp_echo(&lab.outside, 8080)?;

    let [keep, check, load, remove, look, last, back] = &guide.commands[..] else {
        bail!("README has other blocks of commands: {:#?}", guide.commands);
    };
    server.bash(keep)?;
    server.edit("/etc/fwbpf/rules.v4", |rules| {
        without_docker(rules, &guide.rules)
    })?;
    server.bash(check)?;
    server.bash(load)?;
    filtered(&lab).context("beside iptables")?;
    server.bash("mkdir /etc/docker")?;
    server.write("/etc/docker/daemon.json", &guide.json)?;
    server.bash(remove)?;
    ensure!(
        !server.rules()?.contains("-A ") && !server.rules()?.contains("DROP"),
        "rules are left: {}",
        server.rules()?
    );
    filtered(&lab).context("without iptables")?;
    masqueraded(&lab)?;
    let said = server.bash(look)?;
    for part in ["eth0", "--dport 22", "ESTABLISHED", "rules.v4:"] {
        ensure!(said.contains(part), "no {part} in\n{said}");
    }
    server.bash(last)?;
    wait_for("the metrics", || {
        Ok(scrape(&lab.server, "127.0.0.1:9469").is_ok())
    })?;
    server.bash("systemctl reload fwbpf.service")?;
    filtered(&lab).context("as services")?;

    server.bash(back)?;
    ensure!(
        server.rules()? == before,
        "not as before:\n{}",
        server.rules()?
    );
    let status = server.bash("fwbpf status || echo code $?")?;
    ensure!(status == "code 4\n", "fwbpf is still there:\n{status}");
    ensure!(
        scrape(&lab.server, "127.0.0.1:9469").is_err(),
        "the daemon is"
    );
    Ok(())
}

/// The block of policy.toml, of daemon.json and of the drop-in, as the product itself sees them.
#[test]
fn files_that_the_guide_shows_are_right() {
    let guide = Guide::read().expect("README has the guide");
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let example = include_str!("../../examples/docker-daemon.json");
    assert_eq!(value(&guide.json), value(example));
}

/// 22 is open and 81 is not, in both IP versions.
fn filtered(lab: &ServerLab) -> Result<()> {
    for address in SERVER {
        for (port, expected) in [(22, Reach::Open), (81, Reach::Silent)] {
            let got = reach(&lab.outside, None, ip(address), port)?;
            ensure!(got == expected, "{address} port {port}: {got:?}");
        }
    }
    Ok(())
}

fn masqueraded(lab: &ServerLab) -> Result<()> {
    let to = std::net::SocketAddr::new(ip(INTERNET[0]), 8080);
    let from = std::net::SocketAddr::new(ip(CONTAINER1[0]), 0);
    let mut stream = connect(&lab.container1, Some(from), to, PATIENCE)?;
    round_trip(&mut stream, b"out and back")
}

/// What step 2 tells to do by hand.
fn without_docker(rules: &str, instead: &str) -> String {
    let mut additions = std::collections::HashMap::new();
    let mut table = "";
    for line in instead.lines() {
        if line.starts_with('*') {
            table = line;
        } else {
            let lines: &mut String = additions.entry(table.to_owned()).or_default();
            *lines += line;
            lines.push('\n');
        }
    }
    let mut text = String::new();
    let mut table = "";
    for line in rules.lines() {
        if line.contains("DOCKER") || line.contains("docker0") || line.contains("DNAT") {
            continue;
        }
        if line.starts_with('*') {
            table = line;
        }
        if line == "COMMIT" {
            text += additions.get(table).map_or("", String::as_str);
        }
        text += line;
        text.push('\n');
    }
    text
}

/// What README's guide has between its sentences.
struct Guide {
    /// The blocks of commands, in order.
    commands: Vec<String>,
    /// The rules that stand for Docker's.
    rules: String,
    /// /etc/docker/daemon.json.
    json: String,
}

impl Guide {
    fn read() -> Result<Self> {
        let start = README
            .find("## From iptables and Docker")
            .context("the guide")?;
        let guide = README[start..].split("\n## ").next().unwrap_or_default();
        let (mut commands, mut rules, mut json) = (Vec::new(), None, None);
        for block in guide.split("\n```").skip(1).step_by(2) {
            let (language, text) = block.split_once('\n').context("a block")?;
            match language {
                "" if text.starts_with('*') => rules = Some(text.to_owned()),
                "" => commands.push(text.to_owned()),
                "json" => json = Some(text.to_owned()),
                _ => {}
            }
        }
        Ok(Self {
            commands,
            rules: rules.context("the rules")?,
            json: json.context("daemon.json")?,
        })
    }
}

/// The lab's server with files of its own: a process holds its mount namespace.
struct Server {
    process: Child,
    /// The firewall's pins.
    state: std::path::PathBuf,
    files: tempfile::TempDir,
}

/// Starts and ends what units start, as far as README's need it: no dependencies, no waiting.
const SYSTEMCTL: &str = r#"#!/bin/bash
command=$1; shift
unit=/etc/systemd/system
for name in "$@"; do
    [[ $name == --now || ! -e $unit/$name ]] && continue
    start=$(sed -n 's/^ExecStart=//p' "$unit/$name")
    case $command in
        enable)
            systemd-analyze verify "$unit/$name" || exit 1
            if grep -q '^Type=oneshot' "$unit/$name"; then $start || exit 1
            else setsid $start </dev/null >/dev/null 2>&1 & echo $! > "/run/unit/$name"; fi ;;
        reload) $(sed -n 's/^ExecReload=//p' "$unit/$name") || exit 1 ;;
        disable)
            if [[ -e /run/unit/$name ]]; then
                pid=$(< "/run/unit/$name"); kill "$pid"
                while [[ -e /proc/$pid ]]; do sleep 0.05; done
                rm "/run/unit/$name"
            fi ;;
    esac
done
"#;

/// The machine itself is the other end.
const SSH: &str = "#!/bin/bash\nshift\nexec \"$@\"\n";

impl Server {
    fn start(lab: &ServerLab) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let place = files.path().display();
        let binary = fwbpf_binary().context("the binary")?;
        let script = format!(
            "set -e
            cd {place}
            mkdir root sbin
            cp -a /etc etc
            rm -rf etc/fwbpf etc/docker
            install -m 755 {} sbin/fwbpf
            command -v systemd-analyze >/dev/null || ln -s /bin/true bin/systemd-analyze
            mount --make-rprivate /
            mount --bind root /root
            mount --bind etc /etc
            mount --bind sbin /usr/local/sbin
            mount -t tmpfs tmpfs /run
            mkdir /run/unit
            touch ready
            exec sleep infinity",
            binary.display()
        );
        fs::create_dir(files.path().join("bin"))?;
        for (name, script) in [("systemctl", SYSTEMCTL), ("ssh", SSH)] {
            let program = files.path().join("bin").join(name);
            fs::write(&program, script)?;
            run(Command::new("chmod").arg("755").arg(&program))?;
        }
        let process = lab
            .server
            .command("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()?;
        let state = Path::new("/sys/fs/bpf").join(lab.server.name());
        let server = Self {
            process,
            state,
            files,
        };
        wait_for("the server's files", || {
            Ok(server.files.path().join("ready").exists())
        })?;
        Ok(server)
    }

    /// Runs commands as root types them in the repository's folder.
    fn bash(&self, commands: &str) -> Result<String> {
        let state = format!("FWBPF_STATE_DIR={}", self.state.display());
        let path = format!(
            "PATH={}/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.files.path().display()
        );
        run(Command::new("nsenter")
            .args([
                "--target",
                &self.process.id().to_string(),
                "--mount",
                "--net",
                "--",
            ])
            .args(["env", &state, &path, "bash", "-euo", "pipefail", "-c"])
            .arg(format!("cd {}/..\n{commands}", env!("CARGO_MANIFEST_DIR"))))
        .with_context(|| format!("the commands\n{commands}"))
    }

    /// The kernel's rules, without what differs from one moment to the next.
    fn rules(&self) -> Result<String> {
        let saved = self.bash("iptables-save; ip6tables-save")?;
        let lines = saved.lines().filter(|line| !line.starts_with('#'));
        Ok(lines
            .map(|line| format!("{}\n", line.split(" [").next().unwrap_or_default()))
            .collect())
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.path(path), text)?)
    }

    fn edit(&self, path: &str, change: impl FnOnce(&str) -> String) -> Result<()> {
        let text = fs::read_to_string(self.path(path))?;
        self.write(path, &change(&text))
    }

    /// A file of the server's /etc or /root, from outside.
    fn path(&self, path: &str) -> std::path::PathBuf {
        self.files.path().join(path.trim_start_matches('/'))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whatever the test came to: no service stays, and with the holder its mounts go.
        let _ = self.bash("systemctl disable --now fwbpf-daemon.service");
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
