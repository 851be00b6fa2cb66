//! Loads and removals that die on the way: the old policy or the new is in force, or none was and none is.

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use aya::maps::{Array, Map, MapData};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::lab::{Lab, missing};

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
    // How long a load lives at most. It grows while loads are killed before the flip, and falls while they are
    // not: so both happen, however slow the machine is, and whatever else it does.
    let mut longest = (usual + usual / 2).max(16);
    let (mut old, mut new) = (0, 0);
    let mut round = 0;
    while round < 60 || old.min(new) == 0 {
        assert!(
            round < 300,
            "the kills should hit both sides of the flip: {old} old, {new} new"
        );
        let before = lab.shown();
        let wanted = usize::from(before == whole[0]);
        lab.killed_load(&policies[wanted], random.below(longest));
        let after = lab.shown();
        assert!(
            whole.contains(&after),
            "round {round}: neither old nor new:\n{after}"
        );
        if after == before {
            old += 1;
            longest += longest / 16;
        } else {
            new += 1;
            longest -= longest / 16;
        }
        assert_eq!(lab.tcx_programs("eth0"), [1, 1]);
        round += 1;
    }
    lab.json(&["load", policies[0].to_str().unwrap()]);
    assert_eq!(lab.shown(), whole[0]);
}

#[test]
fn a_first_load_that_died_after_any_step_has_left_nothing_loaded() {
    require!();
    let lab = Lab::new("steps");
    let policy = lab.policy("policy.v4", &[22, 80]);
    let load = ["load", policy.to_str().unwrap()];
    fs::create_dir(&lab.state).unwrap();
    let mut names = Names::of(&lab.state);
    lab.json(&load);
    let whole = lab.shown();

    // Where the next load finds what is left: without attachments, programs, all maps, and so on.
    for share in [14, 12, 11, 9, 4, 1, 0, 16] {
        // The pins in the order in which they were made, which differs from load to load.
        let mut pins = names.read().to_vec();
        let is_attachment = |name: &String| name.starts_with("link_");
        let steps = 1 + pins.iter().rposition(is_attachment).unwrap();
        assert!(steps > 25, "maps, programs and attachments: {pins:?}");
        let kept = steps * share / 16;

        // As it was before the flip, and then one step before that, and so on.
        activate_none(&lab.state);
        while pins.len() > kept {
            if pins.len() <= steps {
                lab.has_nothing_loaded(&pins);
            }
            fs::remove_file(lab.state.join(pins.pop().unwrap())).unwrap();
        }
        lab.has_nothing_loaded(&pins);
        // What is left is of another hook than what is asked for.
        let hook = if kept == steps { "clsact" } else { "auto" };
        let outcome = lab.json(&["load", "--hook", hook, load[1]]);
        assert_eq!(outcome["generation"], 1, "{pins:?}");
        assert_eq!(lab.shown(), whole, "{pins:?}");
    }
}

#[test]
fn a_first_load_over_clsact_that_died_at_any_call_leaves_nothing_that_is_not_found_again() {
    require!();
    let lab = Lab::new("clsact");
    let policy = lab.policy("policy.v4", &[22, 80]);
    let load = ["load", "--hook", "clsact", policy.to_str().unwrap()];
    // What changes the qdisc and the filters goes by netlink; what remembers them is links.
    for call in ["sendto", "symlink"] {
        let mut n = 1;
        while lab.dies_at(call, n, &load) {
            n += 1;
            // Removal finds all that was made, if there is anything to be removed.
            let code = lab.run(&["unload"]).status.code();
            assert!(matches!(code, Some(0 | 4)), "{call} {n}: {code:?}");
            assert_eq!(lab.clsact(), "", "left by a load that died at {call} {n}");
        }
        assert!(n > 4, "{call} was called {n} times");
        assert_eq!(lab.clsact().matches("handle 0x6677").count(), 2);
        assert!(lab.run(&["unload"]).status.success());
    }
}

#[test]
fn a_load_that_died_at_any_call_has_left_the_old_policy_or_the_new() {
    require!();
    let lab = Lab::new("calls");
    let policies = [
        lab.policy("even.v4", &[22, 80]),
        lab.policy("odd.v4", &[22, 443]),
    ];
    let [old, new] = policies.each_ref().map(|policy| {
        lab.json(&["load", "--xdp", "off", policy.to_str().unwrap()]);
        lab.shown()
    });
    // The odd one gives way to the even one, and that to the odd one again, up to where it dies.
    let even = "load --xdp off --fast-path off".split(' ');
    let even: Vec<&str> = even.chain(policies[0].to_str()).collect();
    let odd = "load --xdp native --fast-path on".split(' ');
    let odd: Vec<&str> = odd.chain(policies[1].to_str()).collect();
    let mut after = [0, 0];
    for call in ["bpf", "rename", "symlink"] {
        let mut n = 1;
        loop {
            assert!(lab.run(&even).status.success(), "{call} {n}");
            let died = lab.dies_at(call, n, &odd);
            let shown = lab.shown();
            assert!(shown == old || shown == new, "{call} {n}: {shown}");
            after[usize::from(shown == new)] += 1;
            let status = lab.json(&["status"]);
            let modes = [&status["xdp"], &status["fast_path"]];
            let asked = if shown == new {
                ["native", "on"]
            } else {
                ["off", "off"]
            };
            assert_eq!(modes, asked, "{call} {n}");
            assert_eq!(lab.tcx_programs("eth0"), [1, 1], "{call} {n}");
            if !died {
                assert_eq!(shown, new);
                break;
            }
            n += 1;
        }
    }
    assert!(after[0] > 50 && after[1] > 3, "old and new: {after:?}");
}

#[test]
fn the_policys_map_is_the_last_to_come_and_the_first_to_go() {
    require!();
    let lab = Lab::new("order");
    let policy = lab.policy("policy.v4", &[22]);
    // The loader's own order is another one each time.
    for _ in 0..6 {
        fs::create_dir(&lab.state).unwrap();
        let mut names = Names::of(&lab.state);
        lab.json(&["load", policy.to_str().unwrap()]);
        let is_map = |name: &&String| name.starts_with(|first: char| first.is_ascii_uppercase());
        let pins = names.read().to_vec();
        let maps: Vec<&String> = pins.iter().filter(is_map).collect();
        assert!(maps.len() > 15, "{maps:?}");
        assert_eq!(*maps[maps.len() - 1], "POLICY", "{maps:?}");

        names.gone.clear();
        assert!(lab.run(&["unload"]).status.success());
        names.read();
        let gone = names.gone.iter();
        let first = gone.filter(|name| pins.contains(name) && !name.starts_with("link_"));
        assert_eq!(first.map(String::as_str).next(), Some("POLICY"));
    }
}

impl Lab {
    /// With these pins.
    fn has_nothing_loaded(&self, pins: &[String]) {
        for command in ["show", "status", "flows"] {
            let output = self.run(&[command]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(4),
                "{command} with {pins:?}: {error}"
            );
        }
    }
}

/// The running policy's place is the one that it is before the first flip.
fn activate_none(state: &Path) {
    let map = MapData::from_pin(state.join("ACTIVE")).unwrap();
    let mut active: Array<_, u32> = Map::from_map_data(map).and_then(TryInto::try_into).unwrap();
    active.set(0, 0, 0).unwrap();
}

/// The names in a directory in the order in which they came.
struct Names {
    events: OwnedFd,
    present: Vec<String>,
    gone: Vec<String>,
}

impl Names {
    fn of(directory: &Path) -> Self {
        let events = inotify::init(CreateFlags::NONBLOCK).unwrap();
        let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
        inotify::add_watch(&events, directory, changes).unwrap();
        Self {
            events,
            present: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// Those that are there now.
    fn read(&mut self) -> &[String] {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return &self.present,
                Err(error) => panic!("{error}"),
            };
            let kind = event.events();
            assert!(!kind.contains(ReadFlags::QUEUE_OVERFLOW));
            let Some(name) = event.file_name().map(CStr::to_str).transpose().unwrap() else {
                continue;
            };
            // A name that comes in another's place comes last.
            self.present.retain(|present| present != name);
            if kind.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                self.present.push(name.to_owned());
            } else {
                self.gone.push(name.to_owned());
            }
        }
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
