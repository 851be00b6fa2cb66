//! What rules ask of a packet's connection: its tuples at every hook, its status from packet to packet,
//! and its life with the clock in hand.

mod answers;

use etherparse::PacketBuilder;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tcp::flag;
use fw_common::datapath::{Verdict, egress, ingress};
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};

const LO: u32 = 1;
const ETH0: u32 = 2;
const DOCKER0: u32 = 3;
const SECOND: u64 = 1_000_000_000;
const CLIENT: [u8; 4] = [203, 0, 113, 7];
const SERVER: [u8; 4] = [198, 51, 100, 10];
const INNER: [u8; 4] = [172, 17, 0, 2];
const BRIDGE: [u8; 4] = [172, 17, 0, 1];

/// A machine whose rules count.
struct Machine {
    tables: HostTables,
    scratch: Scratch,
    /// The lines of rules, each with its slot.
    rules: Vec<(String, u32)>,
    now: u64,
}

impl Machine {
    fn new(text: &str) -> Self {
        let file = SourceFile::new("rules.v4", text.as_bytes(), Some(Family::Ipv4));
        let policy = load(&[file], LoadOptions { strict: true })
            .unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
            .policy;
        let slots = Slots::fresh(&policy);
        let lines: Vec<&str> = text.lines().collect();
        let rules = policy.counter_ids().zip(&slots.of);
        let rules = rules.filter_map(|(id, slot)| {
            let line = policy.rule(id)?.origin.line as usize;
            Some((lines[line - 1].to_owned(), *slot))
        });
        let device = |index, name, address: [u8; 4]| HostDevice {
            masquerade4: Some(address.into()),
            ..HostDevice::ethernet(index, name)
        };
        let host = Host {
            devices: vec![
                HostDevice::loopback(),
                device(ETH0, "eth0", SERVER),
                device(DOCKER0, "docker0", BRIDGE),
            ],
            local: ["198.51.100.10/32", "172.17.0.1/32", "127.0.0.1/32"]
                .map(|prefix| prefix.parse().expect("a prefix"))
                .to_vec(),
            ..Host::default()
        };
        let set = compile(&policy, &slots, 1, &[]).expect("within the limits");
        let rules = rules.collect();
        let machine = Self {
            tables: HostTables::running(host, set),
            scratch: Scratch::default(),
            rules,
            now: 1000 * SECOND,
        };
        machine.tables.set_now(machine.now);
        machine
    }

    fn wait(&mut self, milliseconds: u64) {
        self.now += milliseconds * SECOND / 1000;
        self.tables.set_now(self.now);
    }

    /// The marks of the rules that match what this sends: the words behind `#`.
    fn hits(&mut self, send: impl FnOnce(&mut Self)) -> Vec<String> {
        let counts = |machine: &Self| -> Vec<u64> {
            let slots = machine.rules.iter().map(|(_, slot)| *slot);
            slots.map(|slot| machine.tables.counter(slot)[0]).collect()
        };
        let before = counts(self);
        send(self);
        let after = counts(self);
        let rules = self.rules.iter().zip(before.iter().zip(&after));
        let hit = rules.filter(|(_, (before, after))| before != after);
        let name = |rule: &str| {
            let (_, rest) = rule.split_once("--comment ").expect("a comment");
            rest.split(' ').next().unwrap_or_default().to_owned()
        };
        hit.map(|((rule, _), _)| name(rule)).collect()
    }

    fn arrive(&mut self, device: u32, frame: Vec<u8>) -> SlicePacket {
        let mut packet = SlicePacket::ethernet(frame, device);
        packet.arrival_device = device;
        let verdict = ingress(&mut packet, &self.tables, &mut self.scratch);
        assert_eq!(verdict, Verdict::Pass);
        packet
    }

    fn leave(&mut self, device: u32, frame: Vec<u8>) -> SlicePacket {
        let packet = SlicePacket::ethernet(frame, device);
        let mut packet = packet.at_egress_of(device).made_here();
        let verdict = egress(&mut packet, &self.tables, &mut self.scratch);
        assert_eq!(verdict, Verdict::Pass);
        packet
    }

    /// What went out on loopback comes in.
    fn come_back(&mut self, packet: SlicePacket) {
        let mut packet = SlicePacket {
            device: LO,
            arrival_device: LO,
            ..packet
        };
        let verdict = ingress(&mut packet, &self.tables, &mut self.scratch);
        assert_eq!(verdict, Verdict::Pass);
    }

    /// FORWARD refuses it; the answer leaves by where it came in.
    fn be_refused(&mut self, from: u32, to: u32, frame: Vec<u8>) {
        let mut packet = self.arrive(from, frame);
        for (device, expected) in [(to, Verdict::Answer), (from, Verdict::Pass)] {
            packet = packet.at_egress_of(device);
            let verdict = egress(&mut packet, &self.tables, &mut self.scratch);
            assert_eq!(verdict, expected);
        }
    }

    fn forward(&mut self, from: u32, to: u32, frame: Vec<u8>) -> SlicePacket {
        let packet = self.arrive(from, frame);
        assert_ne!(packet.note, 0, "it is for this host");
        let mut packet = packet.at_egress_of(to);
        let verdict = egress(&mut packet, &self.tables, &mut self.scratch);
        assert_eq!(verdict, Verdict::Pass);
        packet
    }
}

fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from.0, to.0, 64)
        .udp(from.1, to.1)
        .write(&mut frame, b"x")
        .expect("a frame");
    frame
}

fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16), flags: u8, numbers: [u32; 2]) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from.0, to.0, 64)
        .tcp(from.1, to.1, numbers[0], 1000);
    let step = if flags & flag::SYN != 0 {
        step.syn()
    } else {
        step
    };
    let step = if flags & flag::RST != 0 {
        step.rst()
    } else {
        step
    };
    let step = match flags & flag::ACK {
        0 => step,
        _ => step.ack(numbers[1]),
    };
    step.write(&mut frame, &[]).expect("a frame");
    frame
}

const OPEN: &str = ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n";
const NAT: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n\
                   :OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n";

/// Rules of INPUT and OUTPUT that count, each under its name.
fn counting(asked: &[(&str, &str)]) -> String {
    let rules = asked.iter().flat_map(|(name, asked)| {
        ["INPUT", "OUTPUT"]
            .map(|chain| format!("-A {chain} -m conntrack {asked} -m comment --comment {name}\n"))
    });
    format!("*filter\n{OPEN}{}COMMIT\n", rules.collect::<String>())
}

#[test]
fn what_is_left_of_a_life_is_counted_in_whole_seconds() {
    let asked = [
        ("none", "--ctexpire 0"),
        ("all", "--ctexpire 30"),
        ("nearly", "--ctexpire 29"),
        ("some", "--ctexpire 1:29"),
        ("not", "! --ctexpire 30"),
        ("stream", "--ctexpire 120"),
        ("more", "--ctexpire 31:"),
    ];
    let mut machine = Machine::new(&counting(&asked));
    let (to, back) = (
        ((CLIENT, 4000), (SERVER, 53)),
        ((SERVER, 53), (CLIENT, 4000)),
    );
    // The time of a connection that is not confirmed is an interval, from which the kernel subtracts
    // what time it is.
    let first = machine.hits(|machine| drop(machine.arrive(ETH0, udp(to.0, to.1))));
    assert_eq!(first, ["none", "not"]);
    machine.wait(10_000);
    // Each packet begins the time anew before rules see it.
    let second = machine.hits(|machine| drop(machine.arrive(ETH0, udp(to.0, to.1))));
    assert_eq!(second, ["all"]);
    machine.wait(29_500);
    let answer = machine.hits(|machine| drop(machine.leave(ETH0, udp(back.0, back.1))));
    assert_eq!(answer, ["all"]);
    machine.wait(3_000);
    let stream = machine.hits(|machine| drop(machine.arrive(ETH0, udp(to.0, to.1))));
    assert_eq!(stream, ["not", "stream", "more"]);
    // An error refreshes nothing: what is left is rounded down.
    machine.wait(90_500);
    let quoted = udp(back.0, back.1)[14..].to_vec();
    let error = |machine: &mut Machine| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], SERVER, 64)
            .icmpv4_raw(11, 0, [0; 4])
            .write(&mut frame, &quoted)
            .expect("a frame");
        drop(machine.arrive(ETH0, frame));
    };
    assert_eq!(machine.hits(error), ["nearly", "some", "not"]);
    machine.wait(29_000);
    assert_eq!(machine.hits(error), ["none", "not"]);
    // It is over: the error is about nothing.
    machine.wait(1_000);
    assert_eq!(machine.hits(error), Vec::<String>::new());
}

#[test]
fn status_follows_a_connection() {
    let asked = [
        ("none", "--ctstatus NONE"),
        ("notnone", "! --ctstatus NONE"),
        ("expected", "--ctstatus EXPECTED"),
        ("seen", "--ctstatus SEEN_REPLY"),
        ("assured", "--ctstatus ASSURED"),
        ("confirmed", "--ctstatus CONFIRMED"),
        ("early", "! --ctstatus SEEN_REPLY,ASSURED"),
        ("invalid", "--ctstate INVALID --ctstatus NONE"),
    ];
    let mut machine = Machine::new(&counting(&asked));
    let (client, server) = ((CLIENT, 4000), (SERVER, 22));
    let mut step = |from, flags, numbers| {
        machine.hits(|machine| {
            if from == client {
                machine.arrive(ETH0, tcp(client, server, flags, numbers));
            } else {
                machine.leave(ETH0, tcp(server, client, flags, numbers));
            }
        })
    };
    let both = flag::SYN | flag::ACK;
    assert_eq!(step(client, flag::SYN, [100, 0]), ["notnone", "early"]);
    // Once more, and the first one has passed all hooks.
    let again = step(client, flag::SYN, [100, 0]);
    assert_eq!(again, ["notnone", "confirmed", "early"]);
    let answer = step(server, both, [500, 101]);
    assert_eq!(answer, ["notnone", "seen", "confirmed"]);
    let last = ["notnone", "seen", "assured", "confirmed"];
    assert_eq!(step(client, flag::ACK, [101, 501]), last);
    assert_eq!(step(server, flag::ACK, [501, 101]), last);
    // Without a connection, only the state is asked.
    assert_eq!(step(client, flag::SYN | flag::RST, [9, 9]), ["invalid"]);
}

/// An association of SCTP is one when both sides have said so; what it lives for follows its state.
#[test]
fn associations_have_states() {
    let asked = [
        ("new", "--ctstate NEW"),
        ("established", "--ctstate ESTABLISHED"),
        ("invalid", "--ctstate INVALID"),
        ("assured", "--ctstatus ASSURED"),
        ("long", "--ctexpire 200:"),
        ("short", "--ctexpire 3"),
    ];
    let mut machine = Machine::new(&counting(&asked));
    let (client, server) = ((CLIENT, 4000), (SERVER, 5000));
    let packet = |from: ([u8; 4], u16), to: ([u8; 4], u16), tag: u8, chunks: &[u8]| {
        let mut data = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        data.extend([0, 0, 0, tag, 0, 0, 0, 0]);
        data.extend(chunks);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(from.0, to.0, 64)
            .write(&mut frame, etherparse::IpNumber(132), &data)
            .expect("a frame");
        frame
    };
    const LENGTH: u8 = 20;
    let mut step = |from, tag, kind, told| {
        machine.hits(|machine| {
            let mut chunk = [0; LENGTH as usize];
            (chunk[0], chunk[3], chunk[7]) = (kind, LENGTH, told);
            if from == client {
                machine.arrive(ETH0, packet(client, server, tag, &chunk));
            } else {
                machine.leave(ETH0, packet(server, client, tag, &chunk));
            }
        })
    };
    assert_eq!(step(client, 2, 0, 0), ["invalid"], "DATA");
    assert_eq!(step(client, 0, 1, 1), ["new"], "INIT");
    assert_eq!(step(server, 1, 2, 2), ["established", "short"], "INIT ACK");
    assert_eq!(step(server, 7, 2, 2), ["invalid"], "of another tag");
    assert_eq!(
        step(client, 2, 10, 0),
        ["established", "short"],
        "COOKIE ECHO"
    );
    let last = ["established", "assured", "long"];
    assert_eq!(step(server, 1, 11, 0), last, "COOKIE ACK");
    assert_eq!(step(client, 2, 0, 0), last, "DATA");
    assert_eq!(step(client, 9, 0, 0), ["invalid"], "DATA of another tag");
    let closing = ["established", "assured", "short"];
    assert_eq!(step(server, 1, 7, 0), closing, "SHUTDOWN");
    assert_eq!(step(client, 2, 8, 0), closing, "SHUTDOWN ACK");

    // What nobody looks at does not pass for what it is not.
    let mut together = |chunk: [u8; 4], count| {
        let packet = packet(client, server, 2, &chunk.repeat(count));
        machine.hits(|machine| drop(machine.arrive(ETH0, packet)))
    };
    let (error, data) = ([9, 0, 0, 4], [0, 0, 0, 4]);
    assert_eq!(together(error, 8), closing);
    assert_eq!(together(error, 9), ["invalid"]);
    assert_eq!(together(data, 511), closing);
    assert_eq!(together(data, 512), ["invalid"]);
}

/// A reset that ends a connection still belongs to it, as an answer.
#[test]
fn the_reset_that_ends_a_connection_has_its_status() {
    let asked = [
        ("seen", "--ctstatus SEEN_REPLY"),
        ("confirmed", "--ctstatus CONFIRMED"),
        ("from", "--ctorigsrc 203.0.113.7 --ctorigdstport 22"),
    ];
    let mut machine = Machine::new(&counting(&asked));
    let (client, server) = ((CLIENT, 4000), (SERVER, 22));
    machine.arrive(ETH0, tcp(client, server, flag::SYN, [100, 0]));
    let reset = flag::RST | flag::ACK;
    let hits = machine.hits(|machine| {
        machine.leave(ETH0, tcp(server, client, reset, [0, 101]));
    });
    assert_eq!(hits, ["seen", "confirmed", "from"]);
    // A new one begins as the first did.
    let hits = machine.hits(|machine| {
        machine.arrive(ETH0, tcp(client, server, flag::SYN, [900, 0]));
    });
    assert_eq!(hits, ["from"]);
}

/// It has its mark, too, at every hook that it comes to: on loopback, and on its way through.
#[test]
fn the_reset_that_ends_a_connection_has_its_mark() {
    let text = format!(
        "*filter\n{OPEN}-A FORWARD -m connmark --mark 0x20 -m comment --comment forward\nCOMMIT\n\
         *raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A PREROUTING -i lo -m connmark --mark 0x20 -m comment --comment raw\nCOMMIT\n\
         *mangle\n:PREROUTING ACCEPT [0:0]\n\
         -A PREROUTING -m connmark --mark 0x20 -m comment --comment mangle\n\
         -A PREROUTING -j CONNMARK --set-mark 0x20 -m comment --comment sets\nCOMMIT\n"
    );
    let mut machine = Machine::new(&text);
    let reset = flag::RST | flag::ACK;
    let (one, other) = ((SERVER, 4000), (SERVER, 80));
    let open = machine.leave(LO, tcp(one, other, flag::SYN, [100, 0]));
    machine.come_back(open);
    let hits = machine.hits(|machine| {
        let reset = machine.leave(LO, tcp(other, one, reset, [0, 101]));
        machine.come_back(reset);
    });
    assert_eq!(sorted(hits), ["mangle", "raw", "sets"]);

    let (inner, far) = ((INNER, 4000), (CLIENT, 80));
    machine.forward(DOCKER0, ETH0, tcp(inner, far, flag::SYN, [100, 0]));
    let hits = machine.hits(|machine| {
        machine.forward(ETH0, DOCKER0, tcp(far, inner, reset, [0, 101]));
    });
    assert_eq!(sorted(hits), ["forward", "mangle", "sets"]);
}

/// A reset that ends a connection on its way through is that one's, though another's alias has its name.
#[test]
fn the_reset_that_ends_a_connection_is_no_other_s() {
    let text = format!(
        "*filter\n{OPEN}-A FORWARD -m conntrack --ctstatus SEEN_REPLY -m comment --comment seen\n\
         -A FORWARD -m conntrack --ctorigdst 203.0.113.7 -m comment --comment direct\nCOMMIT\n{NAT}\
         -A PREROUTING -p tcp -d 192.0.2.50 -m comment --comment dnat -j DNAT --to-destination 203.0.113.7\n\
         COMMIT\n"
    );
    let mut machine = Machine::new(&text);
    let (inner, far, other) = ((INNER, 4000), (CLIENT, 80), ([192, 0, 2, 50], 80));
    let out = |to, flags, numbers| tcp(inner, to, flags, numbers);
    machine.forward(DOCKER0, ETH0, out(other, flag::SYN, [100, 0]));
    machine.forward(DOCKER0, ETH0, out(far, flag::SYN, [100, 0]));
    let both = flag::SYN | flag::ACK;
    machine.forward(ETH0, DOCKER0, tcp(far, inner, both, [500, 101]));
    let hits = machine.hits(|machine| {
        machine.forward(DOCKER0, ETH0, out(far, flag::RST, [101, 0]));
    });
    assert_eq!(hits, ["direct"]);
}

/// The second packet from an endpoint to itself is the first one's answer.
#[test]
fn what_is_sent_to_its_sender_has_a_connection() {
    let text = format!(
        "*filter\n{OPEN}-A INPUT -m conntrack --ctstatus SEEN_REPLY -m comment --comment seen\n\
         -A INPUT -m conntrack --ctexpire 1: -m comment --comment lives\nCOMMIT\n"
    );
    let mut machine = Machine::new(&text);
    let own = (SERVER, 4000);
    let mut send = || {
        machine.hits(|machine| {
            let mut packet = machine.leave(LO, udp(own, own));
            packet.device = LO;
            packet.arrival_device = LO;
            let verdict = ingress(&mut packet, &machine.tables, &mut machine.scratch);
            assert_eq!(verdict, Verdict::Pass);
        })
    };
    assert_eq!(send(), ["lives"]);
    assert_eq!(send(), ["seen", "lives"]);
}

/// The tuples of a connection to a published port whose source is translated, too, at each hook.
#[test]
fn tuples_are_those_of_both_ends() {
    let tuples = [
        (
            "original",
            "--ctorigsrc 203.0.113.0/24 --ctorigsrcport 4000 --ctorigdst 198.51.100.10 --ctorigdstport 8080",
        ),
        ("replysrc", "--ctreplsrc 172.17.0.2 --ctreplsrcport 80"),
        (
            "unredirected",
            "--ctreplsrc 198.51.100.10 --ctreplsrcport 8080",
        ),
        ("replydst", "--ctrepldst 172.17.0.1 --ctrepldstport 4000"),
        (
            "unmasqueraded",
            "--ctrepldst 203.0.113.7 --ctrepldstport 3999:4001",
        ),
        ("udp", "--ctproto 17 --ctdir ORIGINAL"),
        ("nottcp", "! --ctproto tcp --ctdir REPLY"),
        ("other", "! --ctorigdstport 8080"),
    ];
    let of = |chain: &str| {
        let rule = |(name, asked): &(&str, &str)| {
            format!("-A {chain} -m conntrack {asked} -m comment --comment {chain}.{name}\n")
        };
        tuples.iter().map(rule).collect::<String>()
    };
    let text = format!(
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n\
         :OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{}COMMIT\n\
         *filter\n{OPEN}{}COMMIT\n{NAT}\
         -A PREROUTING -p udp --dport 8080 -m comment --comment dnat -j DNAT --to-destination 172.17.0.2:80\n\
         -A POSTROUTING -o docker0 -m comment --comment snat -j MASQUERADE\nCOMMIT\n",
        of("PREROUTING"),
        of("FORWARD")
    );
    let mut machine = Machine::new(&text);
    let (client, published, inner) = ((CLIENT, 4000), (SERVER, 8080), (INNER, 80));
    let first = machine.hits(|machine| {
        let sent = machine.forward(ETH0, DOCKER0, udp(client, published));
        assert_eq!(sent.bytes[26..30], BRIDGE);
        assert_eq!(sent.bytes[30..34], INNER);
    });
    let expected = [
        "PREROUTING.original",
        "PREROUTING.unredirected",
        "PREROUTING.unmasqueraded",
        "PREROUTING.udp",
        "FORWARD.original",
        "FORWARD.replysrc",
        "FORWARD.unmasqueraded",
        "FORWARD.udp",
        "dnat",
        "snat",
    ];
    assert_eq!(sorted(first), sorted(expected.map(str::to_owned).to_vec()));
    let later = machine.hits(|machine| {
        machine.forward(ETH0, DOCKER0, udp(client, published));
    });
    let known = ["original", "replysrc", "replydst", "udp"];
    let everywhere = |names: &[&str]| {
        let of = |chain: &'static str| names.iter().map(move |name| format!("{chain}.{name}"));
        of("PREROUTING").chain(of("FORWARD")).collect::<Vec<_>>()
    };
    assert_eq!(sorted(later), sorted(everywhere(&known)));
    let answer = machine.hits(|machine| {
        let sent = machine.forward(DOCKER0, ETH0, udp(inner, (BRIDGE, 4000)));
        assert_eq!(sent.bytes[26..30], SERVER);
        assert_eq!(sent.bytes[30..34], CLIENT);
    });
    let known = ["original", "replysrc", "replydst", "nottcp"];
    assert_eq!(sorted(answer), sorted(everywhere(&known)));
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}
