//! TCP conversations: from a careful one to one that only the odd segments of are left.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Way, What};
use crate::packet::flags::{ACK, FIN, PSH, RST, SYN, URG};

/// A conversation. The numbers of one that does not end may be left to the next between the same ends:
/// then it is in the window of the old one, which is still tracked; else it is out of it.
pub fn conversation(random: &mut impl Rng, unfinished: &mut Option<[u32; 2]>) -> Vec<(Way, What)> {
    let fresh = [random.random(), random.random()];
    let continued = unfinished.take().filter(|_| random.random_bool(0.7));
    let mut talk = Talk {
        next: continued.unwrap_or(fresh),
        windows: WINDOWS.choose(random).expect("not empty"),
        offers: [offer(random), offer(random)],
        script: Vec::new(),
    };
    let (forth, back) = (Way::Forth, Way::Back);
    match random.random_range(0..100) {
        // Simultaneous open.
        0..4 => {
            talk.say(random, forth, SYN, 0);
            talk.say(random, back, SYN, 0);
            talk.say(random, forth, SYN | ACK, 0);
            talk.say(random, back, SYN | ACK, 0);
        }
        // Picked up in the middle.
        4..14 => talk.say(random, forth, ACK, 20),
        // An answer that nobody asked for.
        14..22 => talk.say(random, back, SYN | ACK, 0),
        // Refused.
        22..28 => {
            talk.say(random, forth, SYN, 0);
            talk.say(random, back, RST | ACK, 0);
            return talk.script;
        }
        // The server has another connection in mind, and the client does not know of it.
        28..32 => {
            talk.say(random, forth, SYN, 0);
            let stale = if random.random_bool(0.5) {
                ACK
            } else {
                SYN | ACK
            };
            talk.stray(random, back, stale);
            talk.answer_with_reset(forth);
            talk.again(0);
            talk.say(random, back, SYN | ACK, 0);
            talk.say(random, forth, ACK, 0);
        }
        _ => {
            talk.say(random, forth, SYN, 0);
            if random.random_bool(0.1) {
                talk.again(0);
            }
            talk.say(random, back, SYN | ACK, 0);
            talk.say(random, forth, ACK, 0);
        }
    }
    for _ in 0..random.random_range(0..7) {
        let way = if random.random_bool(0.5) { forth } else { back };
        match random.random_range(0..100) {
            0..55 => {
                let length = random.random_range(0..200);
                talk.say(random, way, ACK | PSH, length);
            }
            // Sent again.
            55..63 => talk.again(random.random_range(0..talk.script.len())),
            // Is anybody there?
            63..67 => talk.keep_alive(random, way),
            // Numbers that are off, by little or by much.
            67..82 => {
                let flags = *[
                    ACK,
                    ACK | PSH,
                    ACK,
                    FIN | ACK,
                    RST,
                    RST | ACK,
                    SYN,
                    SYN | ACK,
                ]
                .choose(random)
                .expect("not empty");
                talk.stray(random, way, flags);
            }
            _ => {
                let odd = [
                    0,
                    FIN | PSH | URG,
                    SYN | FIN,
                    SYN,
                    SYN | ACK,
                    RST,
                    URG | ACK,
                    FIN,
                ];
                let flags = odd[random.random_range(0..odd.len())];
                talk.say(random, way, flags, 0);
            }
        }
    }
    match random.random_range(0..10) {
        0..6 => {
            let (first, second) = if random.random_bool(0.5) {
                (forth, back)
            } else {
                (back, forth)
            };
            talk.say(random, first, FIN | ACK, 0);
            if random.random_bool(0.5) {
                talk.say(random, second, ACK, 0);
            }
            talk.say(random, second, FIN | ACK, 0);
            if random.random_bool(0.1) {
                // A new connection before the last one is over; the peer challenges it.
                talk.stray(random, first, SYN);
                talk.say(random, second, ACK, 0);
            }
            talk.say(random, first, ACK, 0);
            if random.random_bool(0.3) {
                // What comes after the end.
                talk.say(random, second, ACK, 10);
            }
        }
        6..8 => {
            let way = if random.random_bool(0.5) { forth } else { back };
            talk.say(random, way, RST | ACK, 0);
        }
        _ => *unfinished = Some(talk.next),
    }
    talk.script
}

/// Windows that a conversation draws from: wide ones, narrow ones that data do not always fit in, and
/// closed ones.
const WINDOWS: [&[u16]; 4] = [&[65_000], &[65_000, 400], &[300, 100, 20], &[1_000, 0, 1]];

/// What a SYN offers: a window scale, and to understand selective acknowledgements.
#[derive(Clone, Copy)]
struct Offer {
    scale: Option<u8>,
    sack: bool,
    /// Options that mean nothing to tracking come first.
    padding: bool,
}

fn offer(random: &mut impl Rng) -> Offer {
    Offer {
        scale: random
            .random_bool(0.5)
            .then(|| *[0, 1, 7, 14, 15].choose(random).expect("not empty")),
        sack: random.random_bool(0.5),
        padding: random.random_bool(0.5),
    }
}

impl Offer {
    fn options(self) -> Vec<u8> {
        let mut options = Vec::new();
        if self.padding {
            // A maximum segment size, and nothing.
            options.extend([2, 4, 5, 180, 1]);
        }
        if let Some(scale) = self.scale {
            options.extend([3, 3, scale]);
        }
        if self.sack {
            options.extend([4, 2]);
        }
        options
    }
}

/// A conversation in the making: each side's next sequence number is what the other acknowledges.
struct Talk {
    next: [u32; 2],
    windows: &'static [u16],
    offers: [Offer; 2],
    script: Vec<(Way, What)>,
}

impl Talk {
    fn say(&mut self, random: &mut impl Rng, way: Way, flags: u8, length: usize) {
        let (own, peer) = sides(way);
        let acknowledgement = if flags & ACK == 0 { 0 } else { self.next[peer] };
        let options = self.options(random, way, flags);
        self.script.push((
            way,
            What::Segment {
                flags,
                sequence: self.next[own],
                acknowledgement,
                window: *self.windows.choose(random).expect("not empty"),
                options,
                length,
            },
        ));
        let phantom = u32::from(flags & (SYN | FIN) != 0);
        self.next[own] = self.next[own].wrapping_add(length as u32 + phantom);
    }

    /// A SYN's offers; of other segments, at times, timestamps, or acknowledgements of what is ahead.
    fn options(&self, random: &mut impl Rng, way: Way, flags: u8) -> Vec<u8> {
        let (own, peer) = sides(way);
        if flags & SYN != 0 {
            return self.offers[own].options();
        }
        match random.random_range(0..10) {
            0..2 => vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            2..4 if flags & ACK != 0 => {
                let blocks = random.random_range(1..=3);
                let mut options = vec![1, 1, 5, 2 + 8 * blocks];
                for _ in 0..blocks {
                    let left = self.next[peer].wrapping_add(shift(random));
                    options.extend(left.to_be_bytes());
                    options.extend(left.wrapping_add(random.random_range(0..100)).to_be_bytes());
                }
                options
            }
            // Options that end before they should.
            4 => [
                vec![3, 0],
                vec![5, 40, 1, 1],
                vec![1, 1, 1, 5],
                vec![0, 1, 5, 10],
            ]
            .choose(random)
            .expect("not empty")
            .clone(),
            _ => Vec::new(),
        }
    }

    /// Says something again.
    fn again(&mut self, index: usize) {
        let said = self.script[index].clone();
        self.script.push(said);
    }

    /// A segment that carries what the peer has acknowledged, so that it says where it is.
    fn keep_alive(&mut self, random: &mut impl Rng, way: Way) {
        let (own, _) = sides(way);
        let next = self.next[own];
        self.next[own] = next.wrapping_sub(1);
        let length = random.random_range(0..=1);
        self.say(random, way, ACK, length);
        self.next[own] = next;
    }

    /// A segment whose numbers are off, after which the conversation goes on as if it had not been
    /// sent.
    fn stray(&mut self, random: &mut impl Rng, way: Way, flags: u8) {
        let before = self.next;
        let (own, peer) = sides(way);
        match random.random_range(0..4) {
            0 => self.next[own] = before[own].wrapping_add(shift(random)),
            1 => self.next[peer] = before[peer].wrapping_add(shift(random)),
            2 => self.next = [random.random(), random.random()],
            _ => {
                for number in &mut self.next {
                    *number = number.wrapping_add(shift(random));
                }
            }
        }
        let length = if random.random_bool(0.3) {
            random.random_range(0..300)
        } else {
            0
        };
        self.say(random, way, flags, length);
        self.next = before;
    }

    /// A reset where the last segment's acknowledgement says that its sender is.
    fn answer_with_reset(&mut self, way: Way) {
        if let Some((
            _,
            What::Segment {
                acknowledgement, ..
            },
        )) = self.script.last()
        {
            self.script.push((
                way,
                What::Segment {
                    flags: RST,
                    sequence: *acknowledgement,
                    acknowledgement: 0,
                    window: 0,
                    options: Vec::new(),
                    length: 0,
                },
            ));
        }
    }
}

/// Places in [`Talk::next`] of the sender and the receiver.
fn sides(way: Way) -> (usize, usize) {
    match way {
        Way::Forth => (0, 1),
        Way::Back => (1, 0),
    }
}

/// How far off a number is: by as much as is between here and a bound that tracking knows, or by
/// anything.
fn shift(random: &mut impl Rng) -> u32 {
    let by = match random.random_range(0..6) {
        0 => 1,
        1 => random.random_range(1..300),
        2 => 65_000 + random.random_range(0..2_000),
        3 => random.random_range(1..1_000_000),
        4 => 1 << 31,
        _ => random.random(),
    };
    if random.random_bool(0.5) {
        by
    } else {
        0u32.wrapping_sub(by)
    }
}
