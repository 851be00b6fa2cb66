//! Conditions that a rule's fields cannot hold.

use super::{Cell, pack_range};
use crate::abi::Addr;

/// A condition that the rule's fields cannot hold: negations, port lists, second instances.
/// All of a rule's predicates must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PredicateFields {
    /// Whether the condition is inverted.
    pub not: bool,
    /// The condition.
    pub condition: Condition,
}

/// See [`PredicateFields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A port is in one of up to 15 ranges.
    Ports {
        /// 1 source, 2 destination, 3 either.
        which: u32,
        /// Inclusive; unused places are empty, that is `(1, 0)`.
        ranges: [(u16, u16); 15],
    },
    /// Source address under a mask.
    Source(Addr, Addr),
    /// Destination address under a mask.
    Destination(Addr, Addr),
    /// Input interface fits the pattern of this bit.
    InInterface(u8),
    /// Output interface fits the pattern of this bit.
    OutInterface(u8),
    /// Protocol number.
    Protocol(u8),
    /// TCP flags: `flags & mask == set`.
    TcpFlags {
        /// The flags examined.
        mask: u8,
        /// The flags that must be set.
        set: u8,
    },
    /// Connection state is in the mask.
    CtState(u8),
    /// Direction is original (0) or reply (1).
    CtDirection {
        /// 0 original, 1 reply.
        direction: u8,
        /// What holds for a packet without a flow. xt_conntrack compares the direction only when
        /// there is a flow; without one, `--ctdir` alone is false, and together with `--ctstate`
        /// the state alone decides (`conntrack_mt`, net/netfilter/xt_conntrack.c).
        without_flow: bool,
    },
    /// ICMP type, and code in an inclusive range.
    Icmp {
        /// The type.
        kind: u8,
        /// The codes.
        codes: (u8, u8),
    },
    /// There is credit left, which this takes ([`crate::datapath::limit`]).
    Limit {
        /// What a packet costs.
        cost: u32,
        /// The most credit there can be.
        cap: u32,
    },
    /// The packet is in a set ([`crate::datapath::sets`]).
    InSet {
        /// The set's place.
        place: u32,
        /// How it is asked: bits of [`crate::abi::set::shape`].
        shape: u32,
    },
    /// Source address from the first to the last.
    SourceRange(Addr, Addr),
    /// Destination address from the first to the last.
    DestinationRange(Addr, Addr),
    /// A [`super::fact`] under a mask is from the first to the last.
    Fact {
        /// Which one.
        fact: u32,
        /// The mask.
        mask: u32,
        /// The first and the last value, inclusive.
        range: (u32, u32),
        /// What holds for a packet that has no such thing, whatever `not` says.
        absent: bool,
    },
    /// The link-layer address of the sender.
    LinkSource([u8; 6]),
    /// Every n-th packet, where this holds n - 1, and how many are counted already.
    Nth {
        /// n - 1.
        last: u32,
        /// Packets counted.
        counted: u32,
    },
    /// A random number of 31 bits is below this.
    Chance(u32),
    /// What time it is.
    Time {
        /// [`time`]'s flags.
        flags: u32,
        /// Seconds since 1970, inclusive.
        dates: (u32, u32),
        /// Seconds since midnight, inclusive.
        daytime: (u32, u32),
        /// Bit 1 is Monday.
        weekdays: u32,
        /// Bit 1 is the first.
        monthdays: u32,
    },
    /// TCP has an option of this kind.
    TcpOption(u8),
    /// The list of recent addresses says yes ([`crate::datapath::lists`]).
    Recent {
        /// The list's place.
        place: u32,
        /// Bits of [`crate::abi::list::recent`].
        flags: u32,
        /// How old a time may be that counts, 0 for any.
        seconds: u32,
        /// How many must count.
        hits: u32,
    },
    /// The packet holds a text ([`crate::datapath::search`]).
    Text {
        /// Its first cell.
        first: u32,
        /// Its length and whether letters may be of either case ([`super::text`]).
        flags: u32,
        /// Where it may begin, from the IP header, and before what it must end.
        range: (u32, u32),
    },
    /// More connections of an address are open than this.
    Connlimit {
        /// The place of the rule's list.
        place: u32,
        /// Bits of [`crate::abi::list::connlimit`].
        flags: u32,
        /// How many may be.
        limit: u32,
    },
    /// The bucket of a packet's like has credit left, which this takes.
    Hashlimit {
        /// The place of its list.
        place: u32,
        /// Bits of [`crate::abi::list::hashlimit`].
        flags: u32,
    },
    /// An address of the connection's tuples under a mask.
    CtAddress {
        /// Which one: [`crate::abi::ct::end`].
        end: u32,
        /// The address, masked.
        address: Addr,
        /// The mask.
        mask: Addr,
        /// What holds for a packet without a flow, whatever `not` says: see
        /// [`Condition::CtDirection`].
        without_flow: bool,
    },
    /// A number of the connection's under a mask is from the first to the last.
    CtValue {
        /// Which one: [`crate::abi::ct::asked`].
        number: u32,
        /// The mask.
        mask: u32,
        /// The first and the last value, inclusive.
        range: (u32, u32),
        /// As in [`Condition::CtAddress`].
        without_flow: bool,
    },
}

/// [`Condition::Time`]'s flags.
pub mod time {
    /// In the kernel's time zone, not in UTC.
    pub const LOCAL: u32 = 1;
    /// A daytime that ends on the next day belongs to the day before.
    pub const CONTIGUOUS: u32 = 1 << 1;
}

/// The conditions' numbers, the first word's low byte.
pub mod condition {
    /// [`super::Condition::Ports`].
    pub const PORTS: u32 = 1;
    /// [`super::Condition::Source`].
    pub const SOURCE: u32 = 2;
    /// [`super::Condition::Destination`].
    pub const DESTINATION: u32 = 3;
    /// [`super::Condition::InInterface`].
    pub const IN_INTERFACE: u32 = 4;
    /// [`super::Condition::OutInterface`].
    pub const OUT_INTERFACE: u32 = 5;
    /// [`super::Condition::Protocol`].
    pub const PROTOCOL: u32 = 6;
    /// [`super::Condition::TcpFlags`].
    pub const TCP_FLAGS: u32 = 7;
    /// [`super::Condition::CtState`].
    pub const CT_STATE: u32 = 8;
    /// [`super::Condition::CtDirection`].
    pub const CT_DIRECTION: u32 = 9;
    /// [`super::Condition::Icmp`].
    pub const ICMP: u32 = 10;
    /// [`super::Condition::Limit`]: the cell's last two words are the limit's state, which the
    /// programs write.
    pub const LIMIT: u32 = 11;
    /// [`super::Condition::InSet`].
    pub const IN_SET: u32 = 40;
    /// [`super::Condition::SourceRange`].
    pub const SOURCE_RANGE: u32 = 12;
    /// [`super::Condition::DestinationRange`].
    pub const DESTINATION_RANGE: u32 = 13;
    /// [`super::Condition::Fact`].
    pub const FACT: u32 = 14;
    /// [`super::Condition::LinkSource`].
    pub const LINK_SOURCE: u32 = 15;
    /// [`super::Condition::Nth`]: the last two words are state, as of [`LIMIT`].
    pub const NTH: u32 = 16;
    /// [`super::Condition::Chance`].
    pub const CHANCE: u32 = 17;
    /// [`super::Condition::Time`].
    pub const TIME: u32 = 18;
    /// [`super::Condition::TcpOption`].
    pub const TCP_OPTION: u32 = 19;
    /// [`super::Condition::Recent`].
    pub const RECENT: u32 = 41;
    /// [`super::Condition::Hashlimit`].
    pub const HASHLIMIT: u32 = 42;
    /// [`super::Condition::CtAddress`].
    pub const CT_ADDRESS: u32 = 50;
    /// [`super::Condition::CtValue`].
    pub const CT_VALUE: u32 = 51;
    /// [`super::Condition::Text`].
    pub const TEXT: u32 = 44;
    /// [`super::Condition::Connlimit`].
    pub const CONNLIMIT: u32 = 43;
    /// The last of the conditions that are asked between two turns, of which [`RECENT`] is the first.
    pub const LAST_LIST: u32 = 46;
}

/// The word of a predicate that holds a set's place.
pub const SET_PLACE: usize = 2;

/// The word of a predicate about a packet's connection that says what holds without one.
pub const WITHOUT_FLOW: usize = 15;

impl PredicateFields {
    /// Writes the cell: kind, `not` in bit 8, then the condition's words.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        let kind = match self.condition {
            Condition::Ports { which, ranges } => {
                for (word, range) in cell.w[1..].iter_mut().zip(ranges) {
                    *word = pack_range(range);
                }
                condition::PORTS | which << 16
            }
            Condition::Source(address, mask) => {
                cell.w[1..5].copy_from_slice(&address);
                cell.w[5..9].copy_from_slice(&mask);
                condition::SOURCE
            }
            Condition::Destination(address, mask) => {
                cell.w[1..5].copy_from_slice(&address);
                cell.w[5..9].copy_from_slice(&mask);
                condition::DESTINATION
            }
            Condition::InInterface(bit) => {
                cell.w[1] = bit as u32;
                condition::IN_INTERFACE
            }
            Condition::OutInterface(bit) => {
                cell.w[1] = bit as u32;
                condition::OUT_INTERFACE
            }
            Condition::Protocol(number) => {
                cell.w[1] = number as u32;
                condition::PROTOCOL
            }
            Condition::TcpFlags { mask, set } => {
                cell.w[1] = mask as u32;
                cell.w[2] = set as u32;
                condition::TCP_FLAGS
            }
            Condition::CtState(mask) => {
                cell.w[1] = mask as u32;
                condition::CT_STATE
            }
            Condition::CtDirection {
                direction,
                without_flow,
            } => {
                cell.w[1] = direction as u32;
                cell.w[2] = without_flow as u32;
                condition::CT_DIRECTION
            }
            Condition::Icmp { kind, codes } => {
                cell.w[1] = kind as u32;
                cell.w[2] = codes.0 as u32;
                cell.w[3] = codes.1 as u32;
                condition::ICMP
            }
            Condition::Limit { cost, cap } => {
                // Not next to each other: they would be read, and kept, as one word out of place.
                cell.w[2] = cost;
                cell.w[4] = cap;
                condition::LIMIT
            }
            Condition::InSet { place, shape } => {
                // Apart, as above.
                cell.w[SET_PLACE] = place;
                cell.w[4] = shape;
                condition::IN_SET
            }
            Condition::SourceRange(first, last) => {
                cell.w[1..5].copy_from_slice(&first);
                cell.w[5..9].copy_from_slice(&last);
                condition::SOURCE_RANGE
            }
            Condition::DestinationRange(first, last) => {
                cell.w[1..5].copy_from_slice(&first);
                cell.w[5..9].copy_from_slice(&last);
                condition::DESTINATION_RANGE
            }
            Condition::Fact {
                fact,
                mask,
                range: (first, last),
                absent,
            } => {
                cell.w[1..6].copy_from_slice(&[fact, mask, first, last, absent as u32]);
                condition::FACT
            }
            Condition::LinkSource([a, b, c, d, e, f]) => {
                cell.w[1] = u32::from_be_bytes([a, b, c, d]);
                cell.w[2] = u32::from_be_bytes([0, 0, e, f]);
                condition::LINK_SOURCE
            }
            Condition::Nth { last, counted } => {
                cell.w[1] = last;
                cell.w[14] = counted;
                condition::NTH
            }
            Condition::Chance(below) => {
                cell.w[1] = below;
                condition::CHANCE
            }
            Condition::Time {
                flags,
                dates,
                daytime,
                weekdays,
                monthdays,
            } => {
                cell.w[1..4].copy_from_slice(&[flags, dates.0, dates.1]);
                cell.w[4..8].copy_from_slice(&[daytime.0, daytime.1, weekdays, monthdays]);
                condition::TIME
            }
            Condition::TcpOption(kind) => {
                cell.w[1] = kind as u32;
                condition::TCP_OPTION
            }
            Condition::Recent {
                place,
                flags,
                seconds,
                hits,
            } => {
                // Apart, as above.
                cell.w[SET_PLACE] = place;
                cell.w[4] = flags;
                cell.w[6] = seconds;
                cell.w[8] = hits;
                condition::RECENT
            }
            Condition::Text {
                first,
                flags,
                range: (from, to),
            } => {
                // Where a list has its place, flags, seconds and hits.
                cell.w[SET_PLACE] = first;
                cell.w[4] = flags;
                cell.w[6] = from;
                cell.w[8] = to;
                condition::TEXT
            }
            Condition::Connlimit {
                place,
                flags,
                limit,
            } => {
                cell.w[SET_PLACE] = place;
                cell.w[4] = flags;
                cell.w[8] = limit;
                condition::CONNLIMIT
            }
            Condition::Hashlimit { place, flags } => {
                cell.w[SET_PLACE] = place;
                cell.w[4] = flags;
                condition::HASHLIMIT
            }
            Condition::CtAddress {
                end,
                address,
                mask,
                without_flow,
            } => {
                cell.w[1..5].copy_from_slice(&address);
                cell.w[5..9].copy_from_slice(&mask);
                cell.w[10] = end;
                cell.w[WITHOUT_FLOW] = without_flow as u32;
                condition::CT_ADDRESS
            }
            Condition::CtValue {
                number,
                mask,
                range: (first, last),
                without_flow,
            } => {
                cell.w[1..5].copy_from_slice(&[number, mask, first, last]);
                cell.w[WITHOUT_FLOW] = without_flow as u32;
                condition::CT_VALUE
            }
        };
        cell.w[0] = kind | (self.not as u32) << 8;
        cell
    }
}

/// View of a predicate cell.
#[derive(Clone, Copy)]
pub struct Predicate<'a>(pub &'a Cell);

impl Predicate<'_> {
    /// One of [`condition`].
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        self.0.w[0] & 0xff
    }
    /// Whether the condition is inverted.
    #[inline(always)]
    pub fn not(&self) -> bool {
        self.0.w[0] & 0x100 != 0
    }
}
