//! `limit` against the kernel's arithmetic, written down once more, with the clock in hand.

use etherparse::PacketBuilder;
use fw_common::datapath::ingress;
use fw_common::datapath::scratch::Scratch;
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};
use proptest::collection::vec;
use proptest::prelude::*;

const JIFFY_MS: u64 = 4;

/// net/netfilter/xt_limit.c with HZ=250.
struct Kernel {
    prev: u64,
    credit: u32,
    cap: u32,
    cost: u32,
}

impl Kernel {
    const HZ: u32 = 250;
    /// `POW2_BELOW32(0xFFFFFFFF / (HZ * 60 * 60 * 24))`.
    const CREDITS_PER_JIFFY: u32 = 128;

    fn new(avg: u32, burst: u32, jiffies: u64) -> Self {
        let credits = |user: u32| {
            if user > u32::MAX / (Self::HZ * Self::CREDITS_PER_JIFFY) {
                (user / 10_000)
                    .wrapping_mul(Self::HZ)
                    .wrapping_mul(Self::CREDITS_PER_JIFFY)
            } else {
                user * Self::HZ * Self::CREDITS_PER_JIFFY / 10_000
            }
        };
        let cap = credits(avg.wrapping_mul(burst));
        Self {
            prev: jiffies,
            credit: cap,
            cap,
            cost: credits(avg),
        }
    }

    fn allows(&mut self, jiffies: u64) -> bool {
        let passed = (jiffies - self.prev) as u32;
        self.prev = jiffies;
        let credit = passed
            .wrapping_mul(Self::CREDITS_PER_JIFFY)
            .wrapping_add(self.credit)
            .min(self.cap);
        let allowed = credit >= self.cost;
        self.credit = if allowed { credit - self.cost } else { credit };
        allowed
    }
}

fn running(rule: &str) -> HostTables {
    let text = format!(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{rule}\nCOMMIT\n"
    );
    let file = SourceFile::new("rules.v4", text.as_bytes(), Some(Family::Ipv4));
    let policy = load(&[file], LoadOptions::default())
        .unwrap_or_else(|errors| panic!("{rule}: {errors:?}"))
        .policy;
    let set = compile(&policy, &Slots::fresh(&policy), 1, &[]).expect("within the limits");
    let host = Host {
        devices: vec![HostDevice::ethernet(2, "eth0")],
        broadcast: Vec::new(),
        local: vec!["192.0.2.1/32".parse().expect("a prefix")],
        ..Host::default()
    };
    HostTables::running(host, set)
}

fn datagram(port: u16) -> SlicePacket {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 9], [192, 0, 2, 1], 64)
        .udp(4000, port)
        .write(&mut frame, b"x")
        .expect("a frame");
    SlicePacket::ethernet(frame, 2)
}

/// How many packets the rule has matched. INPUT's policy has slot 0, its first rule slot 1.
fn matched(tables: &HostTables) -> u64 {
    tables.counter(1)[0]
}

proptest! {
    #[test]
    fn it_is_the_kernels_arithmetic(
        (unit, seconds) in prop_oneof![
            Just(("second", 1)), Just(("minute", 60)), Just(("hour", 3600)), Just(("day", 86_400_u32))
        ],
        count in 1..60_u32,
        burst in 1..20_u32,
        start in 1..1_000_000_u64,
        gaps in vec(prop_oneof![0..3_u64, 0..300_u64, 0..100_000_u64], 1..200),
    ) {
        let avg = 10_000 * seconds / count;
        let mut kernel = Kernel::new(avg, burst, start);
        prop_assume!(kernel.cap >= kernel.cost);
        let rule = format!("-A INPUT -m limit --limit {count}/{unit} --limit-burst {burst} -j ACCEPT");
        let tables = running(&rule);
        let mut jiffies = start;
        let mut expected = 0;
        for gap in gaps {
            jiffies += gap;
            tables.set_now(jiffies * JIFFY_MS * 1_000_000);
            ingress(&mut datagram(53), &tables, &mut Scratch::default());
            expected += u64::from(kernel.allows(jiffies));
            prop_assert_eq!(matched(&tables), expected);
        }
    }
}

#[test]
fn only_what_stands_before_it_guards_the_bucket() {
    let tables = running(
        "-A INPUT -p udp -m udp --dport 53 -m limit --limit 1/hour --limit-burst 2 -j ACCEPT",
    );
    for port in [99, 99, 99, 53, 53, 53] {
        ingress(&mut datagram(port), &tables, &mut Scratch::default());
    }
    assert_eq!(matched(&tables), 2);

    let tables = running(
        "-A INPUT -p udp -m limit --limit 1/hour --limit-burst 2 -m udp --dport 53 -j ACCEPT",
    );
    for port in [99, 53, 53, 53] {
        ingress(&mut datagram(port), &tables, &mut Scratch::default());
    }
    assert_eq!(matched(&tables), 1);
}

#[test]
fn a_load_fills_the_bucket() {
    let rule = "-A INPUT -m limit --limit 1/hour --limit-burst 2 -j ACCEPT";
    let mut tables = running(rule);
    for _ in 0..4 {
        ingress(&mut datagram(53), &tables, &mut Scratch::default());
    }
    assert_eq!(matched(&tables), 2);
    let again = tables.policy().expect("a policy").clone();
    tables.load(again);
    ingress(&mut datagram(53), &tables, &mut Scratch::default());
    assert_eq!(matched(&tables), 3);
}
