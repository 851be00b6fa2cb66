//! SCTP's associations, packet by packet beside netfilter: the same label, and the same state and life
//! afterwards (net/netfilter/nf_conntrack_proto_sctp.c; RFC 9260).

use anyhow::{Context as _, Result, ensure};
use fwbpf_tests::beside::{self, ADDRESSES, Name, packet};
use fwbpf_tests::packet::Payload;
use fwbpf_tests::packet::chunk::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, ERROR, HEARTBEAT, HEARTBEAT_ACK, INIT, INIT_ACK, KINDS,
    REFLECTED, SACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const SCTP: u8 = 132;
const CLIENT: u16 = 40_000;
const SERVER: u16 = 5_000;
/// The tags that the client and the server want.
const ALICE: u32 = 0x1111_1111;
const BOB: u32 = 0x2222_2222;

/// An association opens, talks, and shuts down from either end.
#[test]
fn associations() {
    beside_netfilter("ct_sctp", |pair| {
        for from_client in [true, false] {
            pair.open()?;
            pair.expect("ESTABLISHED [ASSURED]", 210)?;
            pair.send(true, BOB, &[plain(DATA)])?;
            pair.send(false, ALICE, &[plain(SACK), plain(DATA)])?;
            pair.send(true, BOB, &[plain(SACK)])?;
            let (own, other) = if from_client {
                (BOB, ALICE)
            } else {
                (ALICE, BOB)
            };
            pair.send(from_client, own, &[plain(SACK), plain(SHUTDOWN)])?;
            let state = if from_client {
                "SHUTDOWN_SENT"
            } else {
                "SHUTDOWN_RECD"
            };
            pair.expect(&format!("{state} [ASSURED]"), 33)?;
            pair.send(!from_client, other, &[plain(SHUTDOWN_ACK)])?;
            pair.send(from_client, own, &[plain(SHUTDOWN_COMPLETE)])?;
            pair.expect("CLOSED [ASSURED]", 50)?;
        }
        Ok(())
    });
}

/// Packets of another tag are INVALID, but for what may have none, or its receiver's own.
#[test]
fn tags() {
    beside_netfilter("ct_sctp_tags", |pair| {
        pair.open()?;
        for chunk in [
            DATA,
            SACK,
            ERROR,
            SHUTDOWN,
            COOKIE_ECHO,
            ABORT,
            SHUTDOWN_COMPLETE,
        ] {
            let label = pair.send(true, ALICE, &[plain(chunk)])?;
            ensure!(
                label == "INVALID",
                "chunk {chunk} with another's tag: {label}"
            );
        }
        let label = pair.send(true, BOB, &[init(INIT, 7)])?;
        ensure!(label == "INVALID", "INIT with a tag: {label}");
        pair.expect("ESTABLISHED [ASSURED]", 210)?;
        let label = pair.send(false, BOB, &[flagged(ABORT, REFLECTED)])?;
        ensure!(label == "ESTABLISHED", "a reflected tag: {label}");
        pair.expect("CLOSED [ASSURED]", 50)
    });
}

/// What a first packet can be.
#[test]
fn first_packets() {
    let first: [(&str, &[Chunk], u32); 16] = [
        ("NEW", &[init(INIT, ALICE)], 0),
        ("INVALID", &[init(INIT, ALICE)], 5),
        ("INVALID", &[plain(INIT)], 0),
        ("INVALID", &[init(INIT, ALICE), plain(DATA)], 0),
        ("INVALID", &[plain(ERROR), init(INIT, ALICE)], 0),
        ("INVALID", &[plain(DATA)], BOB),
        ("INVALID", &[plain(ABORT)], BOB),
        ("INVALID", &[plain(COOKIE_ACK)], BOB),
        ("INVALID", &[plain(SHUTDOWN_COMPLETE)], BOB),
        ("INVALID", &[plain(COOKIE_ECHO), plain(DATA)], BOB),
        ("INVALID", &[plain(COOKIE_ECHO)], BOB),
        ("NEW", &[plain(HEARTBEAT)], BOB),
        ("NEW", &[plain(SHUTDOWN_ACK)], BOB),
        ("INVALID", &[], BOB),
        ("INVALID", &[EMPTY], BOB),
        ("INVALID", &[plain(77)], BOB),
    ];
    beside_netfilter("ct_sctp_first", |pair| {
        for (number, (expected, chunks, tag)) in first.into_iter().enumerate() {
            let pair = Pair {
                port: CLIENT + number as u16,
                ..*pair
            };
            let label = pair.send(true, tag, chunks)?;
            ensure!(label == expected, "{chunks:?}: {label}, not {expected}");
        }
        Ok(())
    });
}

/// An INIT that comes again and again keeps nothing alive; both sides may begin at once.
#[test]
fn beginnings() {
    beside_netfilter("ct_sctp_begin", |pair| {
        pair.send(true, 0, &[init(INIT, ALICE)])?;
        std::thread::sleep(std::time::Duration::from_millis(3500));
        let label = pair.send(true, 0, &[init(INIT, ALICE)])?;
        ensure!(label == "NEW", "the same again: {label}");
        let found = pair.connection()?.context("it is gone")?;
        ensure!(found.1 <= 47, "it lives for {} s again", found.1);
        // Both at once.
        pair.send(false, 0, &[init(INIT, BOB)])?;
        pair.send(true, BOB, &[init(INIT_ACK, ALICE)])?;
        let label = pair.send(false, ALICE, &[init(INIT_ACK, 7)])?;
        ensure!(label == "INVALID", "another beginning goes on: {label}");
        pair.send(false, ALICE, &[plain(COOKIE_ECHO), plain(DATA)])?;
        pair.send(true, BOB, &[plain(COOKIE_ACK)])?;
        Ok(())
    });
}

/// An INIT that tells a tag which is known already, late or sent again, is no beginning of its sender's: an
/// answer that tells another tag is taken.
#[test]
fn late_beginnings() {
    beside_netfilter("ct_sctp_late", |pair| {
        pair.open()?;
        pair.send(false, 0, &[init(INIT, BOB)])?;
        pair.send(true, 0, &[init(INIT, 7)])?;
        let label = pair.send(false, 7, &[init(INIT_ACK, 9)])?;
        ensure!(label == "ESTABLISHED", "the answer: {label}");
        let label = pair.send(true, 9, &[plain(COOKIE_ECHO)])?;
        ensure!(label == "ESTABLISHED", "the cookie: {label}");
        pair.send(false, 7, &[plain(COOKIE_ACK)])?;
        // Both have begun with other tags: of two, one goes on.
        pair.send(false, 0, &[init(INIT, 11)])?;
        pair.send(true, 0, &[init(INIT, 12)])?;
        let label = pair.send(false, 12, &[init(INIT_ACK, 13)])?;
        ensure!(label == "INVALID", "a third beginning: {label}");
        Ok(())
    });
}

/// A path of an association that others opened: known by its heartbeats.
#[test]
fn heartbeats() {
    beside_netfilter("ct_sctp_heartbeat", |pair| {
        pair.send(true, BOB, &[plain(HEARTBEAT)])?;
        pair.expect("HEARTBEAT_SENT [UNREPLIED]", 30)?;
        pair.send(false, ALICE, &[plain(HEARTBEAT_ACK)])?;
        pair.expect("ESTABLISHED [ASSURED]", 210)?;
        pair.send(true, BOB, &[plain(DATA)])?;
        // The server begins anew with other tags, which its heartbeats tell.
        let label = pair.send(true, 7, &[plain(HEARTBEAT), plain(DATA)])?;
        ensure!(label == "INVALID", "with data: {label}");
        pair.send(true, 7, &[plain(HEARTBEAT)])?;
        let label = pair.send(true, 7, &[plain(HEARTBEAT_ACK)])?;
        ensure!(label == "INVALID", "the sender answers itself: {label}");
        pair.send(false, 9, &[plain(HEARTBEAT_ACK)])?;
        pair.send(true, 7, &[plain(HEARTBEAT)])?;
        pair.send(true, 7, &[plain(DATA)])?;
        pair.send(false, 9, &[plain(DATA)])?;
        Ok(())
    });
}

/// Anything at all: what nobody thought of.
#[test]
fn anything() {
    let chosen = std::env::var("SCTP_SEED").ok();
    let seed = chosen.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::random::<u32>().into());
    println!("SCTP_SEED={seed}");
    beside_netfilter("ct_sctp_any", |pair| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let tags = [0, ALICE, BOB, 7];
        for number in 0..160 {
            // Now and then another association, which begins as it should.
            let pair = Pair {
                port: CLIENT + number / 20,
                ..*pair
            };
            if number % 20 == 0 && random.random_bool(0.8) {
                pair.open()?;
            }
            let from_client = random.random_bool(0.5);
            let count = if random.random_bool(0.7) {
                1
            } else {
                random.random_range(2..4)
            };
            let chunks: Vec<Chunk> = (0..count)
                .map(|_| {
                    let kind = *KINDS.choose(&mut random).expect("there are some");
                    let told = *tags.choose(&mut random).expect("there are some");
                    let flags = u8::from(random.random_bool(0.3));
                    Chunk {
                        flags,
                        ..init(kind, told)
                    }
                })
                .collect();
            let usual = if from_client { BOB } else { ALICE };
            let tag = if random.random_bool(0.6) {
                usual
            } else {
                *tags.choose(&mut random).expect("there are some")
            };
            let way = if from_client { "client" } else { "server" };
            let words = format!("{number}, {way}, tag {tag:x}: {chunks:?}");
            let label = pair.send(from_client, tag, &chunks);
            let label = label.with_context(|| format!("SCTP_SEED={seed}, {words}"))?;
            println!("{words}: {label}");
        }
        Ok(())
    });
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    kind: u8,
    flags: u8,
    /// Its first word and three more, if it has any.
    told: Option<u32>,
    /// It says that it has no length.
    empty: bool,
}

const EMPTY: Chunk = Chunk {
    empty: true,
    ..plain(SACK)
};

const fn plain(kind: u8) -> Chunk {
    Chunk {
        kind,
        flags: 0,
        told: None,
        empty: false,
    }
}

const fn flagged(kind: u8, flags: u8) -> Chunk {
    Chunk {
        flags,
        ..plain(kind)
    }
}

const fn init(kind: u8, told: u32) -> Chunk {
    Chunk {
        told: Some(told),
        ..plain(kind)
    }
}

impl Chunk {
    fn bytes(self) -> Vec<u8> {
        let length: u16 = match (self.empty, self.told) {
            (true, _) => 0,
            (_, Some(_)) => 20,
            (_, None) => 4,
        };
        let mut bytes = vec![self.kind, self.flags];
        bytes.extend(length.to_be_bytes());
        if let Some(told) = self.told {
            bytes.extend(told.to_be_bytes());
            bytes.extend([0; 12]);
        }
        bytes
    }
}

/// Both routers, and an association that goes through them.
#[derive(Clone, Copy)]
struct Pair<'a> {
    pair: &'a beside::Pair,
    port: u16,
}

impl Pair<'_> {
    fn name(&self) -> Name<'static> {
        Name {
            protocol: SCTP,
            port: Some(self.port),
            address: ADDRESSES[self.pair.version][0],
        }
    }

    fn send(&self, from_client: bool, tag: u32, chunks: &[Chunk]) -> Result<&'static str> {
        let ports = if from_client {
            [self.port, SERVER]
        } else {
            [SERVER, self.port]
        };
        let mut data: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
        data.extend(tag.to_be_bytes());
        data.extend([0; 4]);
        data.extend(chunks.iter().flat_map(|chunk| chunk.bytes()));
        let payload = Payload::Other {
            protocol: SCTP,
            data,
        };
        let packet = packet(self.pair.version, from_client, payload);
        self.pair.send(from_client, &packet, self.name())
    }

    fn connection(&self) -> Result<Option<(String, u64)>> {
        self.pair.connection(self.name())
    }

    fn expect(&self, state: &str, seconds: u64) -> Result<()> {
        let (found, left) = self.connection()?.context("there is no association")?;
        ensure!(found == state, "the association is {found}, not {state}");
        ensure!(
            left <= seconds && left + 2 >= seconds,
            "it lives for {left} s, not {seconds}"
        );
        Ok(())
    }

    fn open(&self) -> Result<()> {
        self.send(true, 0, &[init(INIT, ALICE)])?;
        self.send(false, ALICE, &[init(INIT_ACK, BOB)])?;
        self.send(true, BOB, &[plain(COOKIE_ECHO), plain(DATA)])?;
        self.send(false, ALICE, &[plain(COOKIE_ACK), plain(SACK)])?;
        Ok(())
    }
}

/// Runs a scenario for IPv4 and IPv6. States in which nobody stays long last long enough to be looked at.
fn beside_netfilter(test: &str, scenario: impl Fn(&Pair) -> Result<()>) {
    let settings = [
        // Sums are not verified here: fwbpf does not (difference 5 of the conformance test).
        ("netfilter/nf_conntrack_checksum", "0"),
        ("netfilter/nf_conntrack_sctp_timeout_closed", "50"),
        ("netfilter/nf_conntrack_sctp_timeout_cookie_wait", "61"),
        ("netfilter/nf_conntrack_sctp_timeout_cookie_echoed", "72"),
        ("netfilter/nf_conntrack_sctp_timeout_shutdown_sent", "33"),
        ("netfilter/nf_conntrack_sctp_timeout_shutdown_recd", "33"),
        (
            "netfilter/nf_conntrack_sctp_timeout_shutdown_ack_sent",
            "94",
        ),
    ];
    beside::beside_netfilter(test, &settings, |pair| {
        scenario(&Pair { pair, port: CLIENT })
    });
}
