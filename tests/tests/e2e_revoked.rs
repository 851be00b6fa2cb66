//! `load --drop-revoked`: connections that a policy would not let begin are cut, others live on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER1, CONTAINER2, INTERNET, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{
    PATIENCE, SILENCE, connect, ip, listen, round_trip, tcp_echo, wait_up_to,
};
use fwbpf_tests::lab::{Firewall as _, Fwbpf, Namespace};
use serde_json::Value;

/// SSH and HTTP for the server, HTTP of the first container published as 8080, and all that the
/// containers ask for.
const BEFORE: &str = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n\
    -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A INPUT -p ICMP -j ACCEPT\n\
    -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
    -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n\
    -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i docker0 -s CONTAINER1 -j ACCEPT\n\
    -A FORWARD -i docker0 -s CONTAINER2 -j ACCEPT\n\
    -A FORWARD -i eth0 -p tcp -m tcp --dport 80 -m conntrack --ctstate DNAT -j ACCEPT\nCOMMIT\n\
    *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
    -A PREROUTING -i eth0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination TO:80\n\
    -A PREROUTING -i eth0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination TO:80\n\
    -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";

const SSH: &str = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";

/// The rules for one IP version, without the lines that hold one of these words.
fn rules(version: usize, without: &[&str]) -> String {
    let to = match version {
        0 => CONTAINER1[0].to_owned(),
        _ => format!("[{}]", CONTAINER1[1]),
    };
    let lines = BEFORE.lines();
    let lines = lines.filter(|line| !without.iter().any(|word| line.contains(word)));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    text.replace("CONTAINER1", CONTAINER1[version])
        .replace("CONTAINER2", CONTAINER2[version])
        .replace("TO:", &format!("{to}:"))
        .replace("ICMP", ["icmp", "ipv6-icmp"][version])
}

fn load(fwbpf: &Fwbpf, options: &[&str], without: &[&str]) -> Result<Value> {
    let files = [
        fwbpf.write_policy("rules.v4", &rules(0, without))?,
        fwbpf.write_policy("rules.v6", &rules(1, without))?,
    ];
    let paths = files.iter().filter_map(|path| path.to_str());
    let words: Vec<&str> = ["load"]
        .into_iter()
        .chain(options.iter().copied())
        .chain(paths)
        .collect();
    fwbpf.json(&words)
}

/// A connection whose both ends are in hand.
struct Talk {
    near: TcpStream,
    far: TcpStream,
}

impl Talk {
    fn begin(from: &Namespace, to: SocketAddr, (at, port): (&Namespace, u16)) -> Result<Self> {
        let listener = listen(at, port)?;
        let near = connect(from, None, to, PATIENCE).context("the connection")?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        let mut talk = Self { near, far };
        talk.goes_on()?;
        Ok(talk)
    }

    fn goes_on(&mut self) -> Result<()> {
        for back in [false, true] {
            let (from, to) = match back {
                true => (&mut self.far, &mut self.near),
                false => (&mut self.near, &mut self.far),
            };
            from.write_all(b"text")?;
            let mut got = [0; 4];
            to.read_exact(&mut got).context("it does not go on")?;
            ensure!(got == *b"text");
        }
        Ok(())
    }

    /// Nothing of what its opener says arrives any more, whoever speaks first, and however often it is
    /// repeated.
    fn is_cut(&mut self) -> Result<()> {
        self.far.set_read_timeout(Some(SILENCE))?;
        for _ in 0..3 {
            self.far.write_all(b"back")?;
            self.near.write_all(b"text")?;
            ensure!(self.far.read(&mut [0; 4]).is_err(), "it was not cut");
        }
        Ok(())
    }
}

fn at(addresses: [&str; 2], version: usize, port: u16) -> SocketAddr {
    SocketAddr::new(ip(addresses[version]), port)
}

fn flows(fwbpf: &Fwbpf, filter: &[&str]) -> Result<usize> {
    let words: Vec<&str> = ["flows", "--proto", "tcp"]
        .iter()
        .chain(filter)
        .copied()
        .collect();
    let flows = fwbpf.json(&words)?;
    Ok(flows.as_array().context("no list")?.len())
}

#[test]
fn connections_that_a_policy_revokes_are_cut() {
    with_fwbpf("drop_revoked", &[], |lab, fwbpf| {
        load(fwbpf, &[], &[])?;
        for version in 0..2 {
            let inward = |port| at(SERVER, version, port);
            let outward = |port| at(INTERNET, version, port);
            let mut ssh = Talk::begin(&lab.outside, inward(22), (&lab.server, 22))?;
            let mut http = Talk::begin(&lab.outside, inward(80), (&lab.server, 80))?;
            let inner = (&*lab.container1, 80);
            let mut published = Talk::begin(&lab.outside, inward(8080), inner)?;
            let mut other = Talk::begin(&lab.outside, inward(8081), inner)?;
            let mut first = Talk::begin(&lab.container1, outward(5000), (&lab.outside, 5000))?;
            let mut second = Talk::begin(&lab.container2, outward(5001), (&lab.outside, 5001))?;
            let mut own = Talk::begin(&lab.server, outward(5002), (&lab.outside, 5002))?;

            let without = ["--dport 22", "8080", "CONTAINER2"];
            // Rules that are gone cut nothing by themselves,
            load(fwbpf, &[], &without)?;
            for talk in [&mut ssh, &mut published, &mut second] {
                talk.goes_on()?;
            }
            ensure!(flows(fwbpf, &["--dport", "22"])? == 1);
            // only where that is asked for.
            let outcome = load(fwbpf, &["--drop-revoked"], &without)?;
            ensure!(outcome["revoked"]["cut"] == 3, "{outcome}");
            ensure!(outcome["revoked"]["undecided"] == 0, "{outcome}");
            ensure!(flows(fwbpf, &["--dport", "22"])? == 0, "it is still shown");
            ensure!(flows(fwbpf, &["--dport", "8080"])? == 0);
            ensure!(flows(fwbpf, &["--dport", "5001"])? == 0);
            let family = [Family::Ipv4, Family::Ipv6][version];
            let established = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
            let before = count(&fwbpf.save(family)?, established)?;
            for talk in [&mut ssh, &mut published, &mut second] {
                talk.is_cut()?;
            }
            let after = count(&fwbpf.save(family)?, established)?;
            ensure!(before == after, "{before:?}, then {after:?}");
            // Nothing that they said since was taken for a new one.
            ensure!(flows(fwbpf, &["--sport", "22"])? == 0);
            ensure!(flows(fwbpf, &["--address", CONTAINER2[version]])? == 0);
            for talk in [&mut http, &mut other, &mut first, &mut own] {
                talk.goes_on().context("one that may begin")?;
            }
            // A new one may begin once the policy lets it.
            load(fwbpf, &[], &[])?;
            ssh.is_cut()?;
            Talk::begin(&lab.outside, inward(22), (&lab.server, 22))?;
            fwbpf.text(&["flows", "--flush"])?;
        }
        Ok(())
    });
}

#[test]
fn what_cannot_be_known_is_kept_and_counted() {
    with_fwbpf("drop_undecided", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 22)?;
        load(fwbpf, &[], &[])?;
        let mut ssh = connect(&lab.outside, None, at(SERVER, 0, 22), PATIENCE)?;
        round_trip(&mut ssh, b"before")?;
        let limited = "-A INPUT -p tcp -m tcp --dport 22 -m limit --limit 1/min -j ACCEPT";
        let text = rules(0, &[]).replace(SSH, limited);
        let file = fwbpf.write_policy("limited.v4", &text)?;
        let path = file.to_str().context("a path")?;
        let said = fwbpf.text(&["load", "--drop-revoked", "--ipv4", path])?;
        ensure!(said.contains("0 connections were cut"), "{said}");
        ensure!(said.contains("1 connections were kept"), "{said}");
        round_trip(&mut ssh, b"after")
    });
}

/// Who is locked out by a policy on trial gets his connection back with the policy before.
#[test]
fn a_trial_that_ends_gives_connections_back() {
    with_fwbpf("drop_revoked_trial", &[], |lab, fwbpf| {
        load(fwbpf, &[], &[])?;
        let mut ssh = Talk::begin(&lab.outside, at(SERVER, 0, 22), (&lab.server, 22))?;
        let mut http = Talk::begin(&lab.outside, at(SERVER, 0, 80), (&lab.server, 80))?;
        // One that was cut for good.
        let outcome = load(fwbpf, &["--drop-revoked"], &["--dport 80 -j"])?;
        ensure!(outcome["revoked"]["cut"] == 1, "{outcome}");
        let outcome = load(fwbpf, &["--drop-revoked", "--trial", "4"], &["--dport 22"])?;
        ensure!(outcome["revoked"]["cut"] == 1, "{outcome}");
        ssh.near.write_all(b"lost")?;
        ssh.far.set_read_timeout(Some(SILENCE))?;
        ensure!(ssh.far.read(&mut [0; 4]).is_err(), "it was not cut");
        wait_up_to(Duration::from_secs(20), "the trial to end", || {
            Ok(fwbpf.json(&["status"])?["trial"].is_null())
        })?;
        ssh.far.set_read_timeout(Some(PATIENCE))?;
        let mut got = [0; 4];
        ssh.far
            .read_exact(&mut got)
            .context("what was said meanwhile")?;
        ensure!(got == *b"lost");
        ssh.goes_on()?;
        http.is_cut()
    });
}
