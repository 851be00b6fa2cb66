//! What is known of a packet's flow, and the note by which one hook hands it to the next.

use super::Found;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::{Addr, ct};
use crate::datapath::rewrite::Endpoint;

/// A packet's place in its flow.
///
/// It holds no reference to the flow: LLVM stores references that pass through memory piecemeal,
/// which makes them numbers to the verifier ("R0 invalid mem access 'scalar'").
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Tracked {
    /// What the source has to become where sources are translated, if [`Tracked::translates`] says
    /// so.
    pub source: Endpoint,
    /// The same for the destination.
    pub destination: Endpoint,
    /// The destination as the flow's opener has it: of a packet that opens a flow whose destination
    /// is translated.
    pub original: Endpoint,
    /// [`Tracked::SOURCE`] and [`Tracked::DESTINATION`].
    pub translates: u8,
    /// Which of the names of [`FlowKey::TRANSIT`] the packet bears on its way.
    pub transit: u8,
    /// An ICMP error about a packet that opens a flow, which may yet be translated.
    pub unsettled: bool,
    /// It needs one, as its destination is translated and its flow is not stored.
    pub lacks_name: bool,
    /// Connection state: one bit of [`ct`], and the virtual ones.
    pub ct: u8,
    /// 0 original, 1 reply, 2 no flow.
    pub direction: u8,
    /// The packet opens a flow that is not stored yet.
    pub opens: bool,
    /// The packet is an ICMP error about the flow.
    pub error: bool,
    /// A later fragment of a datagram that opened its flow: it meets the nat chains again, for
    /// their counters.
    pub replayed: bool,
    /// A later fragment of a datagram that was dropped as its flow could not be stored.
    pub refused: bool,
    /// Packets to count: none for a later fragment.
    pub packets: u8,
    /// The flow was found in a table.
    pub stored: bool,
    /// If so, its mark ([`super::flow_mark`]).
    pub mark: u32,
    /// The identifier that an echo gets which opens a flow, if the label says [`ct::RENAMED`].
    pub identifier: u16,
}

impl Tracked {
    /// The source is to be translated.
    pub const SOURCE: u8 = 1;
    /// The destination is to be translated.
    pub const DESTINATION: u8 = 2;
    /// Netfilter translates the destination behind this hook, or has translated what there was.
    pub const FOREIGN: u8 = 4;

    /// Whether the source is to be translated.
    #[inline(always)]
    pub fn translates_source(&self) -> bool {
        self.translates & Self::SOURCE != 0
    }

    /// Whether the destination is to be translated.
    #[inline(always)]
    pub fn translates_destination(&self) -> bool {
        self.translates & Self::DESTINATION != 0
    }

    /// Whether netfilter sees to the translation.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        self.translates & Self::FOREIGN != 0
    }

    /// The source is to become this.
    #[inline(always)]
    pub fn set_source(&mut self, address: &Addr, port: u16) {
        self.source.set(address, port);
        self.translates |= Self::SOURCE;
    }

    /// The destination is to become this.
    #[inline(always)]
    pub fn set_destination(&mut self, address: &Addr, port: u16) {
        self.destination.set(address, port);
        self.translates |= Self::DESTINATION;
    }

    /// Whether the note says that something is still to be translated when the packet leaves: the
    /// source of what goes the original way, if the flow's source is translated; that of a reply,
    /// if its destination is.
    #[inline(always)]
    pub fn has_source_ahead(&self) -> bool {
        match self.direction {
            0 => self.ct & (ct::SNAT | ct::RENAMED) != 0,
            1 => self.ct & ct::DNAT != 0,
            _ => false,
        }
    }

    /// Translates only what a label says that the flow translates: what was found may be another flow
    /// that has one of the packet's names.
    #[inline(always)]
    pub fn keep_labelled(&mut self, label: u8) {
        let opener = ct::SNAT | ct::RENAMED;
        let (source, destination) = if self.direction == 1 {
            (ct::DNAT, opener)
        } else {
            (opener, ct::DNAT)
        };
        if label & source == 0 {
            self.translates &= !Self::SOURCE;
        }
        if label & destination == 0 {
            self.translates &= !Self::DESTINATION;
        }
    }

    /// Starts over: a packet that belongs to no flow.
    #[inline(always)]
    pub fn set_without_flow(&mut self, ct: u8) {
        self.translates = 0;
        self.transit = 0;
        self.lacks_name = false;
        self.unsettled = false;
        self.ct = ct;
        self.direction = NO_FLOW;
        self.opens = false;
        self.error = false;
        self.replayed = false;
        self.refused = false;
        self.packets = 1;
        self.stored = false;
        self.mark = 0;
        self.identifier = 0;
    }

    /// The flow that was found is another one's.
    #[inline(always)]
    pub fn forget_record(&mut self) {
        self.stored = false;
        self.mark = 0;
    }

    /// A packet that opens a flow.
    #[inline(always)]
    pub(super) fn set_opening(&mut self) {
        self.set_without_flow(ct::NEW);
        self.direction = 0;
        self.opens = true;
    }

    /// A packet of a flow that is found, under its own key: it becomes the mirror image of what the flow's packets of
    /// the other direction come as (`nf_nat_packet`, net/netfilter/nf_nat_core.c).
    #[inline(always)]
    pub(super) fn set_in_flow(&mut self, found: &Found<'_>, key: &FlowKey, state: u8) {
        let flow = found.flow;
        let status = flow.status.get();
        self.set_without_flow(state);
        self.direction = found.direction();
        self.stored = true;
        self.mark = flow.mark.get();
        if status & Flow::TRANSLATED == 0 {
            return;
        }
        self.transit = flow.transit();
        if found.is_under_alias() {
            self.set_reply(status, key);
            if status & Flow::FOREIGN != 0 {
                self.translates = 0;
            }
        } else if status & (Flow::FOREIGN | Flow::DNAT) == Flow::FOREIGN | Flow::DNAT {
            self.ct |= nat_labels(status);
            self.translates = Self::FOREIGN;
        } else if !found.is_reply() {
            self.set_original(flow, status);
        } else {
            self.ct |= nat_labels(status);
        }
    }

    /// A reply to a translated flow: both ends are those of its key.
    #[inline(always)]
    pub fn set_reply(&mut self, status: u32, key: &FlowKey) {
        self.ct |= nat_labels(status);
        let low = status & Flow::LOW_OPENED != 0;
        if status & Flow::SNAT != 0 {
            let (address, port) = if low {
                (&key.low, key.low_port())
            } else {
                (&key.high, key.high_port())
            };
            self.set_destination(address, port);
        }
        if status & Flow::DNAT != 0 {
            let (address, port) = if low {
                (&key.high, key.high_port())
            } else {
                (&key.low, key.low_port())
            };
            self.set_source(address, port);
        }
    }

    /// A packet of a translated flow in the original direction: both ends are those of the alias.
    #[inline(always)]
    pub fn set_original(&mut self, flow: &Flow, status: u32) {
        self.ct |= nat_labels(status);
        if status & Flow::SNAT != 0 {
            let (address, port) = flow.translated_source();
            self.set_source(address, port);
        }
        if status & Flow::DNAT != 0 {
            if status & Flow::OTHER_LOW != 0 {
                self.set_destination(&flow.other.high, flow.other.high_port());
            } else {
                self.set_destination(&flow.other.low, flow.other.low_port());
            }
        }
    }

    /// A packet of a known flow is NEW until something came back (`resolve_normal_ct`).
    #[inline(always)]
    pub(super) fn set_label(&mut self, found: &Found<'_>, key: &FlowKey) {
        let answered = found.flow.status.get() & Flow::SEEN_REPLY != 0;
        let state = if found.is_reply() || answered {
            ct::ESTABLISHED
        } else {
            ct::NEW
        };
        self.set_in_flow(found, key, state);
    }

    /// The label as ingress hands it to egress in the packet's note.
    #[inline(always)]
    pub fn note(&self) -> u16 {
        let opens = if self.opens { NOTE_OPENS } else { 0 };
        let transit = (self.transit as u16 & 3) << NOTE_TRANSIT;
        NOTE_SEEN | transit | opens | (self.direction as u16) << 8 | self.ct as u16
    }

    /// Takes the label from a note.
    #[inline(always)]
    pub fn set_note(&mut self, note: u16) {
        self.set_without_flow(0);
        self.take_label(note);
    }

    /// Takes the label from a note and leaves the rest.
    #[inline(always)]
    pub fn take_label(&mut self, note: u16) {
        self.ct = note as u8;
        self.direction = (note >> 8) as u8 & 3;
    }
}

/// [`Tracked::direction`] of a packet without a flow.
pub const NO_FLOW: u8 = 2;

/// The label's bits for what of a flow is translated.
#[inline(always)]
pub fn nat_labels(status: u32) -> u8 {
    let source = (status / Flow::SNAT) as u8 & 1;
    let destination = (status / Flow::DNAT) as u8 & 1;
    let renamed = (status / Flow::RENAMED) as u8 & source;
    ((source ^ renamed) * ct::SNAT) | (destination * ct::DNAT) | (renamed * ct::RENAMED)
}

/// Where in a note [`Tracked::transit`] is.
pub const NOTE_TRANSIT: u16 = 11;

/// In a note: the packet opens a flow.
pub const NOTE_OPENS: u16 = 1 << 10;

/// In the note of a packet without a flow: it is an ICMP error about one that is not tracked on purpose. That is all
/// that it ever carries (`nf_conntrack_attach`, net/netfilter/nf_conntrack_core.c).
pub const NOTE_ABOUT_UNTRACKED: u16 = NOTE_OPENS | (NO_FLOW as u16) << 8;

/// Set in every note, to tell it from a packet that no ingress program saw.
pub const NOTE_SEEN: u16 = 1 << 15;

/// The note of a packet that the fast path sent on: egress has nothing to do.
pub const NOTE_SENT_ON: u16 = NOTE_SEEN | 1 << 14;
