//! A policy on trial: who locks himself out gets back in.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{MASQUERADE_V6, RULES_V4, RULES_V6, with_fwbpf};
use fwbpf_tests::lab::address::SERVER;
use fwbpf_tests::lab::saved::{count, rules_only};
use fwbpf_tests::lab::sockets::{Reach, ip, reach, tcp_echo, wait_up_to};
use fwbpf_tests::lab::{Firewall as _, Fwbpf, ServerLab};

const SSH: &str = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";

/// The guide's rules without the one that lets SSH in.
fn locked() -> String {
    RULES_V4.replace(SSH, "")
}

fn load(fwbpf: &Fwbpf, options: &[&str], v4: &str) -> Result<String> {
    let v6 = format!("{RULES_V6}{MASQUERADE_V6}");
    fwbpf.load_with(options, &[(Family::Ipv4, v4), (Family::Ipv6, &v6)])
}

fn save(fwbpf: &Fwbpf) -> Result<String> {
    Ok(rules_only(
        &(fwbpf.save(Family::Ipv4)? + &fwbpf.save(Family::Ipv6)?),
    ))
}

fn ssh(lab: &ServerLab) -> Result<Reach> {
    reach(&lab.outside, None, ip(SERVER[0]), 22)
}

/// Seconds that are left, and whether somebody watches.
fn trial(fwbpf: &Fwbpf) -> Result<Option<(u64, bool)>> {
    let status = fwbpf.json(&["status"])?;
    let trial = &status["trial"];
    Ok((!trial.is_null()).then(|| {
        let left = trial["seconds_left"].as_u64().unwrap_or(u64::MAX);
        (left, trial["guarded"].as_bool() == Some(true))
    }))
}

/// A trial that lasts for as long as a few commands take, in seconds: three, or more on a slow machine.
fn short(fwbpf: &Fwbpf) -> Result<u64> {
    let started = Instant::now();
    fwbpf.output(&["status"])?;
    Ok(3 + (20 * started.elapsed()).as_secs())
}

fn over(fwbpf: &Fwbpf) -> Result<()> {
    wait_up_to(Duration::from_secs(120), "the trial to end", || {
        Ok(trial(fwbpf)?.is_none())
    })
}

#[test]
fn without_confirmation_the_policy_before_comes_back() {
    with_fwbpf("trial_reverts", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 22)?;
        load(fwbpf, &[], RULES_V4)?;
        ensure!(ssh(lab)? == Reach::Open);
        let (before, counted) = (save(fwbpf)?, count(&fwbpf.save(Family::Ipv4)?, SSH)?);
        ensure!(counted.0 > 0, "the rule has counted nothing");

        let seconds = short(fwbpf)?;
        load(fwbpf, &["--trial", &seconds.to_string()], &locked())?;
        let (left, guarded) = trial(fwbpf)?.unwrap_or_default();
        ensure!((1..=seconds).contains(&left) && guarded, "{left} {guarded}");
        ensure!(ssh(lab)? == Reach::Silent, "it is not in force on trial");
        over(fwbpf)?;
        ensure!(save(fwbpf)? == before, "other rules came back");
        // The rule went and came back, and goes on from where it was.
        let after = count(&fwbpf.save(Family::Ipv4)?, SSH)?;
        ensure!(after == counted, "{after:?}, not {counted:?}");
        ensure!(ssh(lab)? == Reach::Open, "nobody gets back in");
        Ok(())
    });
}

#[test]
fn a_confirmed_policy_stays() {
    with_fwbpf("trial_confirmed", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 22)?;
        load(fwbpf, &[], RULES_V4)?;
        let seconds = short(fwbpf)?;
        load(fwbpf, &["--trial", &seconds.to_string()], &locked())?;
        let on_trial = save(fwbpf)?;
        fwbpf.text(&["confirm"])?;
        ensure!(trial(fwbpf)?.is_none());
        let again = fwbpf.output(&["confirm"])?;
        ensure!(again.status.code() == Some(2), "{again:?}");
        // What is waited for is that nothing happens.
        std::thread::sleep(Duration::from_secs(seconds + 1));
        ensure!(save(fwbpf)? == on_trial, "it did not stay");
        ensure!(ssh(lab)? == Reach::Silent);
        Ok(())
    });
}

#[test]
fn a_first_policy_on_trial_leaves_nothing() {
    with_fwbpf("trial_first", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 22)?;
        let seconds = short(fwbpf)?;
        load(fwbpf, &["--trial", &seconds.to_string()], &locked())?;
        ensure!(ssh(lab)? == Reach::Silent);
        wait_up_to(Duration::from_secs(120), "the firewall to go", || {
            Ok(fwbpf.output(&["status"])?.status.code() == Some(4))
        })?;
        ensure!(ssh(lab)? == Reach::Open);
        ensure!(!fwbpf.state_dir().exists(), "pins are left");
        Ok(())
    });
}

#[test]
fn reverting_does_not_wait() {
    with_fwbpf("trial_revert", &[], |_, fwbpf| {
        load(fwbpf, &[], RULES_V4)?;
        let before = save(fwbpf)?;
        load(fwbpf, &["--trial", "600"], &locked())?;
        let started = Instant::now();
        fwbpf.text(&["confirm", "--revert"])?;
        ensure!(started.elapsed() < Duration::from_secs(60), "it waited");
        ensure!(save(fwbpf)? == before);
        ensure!(trial(fwbpf)?.is_none());
        Ok(())
    });
}

#[test]
fn trials_on_trials_go_back_to_what_was_kept() {
    with_fwbpf("trial_twice", &[], |_, fwbpf| {
        load(fwbpf, &[], RULES_V4)?;
        let before = save(fwbpf)?;
        load(fwbpf, &["--trial", "600"], &locked())?;
        let first = save(fwbpf)?;
        // One that is refused changes neither the policy nor its trial.
        let refused = load(fwbpf, &["--trial", "600"], "*filter\n-A NOWHERE\nCOMMIT\n");
        ensure!(refused.is_err());
        ensure!(save(fwbpf)? == first);
        ensure!(trial(fwbpf)?.is_some_and(|(_, guarded)| guarded));

        let second = locked().replace("--dport 443", "--dport 444");
        let seconds = short(fwbpf)?;
        let short = seconds.to_string();
        load(fwbpf, &["--trial", &short], &second)?;
        ensure!(save(fwbpf)? != first);
        over(fwbpf)?;
        ensure!(save(fwbpf)? == before, "not the last policy that was kept");

        // A load for good confirms.
        load(fwbpf, &["--trial", &short], &locked())?;
        load(fwbpf, &[], &second)?;
        ensure!(trial(fwbpf)?.is_none());
        let kept = save(fwbpf)?;
        std::thread::sleep(Duration::from_secs(seconds + 1));
        ensure!(save(fwbpf)? == kept, "it did not stay");
        Ok(())
    });
}
