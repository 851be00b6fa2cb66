//! A real Docker engine beside fwbpf, as its users run it: with `--iptables=false`, inside the
//! server's namespace, its containers reaching the outside through fwbpf's masquerade.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{Kind, RULES_V4};
use fwbpf_tests::lab::address::{INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{PATIENCE, Reach, connect, ip, listen, reach};
use fwbpf_tests::lab::{
    Firewall, Fwbpf, Iptables, Namespace, Peers, ServerLab, fwbpf_binary, ready, run,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the engine may take to start or to end.
const ENGINE_PATIENCE: Duration = Duration::from_secs(40);

/// An engine of Docker with all its state in a directory of its own. Dropping it ends it.
struct Engine {
    process: Child,
    directory: tempfile::TempDir,
}

impl Engine {
    fn start(server: &Namespace) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let log = fs::File::create(path("log"))?;
        let process = server
            .command("dockerd")
            .args(["--iptables=false", "--ip6tables=false"])
            .args(["-H", &format!("unix://{}", path("socket").display())])
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("-p")
            .arg(path("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let mut engine = Self { process, directory };
        let deadline = Instant::now() + ENGINE_PATIENCE;
        while engine.docker(&["info"]).is_err() {
            let ended = engine.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(engine.path("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                bail!(
                    "dockerd does not start ({ended:?}); the end of its log, last line first:\n{}",
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn docker(&self, arguments: &[&str]) -> Result<String> {
        let socket = format!("unix://{}", self.path("socket").display());
        run(Command::new("docker").args(["-H", &socket]).args(arguments))
    }

    /// An image of busybox alone, made here: no registry is asked.
    fn import_busybox(&self) -> Result<()> {
        let root = self.path("image");
        fs::create_dir_all(root.join("bin"))?;
        fs::copy(busybox()?, root.join("bin/busybox"))?;
        let tar = self.path("image.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&tar)
            .arg("."))?;
        let tar = tar.display().to_string();
        self.docker(&["import", &tar, "busybox"]).map(drop)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Ok(ids) = self.docker(&["ps", "-aq"]) {
            for id in ids.split_whitespace() {
                let _ = self.docker(&["rm", "-f", id]);
            }
        }
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + ENGINE_PATIENCE;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("dockerd does not end by SIGTERM");
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        unmount_below(self.directory.path());
    }
}

#[test]
fn containers_of_a_real_engine_under_iptables() {
    under("dockerd-iptables", Kind::Iptables);
}

#[test]
fn containers_of_a_real_engine_under_fwbpf() {
    under("dockerd-fwbpf", Kind::Fwbpf);
}

fn under(test: &str, kind: Kind) {
    let mut programs = vec!["dockerd", "docker", "docker-proxy", "tar", "busybox"];
    if kind == Kind::Iptables {
        programs.extend(["iptables-legacy-restore", "conntrack"]);
    }
    if !ready(test, &programs, kind == Kind::Fwbpf) {
        return;
    }
    if let Err(error) = try_engine(test, kind) {
        panic!("{test}: {error:#}");
    }
}

fn try_engine(test: &str, kind: Kind) -> Result<()> {
    let lab = ServerLab::without_bridge(test, Peers::Real)?;
    let firewall: Box<dyn Firewall> = match kind {
        Kind::Iptables => Box::new(Iptables::new(lab.server.clone())),
        Kind::Fwbpf => {
            let binary = fwbpf_binary().context("there is no fwbpf binary")?;
            Box::new(Fwbpf::new(lab.server.clone(), binary)?)
        }
    };
    let engine = match Engine::start(&lab.server) {
        Ok(engine) => engine,
        Err(error) if std::env::var("CI").as_deref() != Ok("true") => {
            eprintln!("SKIPPED {test}: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    engine.import_busybox()?;
    let guide = guide_rules(kind);
    firewall.load(&[(Family::Ipv4, &guide)])?;
    goes_out_masqueraded(&lab, &engine)?;
    is_reached_only_when_input_allows(&lab, &engine, firewall.as_ref(), &guide)?;
    restarts_without_touching_rules(&engine, firewall.as_ref())
}

/// `docker run` talks to a host outside, which sees the server's address.
fn goes_out_masqueraded(lab: &ServerLab, engine: &Engine) -> Result<()> {
    let listener = listen(&lab.outside, 8080)?;
    let answer = std::thread::spawn(move || -> Result<std::net::IpAddr> {
        use std::io::Write;
        let (mut stream, from) = listener.accept()?;
        stream.write_all(b"hello from outside\n")?;
        Ok(from.ip().to_canonical())
    });
    let said = engine.docker(&[
        "run",
        "--rm",
        "busybox",
        "/bin/busybox",
        "nc",
        "-w",
        "5",
        INTERNET[0],
        "8080",
    ])?;
    ensure!(
        said == "hello from outside\n",
        "the container heard {said:?}"
    );
    let seen = answer.join().expect("the outside host answers")?;
    ensure!(seen == ip(SERVER[0]), "the container was seen as {seen}");
    Ok(())
}

/// docker-proxy listens at the server, so a published port is a matter of INPUT.
fn is_reached_only_when_input_allows(
    lab: &ServerLab,
    engine: &Engine,
    firewall: &dyn Firewall,
    guide: &str,
) -> Result<()> {
    engine.docker(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8081:80",
        "busybox",
        "/bin/busybox",
        "nc",
        "-ll",
        "-p",
        "80",
        "-e",
        "/bin/busybox",
        "cat",
    ])?;
    let server = ip(SERVER[0]);
    wait_for_service(&lab.server, server)?;
    let got = reach(&lab.outside, None, server, 8081)?;
    ensure!(
        got == Reach::Silent,
        "the published port is {got:?} though INPUT drops it"
    );
    let allowed = guide.replace(
        "-A INPUT -j DROP",
        "-A INPUT -p tcp -m tcp --dport 8081 -j ACCEPT\n-A INPUT -j DROP",
    );
    ensure!(allowed != guide);
    firewall.load(&[(Family::Ipv4, &allowed)])?;
    let got = reach(&lab.outside, None, server, 8081)?;
    ensure!(
        got == Reach::Open,
        "the published port is {got:?} though INPUT accepts it"
    );
    Ok(())
}

fn restarts_without_touching_rules(engine: &Engine, firewall: &dyn Firewall) -> Result<()> {
    let rules = |text: String| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split_once("] "))
            .map(|(_, rule)| rule.to_string())
            .collect()
    };
    let before = rules(firewall.save(Family::Ipv4)?);
    ensure!(!before.is_empty());
    engine.docker(&["restart", "-t", "0", "web"])?;
    let after = rules(firewall.save(Family::Ipv4)?);
    ensure!(before == after, "a restart changed the rules to {after:?}");
    Ok(())
}

/// The container's program listens a moment after `docker run -d` returns; from the server itself
/// the published port is always open, over lo.
fn wait_for_service(server: &Namespace, address: std::net::IpAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !matches!(reach(server, None, address, 8081), Ok(Reach::Open)) {
        ensure!(
            Instant::now() < deadline,
            "the container's service does not start"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    connect(server, None, SocketAddr::new(address, 8081), PATIENCE)?;
    Ok(())
}

fn guide_rules(kind: Kind) -> String {
    match kind {
        Kind::Iptables => fwbpf_tests::guide::corrected(RULES_V4),
        Kind::Fwbpf => RULES_V4.to_string(),
    }
}

fn busybox() -> Result<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .context("find busybox")
}

/// An engine that was killed leaves mounts, which would keep the directory from being removed.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(directory))
        .collect();
    below.reverse();
    for path in below {
        let _ = nix::mount::umount(path);
    }
}
