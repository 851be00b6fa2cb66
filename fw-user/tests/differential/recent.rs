//! `recent` against the kernel's way to keep lists, written down once more, with the clock in hand.

use etherparse::PacketBuilder;
use fw_common::abi::stat::Stat;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::{Verdict, ingress};
use fw_user::compile::{Slots, compile};
use fw_user::kernel::lists::entries;
use fw_user::policy::lists::Question;
use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::machine::{ETH0, Machine, SERVER4, SERVER6, frame, ip, udp};

const JIFFY_MS: u64 = 4;
const HZ: u64 = 250;
/// So few that addresses are forgotten.
const ENTRIES: u32 = 4;

/// A rule of net/netfilter/xt_recent.c.
#[derive(Clone, Copy, Debug)]
struct Asked {
    not: bool,
    question: Question,
    seconds: u64,
    reap: bool,
    hits: u64,
    hops: bool,
}

impl Asked {
    fn text(&self) -> String {
        let mut text = String::from("-A INPUT -m recent");
        if self.not {
            text += " !";
        }
        text += &format!(" --{} --name L", self.question.option());
        if self.seconds != 0 {
            text += &format!(" --seconds {}", self.seconds);
        }
        if self.reap {
            text += " --reap";
        }
        if self.hits != 0 {
            text += &format!(" --hitcount {}", self.hits);
        }
        if self.hops {
            text += " --rttl";
        }
        text
    }
}

/// `struct recent_entry`.
#[derive(Clone, Debug)]
struct Entry {
    address: u8,
    hops: u8,
    index: usize,
    stamps: Vec<u64>,
}

/// `struct recent_table`: its entries as in `lru_list`.
struct Kernel {
    entries: Vec<Entry>,
    times: usize,
}

impl Kernel {
    fn last(entry: &Entry) -> u64 {
        entry.stamps[entry.index - 1]
    }

    /// `recent_mt`.
    fn says(&mut self, asked: &Asked, address: u8, hops: u8, jiffies: u64) -> bool {
        let found = self
            .entries
            .iter()
            .position(|entry| entry.address == address && (!asked.hops || entry.hops == hops));
        let Some(at) = found else {
            if asked.question != Question::Set {
                return asked.not;
            }
            if self.entries.len() >= ENTRIES as usize {
                self.entries.remove(0);
            }
            self.entries.push(Entry {
                address,
                hops,
                index: 1,
                stamps: vec![jiffies],
            });
            return !asked.not;
        };
        let mut says = asked.not;
        match asked.question {
            Question::Set => says = !says,
            Question::Remove => {
                self.entries.remove(at);
                return !says;
            }
            Question::Check | Question::Update => {
                let old = |stamp: u64| asked.seconds != 0 && stamp + asked.seconds * HZ < jiffies;
                let stamps = &self.entries[at].stamps;
                let fresh = stamps.iter().filter(|stamp| !old(**stamp)).count() as u64;
                if fresh >= asked.hits.max(1) {
                    says = !says;
                }
                let used = asked.question == Question::Update && says;
                if asked.reap && !(at == 0 && used) && old(Self::last(&self.entries[0])) {
                    self.entries.remove(0);
                    if at == 0 {
                        return says;
                    }
                    if used {
                        self.come_again(at - 1, hops, jiffies);
                    }
                    return says;
                }
            }
        }
        if asked.question == Question::Set || asked.question == Question::Update && says {
            self.come_again(at, hops, jiffies);
        }
        says
    }

    fn come_again(&mut self, at: usize, hops: u8, jiffies: u64) {
        let mut entry = self.entries.remove(at);
        entry.index &= self.times - 1;
        match entry.stamps.get_mut(entry.index) {
            Some(stamp) => *stamp = jiffies,
            None => entry.stamps.push(jiffies),
        }
        entry.index += 1;
        entry.hops = hops;
        self.entries.push(entry);
    }
}

fn running(rules: &[Asked]) -> HostTables {
    let lines: Vec<String> = rules.iter().map(Asked::text).collect();
    let text = format!(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{}\nCOMMIT\n",
        lines.join("\n")
    );
    let file = SourceFile::new("rules.v4", text.as_bytes(), Some(Family::Ipv4));
    let mut policy = load(&[file], LoadOptions::default())
        .unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
        .policy;
    policy.size_lists(ENTRIES);
    let set = compile(&policy, &Slots::fresh(&policy), 1, &[]).expect("within the limits");
    let host = Host {
        broadcast: Vec::new(),
        devices: vec![HostDevice::ethernet(2, "eth0")],
        local: vec!["192.0.2.1/32".parse().expect("a prefix")],
        ..Host::default()
    };
    let mut tables = HostTables::running(host, set);
    tables.put_sets(&policy);
    tables
}

fn datagram(from: u8, hops: u8) -> SlicePacket {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([198, 51, 100, from], [192, 0, 2, 1], hops)
        .udp(4000, 53)
        .write(&mut frame, b"x")
        .expect("a frame");
    SlicePacket::ethernet(frame, 2)
}

fn asked() -> impl Strategy<Value = Asked> {
    let question = prop_oneof![
        2 => Just(Question::Set),
        2 => Just(Question::Check),
        2 => Just(Question::Update),
        1 => Just(Question::Remove),
    ];
    let seconds = prop_oneof![Just(0), 1..4_u64, Just(60_u64)];
    let hits = prop_oneof![3 => 0..6_u64, 1 => 0..20_u64];
    (question, any::<[bool; 2]>(), 0..4_u8, seconds, hits).prop_map(
        |(question, [not, reap], hops, seconds, hits)| {
            let asks = matches!(question, Question::Check | Question::Update);
            Asked {
                not,
                question,
                seconds: if asks { seconds } else { 0 },
                reap: asks && reap && seconds != 0,
                hits: if asks { hits } else { 0 },
                hops: asks && hops == 0,
            }
        },
    )
}

proptest! {
    #[test]
    fn it_is_the_kernels_list(
        rules in vec(asked(), 1..6),
        start in 100_000..1_000_000_u64,
        packets in vec((0..7_u8, 0..8_u8, prop_oneof![0..3_u64, 0..300_u64, 0..2_000_u64]), 1..120),
    ) {
        let tables = running(&rules);
        let times = rules
            .iter()
            .map(|rule| if rule.hits == 0 { 32 } else { (rule.hits as usize).next_power_of_two() })
            .max()
            .unwrap_or(32);
        let mut kernel = Kernel { entries: Vec::new(), times };
        let mut expected = vec![0; rules.len()];
        let mut jiffies = start;
        for (from, hops, gap) in packets {
            jiffies += gap;
            tables.set_now(jiffies * JIFFY_MS * 1_000_000);
            let hops = if hops == 0 { 63 } else { 64 };
            ingress(&mut datagram(from, hops), &tables, &mut Scratch::default());
            for (rule, count) in rules.iter().zip(&mut expected) {
                *count += u64::from(kernel.says(rule, from, hops, jiffies));
            }
            // INPUT's policy has slot 0.
            let counted: Vec<u64> = (1..=rules.len() as u32).map(|slot| tables.counter(slot)[0]).collect();
            prop_assert_eq!(&counted, &expected);
        }
    }
}

/// As many times as the kernel keeps at most, of which it counts one less (`nstamps` has 16 bits); and what
/// `--reap` looks at is the time that was written last, also where places begin anew.
#[test]
fn the_longest_memory_is_the_kernels() {
    let rules = "-A INPUT -p udp -m udp --dport 1 -m recent --set --name L -j DROP\n\
                 -A INPUT -p udp -m udp --dport 2 -m recent --rcheck --hitcount 65535 --name L -j DROP\n\
                 -A INPUT -p udp -m udp --dport 3 -m recent --rcheck --seconds 5 --reap --name L -j DROP\n\
                 -A INPUT -p udp -m udp --dport 4 -m recent --rcheck --name L -j DROP";
    let text =
        format!("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n{rules}\nCOMMIT\n");
    let mut machine = Machine::loading(Family::Ipv4, &text);
    let holds = |machine: &mut Machine, seconds: u64, port: u16| {
        machine.tables.set_now((1_000 + seconds) * 1_000_000_000);
        let packet = frame(udp(["198.51.100.1", SERVER4], [5000, port]));
        machine.arrive(ETH0, packet).0 != Verdict::Pass
    };
    for _ in 0..65_534 {
        assert!(holds(&mut machine, 0, 1));
    }
    assert!(!holds(&mut machine, 0, 2));
    assert!(holds(&mut machine, 0, 1));
    assert!(holds(&mut machine, 0, 2));
    // The last place: what stands there does not count, but is what was used last.
    assert!(holds(&mut machine, 100, 1));
    assert!(!holds(&mut machine, 103, 3));
    assert!(holds(&mut machine, 103, 4));
    assert!(holds(&mut machine, 103, 1));
    assert!(holds(&mut machine, 103, 3));
}

/// A list is asked, and changed, only if all before it in the rule hold; what stands behind it is asked
/// only if it says yes.
#[test]
fn a_rules_matches_are_asked_in_their_order() {
    let rule = |text: &str| {
        let text = format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{text}\nCOMMIT\n"
        );
        let file = SourceFile::new("rules.v4", text.as_bytes(), Some(Family::Ipv4));
        let policy = load(&[file], LoadOptions::default())
            .expect("good rules")
            .policy;
        let set = compile(&policy, &Slots::fresh(&policy), 1, &[]).expect("within the limits");
        let host = Host {
            broadcast: Vec::new(),
            devices: vec![HostDevice::ethernet(2, "eth0")],
            local: vec!["192.0.2.1/32".parse().expect("a prefix")],
            ..Host::default()
        };
        let mut tables = HostTables::running(host, set);
        tables.put_sets(&policy);
        for _ in 0..3 {
            ingress(&mut datagram(1, 64), &tables, &mut Scratch::default());
        }
        [tables.counter(1)[0], tables.counter(2)[0]]
    };
    let check = "-A INPUT -m recent --rcheck --hitcount 2 -j ACCEPT";
    // The port is another: nothing is remembered.
    let guarded = format!("-A INPUT -p udp -m udp --dport 99 -m recent --set\n{check}");
    assert_eq!(rule(&guarded), [0, 0]);
    let first = format!("-A INPUT -p udp -m recent --set -m udp --dport 99\n{check}");
    assert_eq!(rule(&first), [0, 2]);
    // Two lists and a limit in one rule.
    let both = format!(
        "-A INPUT -m recent --set -m limit --limit 1/hour --limit-burst 2 -m recent --set --name B\n{}",
        "-A INPUT -m recent --rcheck --name B --hitcount 2"
    );
    assert_eq!(rule(&both), [2, 2]);
}

/// To `recent_mt`, what leaves without a socket was forwarded, and came with one more hop: IPv6's resets that
/// the kernel sends.
#[test]
fn what_leaves_without_a_socket_counts_as_forwarded() {
    let rules = "COMMIT\n*mangle\n-A OUTPUT -m recent --rcheck --rttl --name L -j DROP\n\
                 -A OUTPUT -m recent --set --name L";
    for has_socket in [true, false] {
        let mut machine = Machine::with(Family::Ipv6, rules);
        let first = frame(udp([SERVER6, "2001:db8::2"], [5000, 53])).made_here();
        assert_eq!(machine.leave(ETH0, first.clone()).0, Verdict::Pass);
        let second = SlicePacket {
            has_socket,
            ..first
        };
        let (verdict, _) = machine.leave(ETH0, second);
        assert_eq!(verdict == Verdict::Drop(Stat::Policy), has_socket);
    }
}

/// Whether or not a rule compares it: a later policy's may.
#[test]
fn an_entry_has_its_packets_hop_limit() {
    let rules = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
                 -A INPUT -m recent --set --name L\nCOMMIT\n";
    let mut machine = Machine::loading(Family::Ipv4, rules);
    for hops in [64, 63] {
        let mut packet = Vec::new();
        ip("198.51.100.1", SERVER4, hops)
            .udp(5000, 53)
            .write(&mut packet, b"x")
            .expect("a packet");
        machine.arrive(ETH0, frame(packet));
        let remembered = entries(&machine.tables.list_cells(0));
        assert_eq!(remembered.len(), 1);
        assert_eq!(remembered[0].hops, hops);
    }
}
