//! Sets while they are in use: changed live, kept and replaced by loads, ended by time, and large.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fwbpf_tests::guide::{GuideLab, under_fwbpf};
use fwbpf_tests::lab::address::SERVER;
use fwbpf_tests::lab::sockets::{Reach, ip, reach, tcp_echo};
use fwbpf_tests::lab::{Fwbpf, fwbpf_binary};

const RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
     -A INPUT -p tcp -m set --match-set blocked src -j DROP\nCOMMIT\n";

/// The lab's server with the rules above.
struct Blocking<'g> {
    guide: &'g GuideLab,
    fwbpf: Fwbpf,
    rules: PathBuf,
}

impl<'g> Blocking<'g> {
    fn new(guide: &'g GuideLab, sets: &str) -> Result<Self> {
        tcp_echo(&guide.lab.server, 81)?;
        let binary = fwbpf_binary().context("there is no fwbpf binary")?;
        let fwbpf = Fwbpf::new(guide.lab.server.clone(), binary)?;
        let rules = fwbpf.write_policy("rules.v4", RULES)?;
        let blocking = Self {
            guide,
            fwbpf,
            rules,
        };
        blocking.load(Some(sets))?;
        Ok(blocking)
    }

    fn load(&self, sets: Option<&str>) -> Result<()> {
        let mut files = vec![self.rules.clone()];
        if let Some(sets) = sets {
            files.push(self.fwbpf.write_policy("sets.ipset", sets)?);
        }
        let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
        self.fwbpf.load_files(&files)
    }

    fn expect(&self, expected: Reach, when: &str) -> Result<()> {
        let got = reach(&self.guide.lab.outside, None, ip(SERVER[0]), 81)?;
        ensure!(got == expected, "{when} the port is {got:?}");
        Ok(())
    }

    /// Adds the sender for a while, which is over before it is asked on a machine that is slow enough: then for
    /// twice as long. Returns for how many seconds it was.
    fn block_for_a_while(&self) -> Result<u64> {
        let mut seconds = 1;
        loop {
            let added = Instant::now();
            let words = ["set", "add", "blocked", "198.51.100.1", "timeout"];
            let timeout = seconds.to_string();
            self.fwbpf
                .text(&[&words[..], &[timeout.as_str()]].concat())?;
            let got = reach(&self.guide.lab.outside, None, ip(SERVER[0]), 81)?;
            if got == Reach::Silent {
                return Ok(seconds);
            }
            let over = added.elapsed() >= Duration::from_secs(seconds);
            ensure!(
                over && seconds < 60,
                "while the element lives, it is {got:?}"
            );
            seconds *= 2;
        }
    }

    fn exit_code(&self, arguments: &[&str]) -> Result<Option<i32>> {
        Ok(self.fwbpf.output(arguments)?.status.code())
    }
}

#[test]
fn a_set_changes_without_a_load_and_loads_keep_or_replace_it() {
    under_fwbpf("sets_live", |guide| {
        let given = "create blocked hash:net timeout 0\nadd blocked 203.0.113.0/24\n";
        let blocking = Blocking::new(guide, given)?;
        blocking.expect(Reach::Open, "with nothing about the sender in the set")?;

        let add = ["set", "add", "blocked", "198.51.100.0/24"];
        blocking.fwbpf.text(&add)?;
        blocking.expect(Reach::Silent, "once the sender's network is in the set")?;
        let test = ["set", "test", "blocked", "198.51.100.1"];
        ensure!(blocking.exit_code(&test)? == Some(0));
        blocking
            .fwbpf
            .text(&["set", "add", "blocked", "198.51.100.1", "nomatch"])?;
        blocking.expect(Reach::Open, "once the sender is an exception")?;
        ensure!(
            blocking.exit_code(&test)? == Some(5),
            "an exception is in the set"
        );
        blocking
            .fwbpf
            .text(&["set", "del", "blocked", "198.51.100.1"])?;

        blocking.load(None)?;
        blocking.expect(Reach::Silent, "after a load that does not give the set")?;
        blocking.load(Some(given))?;
        blocking.expect(Reach::Open, "after a load that gives the set anew")?;

        let seconds = blocking.block_for_a_while()?;
        std::thread::sleep(Duration::from_millis(1000 * seconds + 100));
        blocking.expect(Reach::Open, "when its time is over")?;

        let listed = blocking.fwbpf.text(&["set", "list", "blocked"])?;
        ensure!(
            listed.ends_with("add blocked 203.0.113.0/24 timeout 0\n"),
            "it is listed as\n{listed}"
        );
        blocking.fwbpf.text(&["set", "flush"])?;
        let left = blocking.fwbpf.json(&["set", "list"])?;
        ensure!(
            left[0]["elements"].as_array().is_some_and(Vec::is_empty),
            "{left} is left"
        );
        ensure!(blocking.exit_code(&["set", "del", "blocked", "203.0.113.0/24"])? == Some(5));
        ensure!(blocking.exit_code(&["set", "add", "blocks", "203.0.113.0/24"])? == Some(2));
        ensure!(blocking.exit_code(&["set", "add", "blocked", "203.0.113.0/33"])? == Some(2));
        Ok(())
    });
}

#[test]
fn rules_that_ask_an_unknown_set_change_nothing() {
    under_fwbpf("sets_unknown", |guide| {
        let given = "create blocked hash:ip\nadd blocked 198.51.100.1\n";
        let blocking = Blocking::new(guide, given)?;
        let rules = RULES.replace("blocked", "blcked");
        let file = blocking.fwbpf.write_policy("wrong.v4", &rules)?;
        let refused = blocking.fwbpf.output(&["load", &file.to_string_lossy()])?;
        ensure!(
            refused.status.code() == Some(3),
            "it ended with {}",
            refused.status
        );
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(said.contains("there is no set `blcked`"), "it said\n{said}");
        blocking.expect(Reach::Silent, "after a load that was refused")
    });
}

#[test]
fn a_million_elements_are_loaded_and_asked() {
    const COUNT: u32 = 1_000_000;
    under_fwbpf("sets_million", |guide| {
        let mut sets =
            format!("create blocked hash:ip maxelem {COUNT}\nadd blocked 198.51.100.1\n");
        for number in 0..COUNT - 1 {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number);
            writeln!(sets, "add blocked {address}")?;
        }
        let begun = Instant::now();
        let blocking = Blocking::new(guide, &sets)?;
        eprintln!(
            "a million elements were in force after {:?}",
            begun.elapsed()
        );
        blocking.expect(Reach::Silent, "with the sender among a million")?;
        blocking
            .fwbpf
            .text(&["set", "del", "blocked", "198.51.100.1"])?;
        blocking.expect(Reach::Open, "with the sender deleted from a million")?;
        let last = std::net::Ipv4Addr::from_bits(0x0a00_0000 + COUNT - 2).to_string();
        ensure!(blocking.exit_code(&["set", "test", "blocked", &last])? == Some(0));
        Ok(())
    });
}
