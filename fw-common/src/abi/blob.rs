//! The compiled policy: one array of 64-byte cells, one array a generation.
//!
//! ```text
//! cell 0            header
//! cell 1            timeouts
//! cell 2..          directory: one chain cell per chain; base chains at fixed places
//! then              predicate cells, those of one rule next to each other
//! then, per chain   linear: its rules, in order
//!                   tables: table cells; per table its buckets and its rules, list by list
//! then              meta cells (the model itself, for `show`)
//! ```
//! The builder (user space) writes records with `encode`; the datapath reads them through the
//! borrowing views (`Rule`, `Chain`, ...), which cost nothing: each getter is one indexed load.

use super::pod::pod;
use super::{Addr, Family};

/// 64 bytes: one cache line.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// The words.
    pub w: [u32; 16],
}

pod! { Cell { size: 64, fields: [[u32; 16]] } }

/// First word of every blob.
pub const MAGIC: u32 = u32::from_be_bytes(*b"fwbp");
/// Raised with every change of a record in this crate.
pub const ABI_VERSION: u32 = 1;
/// Where the header is.
pub const HEADER: u32 = 0;
/// Where the timeouts are: seconds, in the order of [`Timeout`].
pub const TIMEOUTS: u32 = 1;
/// Where the chain directory begins.
pub const DIRECTORY: u32 = 2;
/// How deep jumps may nest.
pub const MAX_DEPTH: u32 = 128;
/// Interface patterns that one policy may name (bit 0 of the word stands for "any").
pub const MAX_PATTERNS: usize = 63;

/// What cell 0 says of the whole policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderFields {
    /// Generation number, from 1.
    pub generation: u32,
    /// Number of chain cells.
    pub chains: u32,
    /// [`HeaderFields::NAT4`] and its siblings.
    pub features: u32,
    /// First cell of the meta data.
    pub meta: u32,
    /// Length of the meta data in bytes.
    pub meta_bytes: u32,
}

impl HeaderFields {
    /// IPv4 has a nat table: replies may have to be translated.
    pub const NAT4: u32 = 1;
    /// IPv6 has a nat table.
    pub const NAT6: u32 = 1 << 1;

    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        cell.w[..7].copy_from_slice(&[
            MAGIC,
            ABI_VERSION,
            self.generation,
            self.chains,
            self.features,
            self.meta,
            self.meta_bytes,
        ]);
        cell
    }

    /// Reads the cell; nothing if it is no header of this version.
    pub fn decode(cell: &Cell) -> Option<Self> {
        (cell.w[0] == MAGIC && cell.w[1] == ABI_VERSION).then(|| Self {
            generation: cell.w[2],
            chains: cell.w[3],
            features: cell.w[4],
            meta: cell.w[5],
            meta_bytes: cell.w[6],
        })
    }
}

/// View of the header.
#[derive(Clone, Copy)]
pub struct Header<'a>(pub &'a Cell);

impl Header<'_> {
    /// Generation number.
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        self.0.w[2]
    }

    /// Whether this family has a nat table.
    #[inline(always)]
    pub fn has_nat(&self, family: Family) -> bool {
        self.0.w[4] & (HeaderFields::NAT4 << family as u32) != 0
    }
}

/// Index of a timeout in the timeouts cell. TCP's states come first, so that the state's number
/// less one is its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Timeout {
    /// TCP SYN_SENT.
    SynSent = 0,
    /// TCP SYN_RECV.
    SynRecv,
    /// TCP ESTABLISHED.
    Established,
    /// TCP FIN_WAIT.
    FinWait,
    /// TCP CLOSE_WAIT.
    CloseWait,
    /// TCP LAST_ACK.
    LastAck,
    /// TCP TIME_WAIT.
    TimeWait,
    /// TCP CLOSE.
    Close,
    /// TCP SYN_SENT2.
    SynSent2,
    /// TCP with retransmissions that nobody acknowledges.
    Retransmission,
    /// TCP with unacknowledged data.
    Unacknowledged,
    /// UDP, one way so far.
    Udp,
    /// UDP, both ways.
    UdpStream,
    /// ICMP queries.
    Icmp,
    /// ICMPv6 queries.
    Icmpv6,
    /// Everything else.
    Generic,
}

/// netfilter's defaults, in seconds (net/netfilter/nf_conntrack_proto_*.c).
pub const DEFAULT_TIMEOUTS: [u32; 16] = [
    120, 60, 432_000, 120, 60, 30, 120, 10, 120, 300, 300, 30, 120, 30, 30, 600,
];

/// The base chains, in the directory's order. IPv4's come first, then IPv6's, then user chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BaseChain {
    /// filter INPUT.
    FilterInput = 0,
    /// filter FORWARD.
    FilterForward,
    /// filter OUTPUT.
    FilterOutput,
    /// nat PREROUTING.
    NatPrerouting,
    /// nat INPUT.
    NatInput,
    /// nat OUTPUT.
    NatOutput,
    /// nat POSTROUTING.
    NatPostrouting,
}

/// Base chains of one family.
pub const BASE_CHAINS: u32 = 7;
/// The first user chain's id.
pub const FIRST_USER_CHAIN: u32 = 2 * BASE_CHAINS;

impl BaseChain {
    /// The chain's id: its place in the directory.
    #[inline(always)]
    pub const fn id(self, family: Family) -> u32 {
        family as u32 * BASE_CHAINS + self as u32
    }
}

/// How a chain is stored.
pub mod chain_kind {
    /// No such chain: its table is not loaded, and the hook lets the packet go on.
    pub const ABSENT: u32 = 0;
    /// Rules in order, [`super::ChainFields::stride`] cells each.
    pub const LINEAR: u32 = 1;
    /// Masked-hash tables, ascending by smallest rule index.
    pub const TABLES: u32 = 2;
}

/// A chain's directory cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainFields {
    /// One of [`chain_kind`].
    pub kind: u32,
    /// First rule cell, or first table cell.
    pub first: u32,
    /// Number of rules (linear) or of tables.
    pub count: u32,
    /// Cells from one rule to the next, when linear: 1 for IPv4, 2 for IPv6.
    pub stride: u32,
    /// Base chains: [`Chain::ACCEPT`] or [`Chain::DROP`]; user chains: 0.
    pub policy: u32,
    /// Counter slot of the policy.
    pub policy_slot: u32,
}

impl ChainFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        cell.w[..6].copy_from_slice(&[
            self.kind,
            self.first,
            self.count,
            self.stride,
            self.policy,
            self.policy_slot,
        ]);
        cell
    }
}

/// View of a chain's directory cell.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a Cell);

impl Chain<'_> {
    /// The policy ACCEPT.
    pub const ACCEPT: u32 = 1;
    /// The policy DROP.
    pub const DROP: u32 = 2;

    /// One of [`chain_kind`].
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        self.0.w[0]
    }
    /// See [`ChainFields::first`].
    #[inline(always)]
    pub fn first(&self) -> u32 {
        self.0.w[1]
    }
    /// See [`ChainFields::count`].
    #[inline(always)]
    pub fn count(&self) -> u32 {
        self.0.w[2]
    }
    /// See [`ChainFields::stride`].
    #[inline(always)]
    pub fn stride(&self) -> u32 {
        self.0.w[3]
    }
    /// See [`ChainFields::policy`].
    #[inline(always)]
    pub fn policy(&self) -> u32 {
        self.0.w[4]
    }
    /// See [`ChainFields::policy_slot`].
    #[inline(always)]
    pub fn policy_slot(&self) -> u32 {
        self.0.w[5]
    }
}

/// A masked-hash table: rules whose hashed fields agree under these masks share a bucket list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFields {
    /// Source address mask.
    pub source_mask: Addr,
    /// Destination address mask.
    pub destination_mask: Addr,
    /// Ports: source in the high half.
    pub ports_mask: u32,
    /// 0 or 0xff.
    pub protocol_mask: u32,
    /// First bucket cell.
    pub buckets: u32,
    /// Number of buckets, a power of two, less one.
    pub bucket_mask: u32,
    /// Chosen by the builder so that no bucket overflows.
    pub seed: u32,
    /// Smallest rule index in the table.
    pub min_index: u32,
}

impl TableFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let (s, d) = (self.source_mask, self.destination_mask);
        Cell {
            w: [
                s[0],
                s[1],
                s[2],
                s[3],
                d[0],
                d[1],
                d[2],
                d[3],
                self.ports_mask,
                self.protocol_mask,
                self.buckets,
                self.bucket_mask,
                self.seed,
                self.min_index,
                0,
                0,
            ],
        }
    }
}

/// View of a table cell.
#[derive(Clone, Copy)]
pub struct Table<'a>(pub &'a Cell);

impl Table<'_> {
    /// See [`TableFields::min_index`].
    #[inline(always)]
    pub fn min_index(&self) -> u32 {
        self.0.w[13]
    }

    /// Where a packet's rules are in this table: the bucket cell and the tag to look for in it.
    #[inline(always)]
    pub fn locate(&self, key: &HashKey, v6: bool) -> (u32, u32) {
        let w = &self.0.w;
        let mut masked = HashKey {
            source: [key.source[0] & w[0], 0, 0, 0],
            destination: [key.destination[0] & w[4], 0, 0, 0],
            ports: key.ports & w[8],
            protocol: key.protocol & w[9],
        };
        if v6 {
            masked.source[1] = key.source[1] & w[1];
            masked.source[2] = key.source[2] & w[2];
            masked.source[3] = key.source[3] & w[3];
            masked.destination[1] = key.destination[1] & w[5];
            masked.destination[2] = key.destination[2] & w[6];
            masked.destination[3] = key.destination[3] & w[7];
        }
        let hash = masked.hash(w[12], v6);
        let tag = (hash >> 32) as u32 | 1;
        (w[10].wrapping_add(hash as u32 & w[11]), tag)
    }
}

/// The fields that tables hash. The builder hashes a rule's masked values with the same function
/// that the datapath hashes a packet's with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HashKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port (ICMP: type) in the high half, destination port (ICMP: code) in the low.
    pub ports: u32,
    /// Protocol number.
    pub protocol: u32,
}

impl HashKey {
    /// 64 well-mixed bits: multiply-and-fold rounds over two words at a time.
    #[inline(always)]
    pub fn hash(&self, seed: u32, v6: bool) -> u64 {
        let mut hash = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash = mix(hash, self.source[0], self.destination[0]);
        hash = mix(hash, self.ports, self.protocol);
        if v6 {
            hash = mix(hash, self.source[1], self.destination[1]);
            hash = mix(hash, self.source[2], self.destination[2]);
            hash = mix(hash, self.source[3], self.destination[3]);
        }
        hash ^ (hash >> 29)
    }
}

#[inline(always)]
fn mix(hash: u64, high: u32, low: u32) -> u64 {
    let word = (high as u64) << 32 | low as u64;
    let product = (hash ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    product ^ (product >> 32)
}

/// A bucket: up to eight lists, found by tag.
#[derive(Clone, Copy)]
pub struct Bucket<'a>(pub &'a Cell);

impl Bucket<'_> {
    /// Lists in one bucket.
    pub const WAYS: usize = 8;

    /// First rule cell of the list with this tag, or 0. Tags in a bucket are distinct (the
    /// builder sees to it), so the eight compares need no branch: at most one contributes.
    #[inline(always)]
    pub fn find(&self, tag: u32) -> u32 {
        let w = &self.0.w;
        way(w[0], w[8], tag)
            | way(w[1], w[9], tag)
            | way(w[2], w[10], tag)
            | way(w[3], w[11], tag)
            | way(w[4], w[12], tag)
            | way(w[5], w[13], tag)
            | way(w[6], w[14], tag)
            | way(w[7], w[15], tag)
    }
}

#[inline(always)]
fn way(tag_here: u32, first: u32, tag: u32) -> u32 {
    let difference = tag_here ^ tag;
    let differs = (difference | difference.wrapping_neg()) >> 31;
    first & differs.wrapping_sub(1)
}

/// What a rule does.
pub mod target {
    /// Count and go on.
    pub const CONTINUE: u32 = 0;
    /// ACCEPT.
    pub const ACCEPT: u32 = 1;
    /// DROP.
    pub const DROP: u32 = 2;
    /// RETURN.
    pub const RETURN: u32 = 3;
    /// Jump to the chain in the argument.
    pub const JUMP: u32 = 4;
    /// Go to the chain in the argument: RETURN from there skips this chain.
    pub const GOTO: u32 = 5;
    /// MASQUERADE: the argument is the port range ([`super::pack_range`]) or 0 for any port.
    pub const MASQUERADE: u32 = 6;
    /// MASQUERADE with a random port, never the original one first.
    pub const MASQUERADE_RANDOM: u32 = 7;
}

/// A compiled rule: one cell, and a second for IPv6's further address words. What does not fit the
/// fields is in predicate cells, looked at only after the fields match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleFields {
    /// Source address, masked.
    pub source: Addr,
    /// Source mask.
    pub source_mask: Addr,
    /// Destination address, masked.
    pub destination: Addr,
    /// Destination mask.
    pub destination_mask: Addr,
    /// Source ports (ICMP: types), inclusive.
    pub source_ports: (u16, u16),
    /// Destination ports (ICMP: codes), inclusive.
    pub destination_ports: (u16, u16),
    /// Protocol, or `None` for any.
    pub protocol: Option<u8>,
    /// Connection states that match (bits of [`super::ct`]); 0xff for any.
    pub ct_mask: u8,
    /// TCP flags examined.
    pub tcp_mask: u8,
    /// TCP flags that must be set.
    pub tcp_set: u8,
    /// Bit of the pattern that the input interface must fit; 0 for any.
    pub in_pattern: u8,
    /// Bit of the pattern that the output interface must fit; 0 for any.
    pub out_pattern: u8,
    /// Place in the chain, from 0.
    pub index: u32,
    /// Next rule cell of the bucket list, or 0. Ascending by index.
    pub next: u32,
    /// One of [`target`].
    pub target: u32,
    /// Chain id or port range.
    pub argument: u32,
    /// Counter slot.
    pub slot: u32,
    /// First predicate cell.
    pub predicates: u32,
    /// Number of predicate cells.
    pub predicate_count: u32,
}

impl Default for RuleFields {
    /// Matches everything and does nothing.
    fn default() -> Self {
        Self {
            source: [0; 4],
            source_mask: [0; 4],
            destination: [0; 4],
            destination_mask: [0; 4],
            source_ports: (0, u16::MAX),
            destination_ports: (0, u16::MAX),
            protocol: None,
            ct_mask: 0xff,
            tcp_mask: 0,
            tcp_set: 0,
            in_pattern: 0,
            out_pattern: 0,
            index: 0,
            next: 0,
            target: target::CONTINUE,
            argument: 0,
            slot: 0,
            predicates: 0,
            predicate_count: 0,
        }
    }
}

impl RuleFields {
    /// Writes the cell, and the second one that IPv6 rules have right after it.
    pub fn encode(&self) -> [Cell; 2] {
        let protocol = match self.protocol {
            Some(number) => number as u32 | 0xff00,
            None => 0,
        };
        let (s, sm, d, dm) = (
            self.source,
            self.source_mask,
            self.destination,
            self.destination_mask,
        );
        let first = Cell {
            w: [
                s[0],
                sm[0],
                d[0],
                dm[0],
                pack_range(self.source_ports),
                pack_range(self.destination_ports),
                protocol | (self.ct_mask as u32) << 16,
                self.tcp_mask as u32
                    | (self.tcp_set as u32) << 8
                    | (self.in_pattern as u32) << 16
                    | (self.out_pattern as u32) << 24,
                self.index,
                self.next,
                self.target,
                self.slot,
                self.predicates,
                self.predicate_count,
                self.argument,
                0,
            ],
        };
        let second = Cell {
            w: [
                s[1], s[2], s[3], sm[1], sm[2], sm[3], d[1], d[2], d[3], dm[1], dm[2], dm[3], 0, 0,
                0, 0,
            ],
        };
        [first, second]
    }
}

/// An inclusive range as one word: the first in the low half.
pub const fn pack_range((first, last): (u16, u16)) -> u32 {
    first as u32 | (last as u32) << 16
}

/// View of a rule's first cell. How it is compared is `datapath::classify`'s business.
#[derive(Clone, Copy)]
pub struct Rule<'a>(pub &'a Cell);

impl Rule<'_> {
    /// See [`RuleFields::index`].
    #[inline(always)]
    pub fn index(&self) -> u32 {
        self.0.w[8]
    }
    /// See [`RuleFields::next`].
    #[inline(always)]
    pub fn next(&self) -> u32 {
        self.0.w[9]
    }
    /// See [`RuleFields::target`].
    #[inline(always)]
    pub fn target(&self) -> u32 {
        self.0.w[10]
    }
    /// See [`RuleFields::slot`].
    #[inline(always)]
    pub fn slot(&self) -> u32 {
        self.0.w[11]
    }
    /// See [`RuleFields::predicates`].
    #[inline(always)]
    pub fn predicates(&self) -> u32 {
        self.0.w[12]
    }
    /// See [`RuleFields::predicate_count`].
    #[inline(always)]
    pub fn predicate_count(&self) -> u32 {
        self.0.w[13]
    }
    /// See [`RuleFields::argument`].
    #[inline(always)]
    pub fn argument(&self) -> u32 {
        self.0.w[14]
    }
}

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
}

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
