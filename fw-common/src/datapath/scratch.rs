//! Room for what a packet's way needs, outside the BPF stack.

use super::classify::{Query, Walk};
use super::connection::Connection;
use super::conntrack::{NOTE_SEEN, Tracked, nat_labels};
use super::facts::Facts;
use super::flow_mark::FlowMark;
use super::forward::Sending;
use super::fragment::Outcomes;
use super::header::{Headers, Icmp, Part};
use super::limit::Asked;
use super::lists;
use super::nat::Draft;
use super::packet::Owner;
use super::quoted::Quoted;
use super::reject::Answer;
use super::rewrite::Endpoint;
use super::routing;
use super::sctp::Chunks;
use super::search::Search;
use super::segment_size;
use super::sets::Question;
use super::sources::Sources;
use super::tcp::Segment;
use super::tuple::{Lookup, Tuple};
use crate::MapCell;
use crate::abi::blob::{Filter, Header, HeaderFields};
use crate::abi::ct;
use crate::abi::device::Device;
use crate::abi::event::Event;
use crate::abi::flow::Flow;
use crate::abi::maps::place_of;
use crate::abi::stat::Stat;

/// Lent by the caller for one packet: in the kernel, the value of a per-CPU map.
///
/// The BPF stack has 512 bytes for the whole chain of calls. And the verifier tracks every number
/// on the stack and explores all that follows once for each combination; what is here it does not
/// track. So each stage leaves its result here, and the next is explored once.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// The record of the interface that the hook is on.
    pub device: Device,
    /// The packet's headers.
    pub headers: Headers,
    /// The packet's place in its flow.
    pub tracked: Tracked,
    /// [`HeaderFields::features`] of the running policy.
    pub features: u32,
    /// The word in `ACTIVE` that says which policy judges the packet.
    pub active: u32,
    /// Its generation's number is odd.
    pub odd: bool,
    /// Why a stage had the packet dropped.
    pub reason: Stat,
    /// Its way through FORWARD may be cached, or is and may be taken.
    pub fast: bool,
    /// [`Device::flags`] of the interface that it arrived by.
    pub arrival_flags: u32,
    /// How it is sent on by the fast path.
    pub sending: Sending,
    /// What is sent instead of it, if it is refused.
    pub answer: Answer,
    /// The interface that the fast path just sent a packet out of; 0 once it was seen there.
    pub sent_on: u32,
    /// At egress: the interface that it came in by, 0 if this host made it.
    pub came_by: u32,
    /// At a bridge's ingress: the port that handed the packet over; or 0.
    pub port: u32,
    /// That port, of a packet that a bridge's program has switched after all; or 0.
    pub switching: u32,
    /// The port that the last frame went up through on this CPU.
    pub came_through: u32,
    /// The note that it bears; at ingress, on loopback only.
    pub note: u32,
    /// The place of the packet's zone in the policy's table of them, 0 for the zone that all is in unless a rule
    /// says otherwise.
    pub zone_place: u32,
    /// The last packet on this CPU that came in, and [`Scratch::zone_place`] of it, if the policy has zones.
    pub arrived: Tuple,
    /// See `arrived`.
    pub arrived_place: u32,
    /// A rule said that the packet is not to be tracked.
    pub untracked: bool,
    /// The packet was made on this host.
    pub made_here: bool,
    /// Replies to translated flows may come here.
    pub aliases: bool,
    /// The last packet on this CPU that went on to be forwarded.
    pub transit: Tuple,
    /// Its direction, as in [`Tracked::direction`].
    pub transit_direction: u8,
    /// It opens its flow.
    pub transit_opens: bool,
    /// The port of a bridge that handed it over; or 0.
    pub transit_port: u32,
    /// [`ct::SNAT`] and its siblings if its flow is translated; [`ct::UNTRACKED`] if it has none on purpose.
    pub transit_label: u8,
    /// If its destination was translated: what it was before.
    pub transit_outside: Endpoint,
    /// What the destination was that was translated last.
    pub outside: Endpoint,
    /// The mark of the packet's flow.
    pub mark: FlowMark,
    /// The packet's connection, if the policy asks for more of it than its state.
    pub connection: Connection,
    /// The option that a rule lowers.
    pub segment_size: segment_size::Place,
    /// The search for a routing header.
    pub routing: routing::Search,
    /// The flow being looked up.
    pub lookup: Lookup,
    /// The packet's chunks of SCTP.
    pub chunks: Chunks,
    /// The packet's TCP segment.
    pub segment: Segment,
    /// Its options, as far as they matter.
    pub options: [[u8; 4]; 16],
    /// Which byte of them is next.
    pub options_at: MapCell<u32>,
    /// How many are left.
    pub options_left: MapCell<u32>,
    /// The packet that an ICMP error quotes.
    pub quoted: Quoted,
    /// What chains are asked.
    pub query: Query,
    /// What rules ask besides, if the policy has such rules.
    pub facts: Facts,
    /// Who sends the packet, if the policy asks.
    pub owner: Owner,
    /// Where the walk through the chains is.
    pub walk: Walk,
    /// What limits said to the datagram.
    pub outcomes: Outcomes,
    /// The limit that a rule asks.
    pub limit: Asked,
    /// The list that a rule asks.
    pub list: lists::Asked,
    /// The text that a rule looks for.
    pub search: Search,
    /// The set that a rule asks.
    pub question: Question,
    /// The flow that the packet opens.
    pub draft: Draft,
    /// The link-layer header of [`Scratch::transit`] as [`Event::link`] has it, if anything is logged.
    pub transit_link: [u8; 16],
    /// What is said about the packet.
    pub event: Event,
    /// TCP flags that rules asked about.
    pub flags_asked: MapCell<u32>,
    /// The translations that the packet's source has.
    pub sources: Sources,
    /// See [`Scratch::forget`].
    pub cell: MapCell<u32>,
}

impl Scratch {
    /// Takes what the policy's header says.
    #[inline(always)]
    pub fn begin(&mut self, header: Header<'_>) {
        self.features = header.features();
        self.odd = header.generation() & 1 != 0;
    }

    /// The place of the policy that judges the packet.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        place_of(self.active)
    }

    /// Whether the packet's family has a nat table.
    #[inline(always)]
    pub fn has_nat(&self) -> bool {
        self.features & (HeaderFields::NAT4 << self.headers.family as u32) != 0
    }

    /// Whether the packet traverses nat chains: those that open flows do, and later fragments of
    /// those, for the counters.
    ///
    /// Asked anew each time: the verifier would explore the rest once for each known answer.
    #[inline(always)]
    pub fn meets_nat(&self) -> bool {
        (self.tracked.opens || self.tracked.replayed) && self.has_nat()
    }

    /// Whether the packet is an ICMP query that opens a flow.
    #[inline(always)]
    pub fn opens_echo(&self) -> bool {
        self.headers.icmp as u8 == Icmp::Request as u8 && self.tracked.opens
    }

    /// The patterns that an interface fits, in the generation that judges the packet.
    #[inline(always)]
    pub fn patterns(&self, device: &Device) -> u64 {
        if self.odd {
            device.patterns[1]
        } else {
            device.patterns[0]
        }
    }

    /// Prepares the question that chains are asked about a packet that is not tracked yet: it is as one
    /// without a flow (`conntrack_mt`, net/netfilter/xt_conntrack.c), unless a note tells its flow.
    #[inline(always)]
    pub fn ask_untracked(&mut self, note: u16, in_patterns: u64, out_patterns: u64) {
        if note & NOTE_SEEN != 0 {
            self.tracked.set_note(note);
        } else {
            self.tracked.set_without_flow(ct::INVALID);
        }
        self.note = note as u32;
        self.ask(in_patterns, out_patterns);
    }

    /// Prepares the question that chains are asked about the packet.
    #[inline(always)]
    pub fn ask(&mut self, in_patterns: u64, out_patterns: u64) {
        self.query = Query {
            in_patterns,
            out_patterns,
            ct: self.tracked.ct,
            direction: self.tracked.direction,
            packets: self.tracked.packets,
            class: Filter::class_of(self.headers.key.protocol as u8),
        };
    }

    /// Keeps the packet in mind while the stack forwards it: an ICMP error that the kernel makes
    /// about it belongs to its flow.
    #[inline(never)]
    pub fn note_transit(&mut self) {
        self.transit.set(&self.headers);
        self.transit_direction = self.tracked.direction;
        self.transit_opens = self.tracked.opens;
        self.transit_port = self.port;
        self.transit_outside = self.outside;
        self.transit_label = self.tracked.ct & (ct::UNTRACKED | ct::SNAT | ct::DNAT | ct::RENAMED);
    }

    /// Keeps the destination in mind, which is about to be translated.
    #[inline(always)]
    pub fn note_outside(&mut self) {
        self.outside.address = self.headers.key.destination;
        self.outside.port = self.headers.flow_ports as u16;
    }

    /// Whether the packet in hand is the one kept in mind, or of the same flow and direction.
    #[inline(always)]
    pub fn is_transit(&self) -> bool {
        let (headers, transit) = (&self.headers, &self.transit);
        headers.flow_ports == transit.ports
            && headers.key.protocol as u8 == transit.protocol
            && headers.key.source == transit.source
            && headers.key.destination == transit.destination
    }

    /// The same of a packet whose headers were just read: a later fragment bears no ports.
    #[inline(always)]
    pub fn may_be_transit(&self) -> bool {
        let (headers, transit) = (&self.headers, &self.transit);
        (headers.part as u8 == Part::Later as u8 || headers.flow_ports == transit.ports)
            && headers.key.protocol as u8 == transit.protocol
            && headers.key.source == transit.source
            && headers.key.destination == transit.destination
    }

    /// Has the packet translated as the flow that it just opened.
    #[inline(always)]
    pub fn take_translation(&mut self) {
        let flow = &self.draft.flow;
        let status = flow.status.get();
        if status & Flow::SNAT != 0 {
            let (address, port) = flow.translated_source();
            self.tracked.set_source(address, port);
            self.tracked.ct = self.tracked.ct & !ct::RENAMED | nat_labels(status);
        }
    }

    /// Notes that a rule asks about TCP flags.
    #[inline(always)]
    pub fn ask_flags(&self, mask: u32) {
        self.flags_asked.set(self.flags_asked.get() | mask & 0xff);
    }

    /// The same number, of which the verifier knows nothing any more.
    #[inline(always)]
    pub fn forget(&self, number: u32) -> u32 {
        self.cell.set(number);
        self.cell.get()
    }
}
