//! SCTP's associations (RFC 9260): from one that opens, talks and shuts down to what nobody would send.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Way, What};
use crate::packet::chunk::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, HEARTBEAT, HEARTBEAT_ACK, INIT, INIT_ACK, KINDS,
    REFLECTED, SACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};

/// One chunk of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// What it tells: of INIT and INIT ACK the tag that the sender wants to see, with the rest of
    /// their parameters.
    pub told: Option<u32>,
    /// Bytes behind that, filled up to whole words.
    pub length: usize,
    /// It says that it is as long as this, and is not.
    pub lies: Option<u16>,
}

impl Chunk {
    /// As it is sent.
    pub fn bytes(self) -> Vec<u8> {
        const HEADER: usize = 4;
        /// Tag, window, numbers of streams, first number (RFC 9260 3.3.2).
        const PARAMETERS: usize = 16;
        let parameters = self.told.map_or(0, |_| PARAMETERS);
        let length = HEADER + parameters + self.length;
        let mut bytes = vec![self.kind, self.flags];
        bytes.extend(self.lies.unwrap_or(length as u16).to_be_bytes());
        if let Some(told) = self.told {
            bytes.extend(told.to_be_bytes());
        }
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }
}

const fn plain(kind: u8) -> Chunk {
    Chunk {
        kind,
        flags: 0,
        told: None,
        length: 0,
        lies: None,
    }
}

const fn telling(kind: u8, tag: u32) -> Chunk {
    Chunk {
        told: Some(tag),
        ..plain(kind)
    }
}

/// An association. The tags of one that does not end may be left to the next between the same ends, which
/// goes on with it or begins anew.
pub fn association(random: &mut impl Rng, unfinished: &mut Option<[u32; 2]>) -> Vec<(Way, What)> {
    let fresh = [random.random(), random.random()];
    let continued = unfinished.take().filter(|_| random.random_bool(0.5));
    let mut talk = Talk {
        tags: continued.unwrap_or(fresh),
        script: Vec::new(),
    };
    let (forth, back) = (Way::Forth, Way::Back);
    match random.random_range(0..100) {
        0..10 if continued.is_some() => {}
        // Both begin at once.
        0..6 => {
            talk.begin(forth);
            talk.begin(back);
            let goes_on = if random.random_bool(0.5) { forth } else { back };
            talk.accept(goes_on.reversed());
            if random.random_bool(0.5) {
                talk.accept(goes_on);
            }
            talk.confirm(random, goes_on);
        }
        // Another path of an association: its heartbeats come first.
        6..14 => {
            talk.say(forth, &[plain(HEARTBEAT)]);
            talk.say(back, &[plain(HEARTBEAT_ACK)]);
        }
        // Met in the middle.
        14..22 => {
            let way = either(random);
            talk.anything(random, way);
        }
        // Refused.
        22..28 => {
            talk.begin(forth);
            let abort = match random.random_bool(0.7) {
                true => plain(ABORT),
                false => reflected(ABORT),
            };
            talk.say(back, &[abort]);
            return talk.script;
        }
        // An answer that nobody asked for.
        28..33 => talk.accept(back),
        // One that was given up, and its shutdown is answered by who does not know of it.
        33..37 => {
            talk.say(forth, &[plain(SHUTDOWN_ACK)]);
            talk.reflect(back, SHUTDOWN_COMPLETE);
            return talk.script;
        }
        _ => {
            talk.begin(forth);
            if random.random_bool(0.1) {
                talk.again(0);
            }
            if random.random_bool(0.1) {
                // It was started anew, and wants another tag.
                talk.tags[0] = random.random();
                talk.begin(forth);
            }
            talk.accept(back);
            talk.confirm(random, forth);
        }
    }
    for _ in 0..random.random_range(0..8) {
        let way = either(random);
        match random.random_range(0..100) {
            0..30 => {
                let data = data(random);
                talk.say(way, &[plain(SACK), data]);
            }
            30..45 => talk.say(way, &[plain(SACK)]),
            45..55 => talk.say(way, &[plain(HEARTBEAT)]),
            55..62 => talk.say(way, &[plain(HEARTBEAT_ACK)]),
            62..70 if !talk.script.is_empty() => {
                talk.again(random.random_range(0..talk.script.len()));
            }
            // Of another association.
            70..80 => {
                let before = talk.tags;
                match random.random_range(0..3) {
                    0 => talk.tags.reverse(),
                    1 => talk.tags = [0; 2],
                    _ => talk.tags = [random.random(), random.random()],
                }
                talk.anything(random, way);
                talk.tags = before;
            }
            80..84 => talk.begin(way),
            84..88 => talk.accept(way),
            _ => talk.anything(random, way),
        }
    }
    let (first, second) = if random.random_bool(0.5) {
        (forth, back)
    } else {
        (back, forth)
    };
    match random.random_range(0..10) {
        0..6 => {
            talk.say(first, &[plain(SACK), telling_nothing_more(SHUTDOWN)]);
            if random.random_bool(0.15) {
                // The other side still has something to say.
                let data = data(random);
                talk.say(second, &[data]);
            }
            talk.say(second, &[plain(SHUTDOWN_ACK)]);
            if random.random_bool(0.2) {
                talk.again(talk.script.len() - 1);
            }
            match random.random_bool(0.8) {
                true => talk.say(first, &[plain(SHUTDOWN_COMPLETE)]),
                false => talk.reflect(first, SHUTDOWN_COMPLETE),
            }
            if random.random_bool(0.2) {
                // What comes after the end.
                let data = data(random);
                talk.say(second, &[data]);
            }
        }
        6 => talk.say(first, &[plain(ABORT)]),
        7 => talk.reflect(first, ABORT),
        _ => *unfinished = Some(talk.tags),
    }
    talk.script
}

/// What an ICMP error quotes: the beginning of a packet with data.
pub fn quoted() -> (u32, Vec<Chunk>) {
    let data = Chunk {
        length: 12,
        ..plain(DATA)
    };
    (0x5eed, vec![data])
}

fn either(random: &mut impl Rng) -> Way {
    if random.random_bool(0.5) {
        Way::Forth
    } else {
        Way::Back
    }
}

fn reflected(kind: u8) -> Chunk {
    Chunk {
        flags: REFLECTED,
        ..plain(kind)
    }
}

/// A SHUTDOWN has the last number that arrived.
fn telling_nothing_more(kind: u8) -> Chunk {
    Chunk {
        length: 4,
        ..plain(kind)
    }
}

fn data(random: &mut impl Rng) -> Chunk {
    Chunk {
        flags: 3,
        length: 12 + random.random_range(1..150),
        ..plain(DATA)
    }
}

/// An association in the making: the tags that either side wants to see.
struct Talk {
    tags: [u32; 2],
    script: Vec<(Way, What)>,
}

impl Talk {
    /// A packet that bears the tag which its receiver wants to see.
    fn say(&mut self, way: Way, chunks: &[Chunk]) {
        let [_, peer] = self.sides(way);
        self.bear(way, peer, chunks);
    }

    /// A packet whose sender knows no tag but its own.
    fn reflect(&mut self, way: Way, kind: u8) {
        let [own, _] = self.sides(way);
        self.bear(way, own, &[reflected(kind)]);
    }

    fn begin(&mut self, way: Way) {
        let [own, _] = self.sides(way);
        self.bear(way, 0, &[telling(INIT, own)]);
    }

    fn accept(&mut self, way: Way) {
        let [own, _] = self.sides(way);
        self.say(way, &[telling(INIT_ACK, own)]);
    }

    /// The cookie goes forth, and its receipt comes back.
    fn confirm(&mut self, random: &mut impl Rng, way: Way) {
        let mut first = vec![plain(COOKIE_ECHO)];
        let mut second = vec![plain(COOKIE_ACK)];
        if random.random_bool(0.4) {
            first.push(data(random));
            second.push(plain(SACK));
        }
        self.say(way, &first);
        self.say(way.reversed(), &second);
    }

    /// One chunk, or several that may not go together.
    fn anything(&mut self, random: &mut impl Rng, way: Way) {
        let [own, peer] = self.sides(way);
        let count = if random.random_bool(0.6) {
            1
        } else {
            random.random_range(0..5)
        };
        let chunks: Vec<Chunk> = (0..count)
            .map(|_| {
                let kind = *KINDS.choose(random).expect("not empty");
                let chunk = Chunk {
                    flags: u8::from(random.random_bool(0.3)),
                    length: random.random_range(0..9),
                    ..plain(kind)
                };
                let told = match random.random_range(0..5) {
                    0..3 => Some(own),
                    3 => Some(random.random()),
                    _ => None,
                };
                Chunk {
                    told: told.filter(|_| [INIT, INIT_ACK].contains(&kind)),
                    lies: random
                        .random_bool(0.04)
                        .then(|| *[0, 1, 3, 4, 5, 200].choose(random).expect("not empty")),
                    ..chunk
                }
            })
            .collect();
        let tag = match random.random_range(0..10) {
            0 => 0,
            1 => own,
            2 => random.random(),
            _ => peer,
        };
        self.bear(way, tag, &chunks);
    }

    /// Says something again.
    fn again(&mut self, index: usize) {
        let said = self.script[index].clone();
        self.script.push(said);
    }

    fn bear(&mut self, way: Way, tag: u32, chunks: &[Chunk]) {
        let chunks = chunks.to_vec();
        self.script.push((way, What::Chunks { tag, chunks }));
    }

    /// The sender's tag, and the receiver's.
    fn sides(&self, way: Way) -> [u32; 2] {
        match way {
            Way::Forth => self.tags,
            Way::Back => [self.tags[1], self.tags[0]],
        }
    }
}
