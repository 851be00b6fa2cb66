//! `hashlimit` against the kernel's arithmetic, written down once more, with the clock in hand.

use std::collections::HashMap;

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

/// net/netfilter/xt_hashlimit.c, revision 3, with HZ=250.
struct Kernel {
    bytes: bool,
    avg: u64,
    burst: u64,
    /// In jiffies.
    expire: u64,
    entries: HashMap<(u8, u16), Entry>,
}

struct Entry {
    prev: u64,
    expires: u64,
    credit: u64,
    cap: u64,
    cost: u64,
}

impl Kernel {
    const HZ: u64 = 250;
    /// `POW2_BELOW64(0xFFFFFFFFFFFFFFFF / (HZ * 60 * 60 * 24))`.
    const CREDITS_PER_JIFFY: u64 = 1 << 39;
    /// `POW2_BELOW32(0xFFFFFFFF / HZ)`.
    const CREDITS_PER_JIFFY_BYTES: u64 = 1 << 24;

    /// `user2credits`.
    fn credits(user: u64) -> u64 {
        user.wrapping_mul(Self::HZ * Self::CREDITS_PER_JIFFY / 1_000_000)
    }

    /// `hashlimit_mt_common`: whether the packet is within the limit.
    fn allows(&mut self, key: (u8, u16), length: u64, jiffies: u64) -> bool {
        let full_bytes = Self::CREDITS_PER_JIFFY_BYTES * Self::HZ;
        let fresh = Entry {
            prev: jiffies,
            expires: 0,
            credit: if self.bytes {
                full_bytes
            } else {
                Self::credits(self.avg.wrapping_mul(self.burst))
            },
            cap: if self.bytes {
                self.burst
            } else {
                Self::credits(self.avg.wrapping_mul(self.burst))
            },
            cost: if self.bytes {
                (self.avg * full_bytes) >> 32
            } else {
                Self::credits(self.avg)
            },
        };
        // The collector, which is at work all the time here.
        self.entries.retain(|_, entry| jiffies < entry.expires);
        let entry = self.entries.entry(key).or_insert(fresh);
        entry.expires = jiffies + self.expire;
        let delta = jiffies - entry.prev;
        if delta != 0 {
            entry.prev = jiffies;
            let (each, cap) = if self.bytes {
                (Self::CREDITS_PER_JIFFY_BYTES, full_bytes)
            } else {
                (Self::CREDITS_PER_JIFFY, entry.cap)
            };
            entry.credit = entry.credit.wrapping_add(delta.wrapping_mul(each)).min(cap);
        }
        let mut cost = entry.cost;
        if self.bytes {
            cost = (((length >> 4) + 1) * cost).min(full_bytes);
            if entry.credit < cost && entry.cap != 0 {
                entry.cap -= 1;
                entry.credit = full_bytes;
            }
        }
        let allowed = entry.credit >= cost;
        if allowed {
            entry.credit -= cost;
        }
        allowed
    }
}

fn running(rules: &str) -> HostTables {
    let text = format!(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n{rules}\nCOMMIT\n"
    );
    let file = SourceFile::new("rules.v4", text.as_bytes(), Some(Family::Ipv4));
    let policy = load(&[file], LoadOptions::default())
        .unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
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
    tables
}

fn datagram(from: u8, port: u16, length: usize) -> SlicePacket {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([198, 51, 100, from], [192, 0, 2, 1], 64)
        .udp(4000, port)
        .write(&mut frame, &vec![b'x'; length])
        .expect("a frame");
    SlicePacket::ethernet(frame, 2)
}

#[derive(Clone, Debug)]
struct Limit {
    text: String,
    bytes: bool,
    avg: u64,
    burst: u64,
    lifetime: u64,
}

fn limit() -> impl Strategy<Value = Limit> {
    let units = prop_oneof![
        Just(("second", 1)),
        Just(("minute", 60)),
        Just(("hour", 3_600)),
        Just(("day", 86_400_u64))
    ];
    let packets = (units, 1..60_u64, 1..20_u64).prop_map(|((unit, seconds), count, burst)| Limit {
        text: format!("{count}/{unit} --hashlimit-burst {burst}"),
        bytes: false,
        avg: 1_000_000 * seconds / count,
        burst,
        lifetime: seconds * 1000,
    });
    let bytes = (1..5_000_u64, 0..4_u64).prop_map(|(chunks, burst)| {
        // `bytes_to_cost` and `cost_to_bytes`, extensions/libxt_hashlimit.c.
        let bytes = chunks * 64;
        let avg = u64::from(u32::MAX) / ((bytes >> 4) + 1);
        let second = (u64::from(u32::MAX) / avg - 1) << 4;
        let written = match burst {
            0 => String::new(),
            burst => format!(" --hashlimit-burst {}b", second * burst),
        };
        Limit {
            text: format!("{bytes}b/s{written}"),
            bytes: true,
            avg,
            burst,
            lifetime: if burst == 0 { 15_000 } else { 60_000 },
        }
    });
    (prop_oneof![packets, bytes], any::<bool>(), 1..50_u64).prop_map(|(limit, own, jiffies)| {
        if !own {
            return limit;
        }
        let lifetime = jiffies * jiffies * JIFFY_MS;
        Limit {
            text: format!("{} --hashlimit-htable-expire {lifetime}", limit.text),
            lifetime,
            ..limit
        }
    })
}

proptest! {
    #[test]
    fn it_is_the_kernels_arithmetic(
        limit in limit(),
        start in 1..1_000_000_u64,
        packets in vec(
            (0..3_u8, 0..2_u16, 0..1400_usize, prop_oneof![0..3_u64, 0..300_u64, 0..100_000_u64]),
            1..150,
        ),
    ) {
        let credits = Kernel::credits;
        prop_assume!(limit.bytes || credits(limit.avg.wrapping_mul(limit.burst)) >= credits(limit.avg));
        let mut kernel = Kernel {
            bytes: limit.bytes,
            avg: limit.avg,
            burst: limit.burst,
            expire: limit.lifetime / JIFFY_MS,
            entries: HashMap::new(),
        };
        let rest = "--hashlimit-mode srcip,dstport --hashlimit-name x --hashlimit-htable-size 1 \
            --hashlimit-htable-max 6";
        let tables = running(&format!(
            "-A INPUT -m hashlimit --hashlimit-upto {} {rest}", limit.text,
        ));
        let mut jiffies = start;
        let mut expected = 0;
        for (from, port, length, gap) in packets {
            jiffies += gap;
            tables.set_now(jiffies * JIFFY_MS * 1_000_000);
            ingress(&mut datagram(from, port, length), &tables, &mut Scratch::default());
            expected += u64::from(kernel.allows((from, port), 28 + length as u64, jiffies));
            // INPUT's policy has slot 0, its first rule slot 1.
            prop_assert_eq!(tables.counter(1)[0], expected);
        }
    }
}

/// Rules of one name share their buckets, on either side of the limit.
#[test]
fn rules_of_one_name_take_from_one_bucket() {
    let rest =
        "--hashlimit-burst 3 --hashlimit-mode srcip --hashlimit-srcmask 31 --hashlimit-name x";
    let tables = running(&format!(
        "-A INPUT -p udp -m udp --dport 53 -m hashlimit --hashlimit-upto 1/hour {rest} -j ACCEPT\n\
         -A INPUT -m hashlimit ! --hashlimit-upto 1/hour {rest} -j DROP"
    ));
    let send = |from: u8, port: u16| {
        ingress(
            &mut datagram(from, port, 1),
            &tables,
            &mut Scratch::default(),
        );
        [tables.counter(1)[0], tables.counter(2)[0]]
    };
    // Another port: only the second rule asks, and takes.
    assert_eq!(send(2, 99), [0, 0]);
    assert_eq!(send(3, 53), [1, 0]);
    assert_eq!(send(2, 53), [2, 0]);
    assert_eq!(send(2, 53), [2, 1]);
    assert_eq!(send(4, 53), [3, 1]);
}

/// As in netfilter, what finds no room is dropped, and no rule counts it.
#[test]
fn a_full_table_drops() {
    use fw_common::abi::stat::Stat;
    use fw_common::datapath::Verdict;

    let tables = running(
        "-A INPUT -m hashlimit --hashlimit-upto 1/hour --hashlimit-mode srcip --hashlimit-name x \
         --hashlimit-htable-size 1 --hashlimit-htable-max 2 -j ACCEPT\n-A INPUT -j ACCEPT",
    );
    let send = |from: u8| ingress(&mut datagram(from, 53, 1), &tables, &mut Scratch::default());
    for from in [1, 2, 1, 2] {
        assert_eq!(send(from), Verdict::Pass);
    }
    assert_eq!(send(3), Verdict::Drop(Stat::List));
    assert_eq!(tables.counter(2)[0], 0);
    // An hour later the others are forgotten.
    tables.set_now(3_601 * 1_000_000_000);
    assert_eq!(send(3), Verdict::Pass);
}

/// netfilter drops a datagram, not its first fragment: what follows meets no further rule.
#[test]
fn what_is_dropped_is_the_whole_datagram() {
    use fw_common::abi::stat::Stat;
    use fw_common::datapath::Verdict;

    let tables = running(
        "-A INPUT -m hashlimit --hashlimit-upto 1/hour --hashlimit-mode srcip --hashlimit-name x \
         --hashlimit-htable-size 1 --hashlimit-htable-max 1 -j ACCEPT\n-A INPUT -j ACCEPT",
    );
    let send = |from: u8, fragment: [u8; 2]| {
        let mut packet = datagram(from, 53, 24);
        // Identification 7, then flags and offset; the header's sum comes before neither.
        packet.bytes[18..20].copy_from_slice(&[0, 7]);
        packet.bytes[20..22].copy_from_slice(&fragment);
        let header = &mut packet.bytes[14..34];
        header[10..12].fill(0);
        let sum = header
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u32::from(u16::from_be_bytes(*pair)))
            .sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        ingress(&mut packet, &tables, &mut Scratch::default())
    };
    assert_eq!(send(1, [0, 0]), Verdict::Pass);
    for fragment in [[0x20, 0], [0, 6]] {
        assert_eq!(send(2, fragment), Verdict::Drop(Stat::List));
    }
    assert_eq!(tables.counter(2), [0, 0]);
}
