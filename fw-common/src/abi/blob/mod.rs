//! The compiled policy: 64-byte cells, in one array of 4 KiB pages a generation. Base chains, and
//! chains stored rule by rule, never straddle a page: one look-up brings a short chain into reach.
//!
//! ```text
//! cell 0            header
//! cells 1 and 2     timeouts
//! cell 3            how refused packets are answered
//! cells 4 and 5     what the chains of raw, mangle and security need ([`gate`])
//! cell 6..          directory: one chain cell per chain; base chains at fixed places
//! then              predicate cells, those of one rule next to each other, effect cells and [`text`]s
//! then, per chain   linear: its rules, in order
//!                   tables: table cells; per table its buckets and its rules, list by list, those
//!                   of longer lists in blocks ([`Block`]); if there are many tables, bitmaps over
//!                   them ([`prune`])
//! then              meta cells (the model itself, for `show`)
//! ```
//! The builder (user space) writes records with `encode`; the datapath reads them through the
//! borrowing views (`Rule`, `Chain`, ...), which cost nothing: each getter is one indexed load.

mod answers;
mod block;
mod chain;
mod effect;
pub mod fact;
pub mod gate;
mod predicate;
pub mod prune;
mod rule;
mod table;
pub mod text;
mod translation;

pub use answers::{AnswerFields, RESET};
pub use block::{Block, BlockFields};
pub use chain::{Chain, ChainFields, Filter, chain_kind};
pub use effect::{Effect, EffectFields, SetAddition, effect_kind, set_change};
pub use predicate::{
    Condition, Predicate, PredicateFields, SET_PLACE, WITHOUT_FLOW, condition, time,
};
pub use prune::{Prune, PruneFields};
pub use rule::{Rule, RuleFields, pack_range, target};
pub use table::{Bucket, HashKey, Table, TableFields};
pub use text::TextFields;
pub use translation::{Translation, TranslationFields};

use super::Family;
use super::pod::pod;

/// 64 bytes: one cache line.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// The words.
    pub w: [u32; 16],
}

pod! { Cell { size: 64, fields: [[u32; 16]] } }

/// Cells in one element of the policy's array: what one look-up brings into reach.
pub const PAGE_CELLS: usize = 64;
/// An element of the policy's array.
pub type Page = [Cell; PAGE_CELLS];
/// Pages that the programs reach without a call into the kernel, as they are in a map of their own
/// besides: header, timeouts, and all of a small policy.
pub const NEAR_PAGES: usize = 8;
/// Longest chain that is stored as it is, within one page.
pub const LINEAR_MAX: u32 = 16;

/// Which page a cell is on, and its place there.
#[inline(always)]
pub const fn place(index: u32) -> (u32, usize) {
    (index / PAGE_CELLS as u32, index as usize % PAGE_CELLS)
}

/// First word of every blob.
pub const MAGIC: u32 = u32::from_be_bytes(*b"fwbp");
/// Raised with every change of a record in this crate.
pub const ABI_VERSION: u32 = 34;
/// Where the header is.
pub const HEADER: u32 = 0;
/// Where the timeouts are: seconds, in the order of [`Timeout`], in two cells.
pub const TIMEOUTS: u32 = 1;
/// Where [`AnswerFields`] are.
pub const ANSWERS: u32 = 3;
/// Where IPv4's [`gate`] cell is; IPv6's follows.
pub const GATES: u32 = 4;
/// Where the zones are that rules name, by their places, two in a word; the zone that all is in unless a rule
/// says otherwise is the first.
pub const ZONES: u32 = 6;
/// How many zones there may be beside that one: as many as a packet's note can tell apart
/// (`datapath::zone`).
pub const MAX_ZONES: usize = 31;
/// Where the chain directory begins.
pub const DIRECTORY: u32 = 7;
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
    /// For the nat chains of IPv4, then of IPv6, PREROUTING first: the counter of the policy of a
    /// chain that has no rules, plus one; zero for any other chain.
    pub empty_nat: [u32; EMPTY_NAT],
    /// What makes local time of the kernel's clock: see [`HeaderFields::clock`].
    pub clock: u32,
}

/// Nat chains of both families.
pub const EMPTY_NAT: usize = 8;

impl HeaderFields {
    /// IPv4 has a nat table: replies may have to be translated.
    pub const NAT4: u32 = 1;
    /// There are rules with LOG or NFLOG.
    pub const LOGS: u32 = 1 << 8;
    /// IPv6 has a nat table.
    pub const NAT6: u32 = 1 << 1;
    /// There are tables besides filter and nat: [`gate`] has cells.
    pub const GATES: u32 = 1 << 4;
    /// A rule asks for the tuples, the status or the age of a packet's connection
    /// (`datapath::connection`).
    pub const CONNECTIONS: u32 = 1 << 6;
    /// A rule asks for IPv6's routing header.
    pub const ROUTING: u32 = 1 << 10;
    /// A rule asks which way answers to a packet would go.
    pub const REVERSE_PATHS: u32 = 1 << 11;
    /// A rule asks by which port of a bridge a packet comes or goes.
    pub const PORTS: u32 = 1 << 12;
    /// Rules put packets in zones.
    pub const ZONES: u32 = 1 << 13;
    /// Flows bear marks that rules set or ask for.
    pub const FLOW_MARKS: u32 = 1 << 9;
    /// What of a packet's flow rules ask for is found once its place is.
    pub const OF_FLOWS: u32 = Self::FLOW_MARKS | Self::CONNECTIONS;
    /// A rule asks for one of [`fact`], or for the sender's link-layer address.
    pub const FACTS: u32 = 1 << 16;
    /// A rule asks of what kind an address is ([`crate::abi::device::address_kind`]).
    pub const ADDRESS_KINDS: u32 = 1 << 7;
    /// A rule asks who sends a packet of this host's.
    pub const OWNER: u32 = 1 << 17;
    /// A rule asks for what is in the transport header, behind the ports.
    pub const TRANSPORT: u32 = 1 << 18;
    /// A rule asks what time it is.
    pub const CLOCK: u32 = 1 << 19;
    /// A rule that packets on their way through may meet asks for the sender's link-layer address.
    pub const LINKS: u32 = 1 << 20;

    /// Packs how many seconds the kernel's TAI clock is ahead of its real-time clock, and how many
    /// minutes its time zone is west of Greenwich (`sys_tz`, kernel/time/time.c).
    pub const fn clock(tai_offset: i16, minutes_west: i16) -> u32 {
        tai_offset as u16 as u32 | (minutes_west as u16 as u32) << 16
    }
    /// TCP segments out of the window are not INVALID (`nf_conntrack_tcp_be_liberal`).
    pub const TCP_LIBERAL: u32 = 1 << 21;
    /// No TCP connection is picked up in the middle (`nf_conntrack_tcp_loose` is 0).
    pub const TCP_NOT_LOOSE: u32 = 1 << 22;
    /// TCP resets need not be in the window (`nf_conntrack_tcp_ignore_invalid_rst`).
    pub const TCP_ANY_RESET: u32 = 1 << 23;
    /// How far up the number is of retransmissions that make a TCP flow's life shorter
    /// (`nf_conntrack_tcp_max_retrans`): the highest eight bits.
    pub const TCP_RETRANSMISSIONS: u32 = 24;

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
        cell.w[7..][..EMPTY_NAT].copy_from_slice(&self.empty_nat);
        cell.w[15] = self.clock;
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
            empty_nat: core::array::from_fn(|chain| cell.w[7 + chain]),
            clock: cell.w[15],
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

    /// See [`HeaderFields::empty_nat`]: that of a chain by its [`BaseChain::nat_place`].
    #[inline(always)]
    pub fn empty_nat(&self, place: usize) -> u32 {
        self.0.w[7 + place]
    }

    /// Seconds that TAI is ahead of UTC, see [`HeaderFields::clock`].
    #[inline(always)]
    pub fn tai_offset(&self) -> i16 {
        self.0.w[15] as i16
    }

    /// Minutes west of Greenwich, see [`HeaderFields::clock`].
    #[inline(always)]
    pub fn minutes_west(&self) -> i16 {
        (self.0.w[15] >> 16) as i16
    }

    /// See [`HeaderFields::features`].
    #[inline(always)]
    pub fn features(&self) -> u32 {
        self.0.w[4]
    }
}

/// Index of a timeout in the timeouts' cells. TCP's states come first, so that the state's number
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
    /// GRE, one way so far.
    Gre,
    /// GRE, both ways.
    GreStream,
    /// SCTP CLOSED. SCTP's states follow one another by their numbers.
    SctpClosed,
    /// SCTP COOKIE_WAIT.
    SctpCookieWait,
    /// SCTP COOKIE_ECHOED.
    SctpCookieEchoed,
    /// SCTP ESTABLISHED.
    SctpEstablished,
    /// SCTP SHUTDOWN_SENT.
    SctpShutdownSent,
    /// SCTP SHUTDOWN_RECD.
    SctpShutdownReceived,
    /// SCTP SHUTDOWN_ACK_SENT.
    SctpShutdownAckSent,
    /// SCTP HEARTBEAT_SENT.
    SctpHeartbeatSent,
}

impl Timeout {
    /// Timeouts in one cell.
    pub const IN_CELL: usize = 16;
}

/// Timeouts in all.
pub const TIMEOUTS_LEN: usize = 2 * Timeout::IN_CELL;

/// netfilter's defaults, in seconds (net/netfilter/nf_conntrack_proto_*.c).
pub const DEFAULT_TIMEOUTS: [u32; TIMEOUTS_LEN] = [
    // TCP
    120, 60, 432_000, 120, 60, 30, 120, 10, 120, 300, 300, // UDP, ICMP, ICMPv6, others, GRE
    30, 120, 30, 30, 600, 30, 180, // SCTP
    10, 3, 3, 210, 3, 3, 3, 30, // none
    0, 0, 0, 0, 0, 0,
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
    /// raw PREROUTING.
    RawPrerouting,
    /// raw OUTPUT.
    RawOutput,
    /// mangle PREROUTING.
    ManglePrerouting,
    /// mangle INPUT.
    MangleInput,
    /// mangle FORWARD.
    MangleForward,
    /// mangle OUTPUT.
    MangleOutput,
    /// mangle POSTROUTING.
    ManglePostrouting,
    /// security INPUT.
    SecurityInput,
    /// security FORWARD.
    SecurityForward,
    /// security OUTPUT.
    SecurityOutput,
}

/// Base chains of one family.
pub const BASE_CHAINS: u32 = 17;
/// The first user chain's id.
pub const FIRST_USER_CHAIN: u32 = 2 * BASE_CHAINS;

impl BaseChain {
    /// The chain's id: its place in the directory.
    #[inline(always)]
    pub const fn id(self, family: Family) -> u32 {
        family as u32 * BASE_CHAINS + self as u32
    }

    /// Whether packets meet the base chain of that id, which is one of this family, where they come in.
    #[inline(always)]
    pub const fn is_where_packets_come_in(id: u32, family: Family) -> bool {
        const COME_IN: u32 = 1 << BaseChain::FilterInput as u32
            | 1 << BaseChain::NatPrerouting as u32
            | 1 << BaseChain::NatInput as u32
            | 1 << BaseChain::RawPrerouting as u32
            | 1 << BaseChain::ManglePrerouting as u32
            | 1 << BaseChain::MangleInput as u32
            | 1 << BaseChain::SecurityInput as u32;
        COME_IN >> (id.wrapping_sub(family as u32 * BASE_CHAINS) & 31) & 1 != 0
    }

    /// A nat chain's place in [`HeaderFields::empty_nat`].
    #[inline(always)]
    pub const fn nat_place(self, family: Family) -> usize {
        let first = Self::NatPrerouting as usize;
        family as usize * (EMPTY_NAT / 2) + (self as usize).saturating_sub(first)
    }
}
