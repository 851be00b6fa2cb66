//! What a rule with LOG or NFLOG says about a packet: an element of the ring buffer `EVENTS`.

use super::pod::pod_words;

/// A packet that met such a rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the coarse monotonic clock, in nanoseconds.
    pub time: u64,
    /// The policy's generation.
    pub generation: u32,
    /// The rule: the slot of its counter.
    pub slot: u32,
    /// Index of the interface that the packet came in by; 0 where the hook knows none.
    pub in_device: u32,
    /// Index of the interface that it leaves by; 0 where the hook knows none.
    pub out_device: u32,
    /// The packet's mark.
    pub mark: u32,
    /// Id of the base chain, which is the hook ([`super::blob::BaseChain::id`]).
    pub base: u32,
    /// Bytes of layer 3.
    pub bytes: u32,
    /// Bytes of it that are in [`Event::packet`].
    pub taken: u32,
    /// 1 if it is known who sends the packet.
    pub owned: u32,
    /// The user who does.
    pub user: u32,
    /// And the group.
    pub group: u32,
    /// Index of the port of a bridge that handed the packet over; 0 if none did.
    pub in_port: u32,
    /// Index of the port by which the bridge lets it out; 0 where it is another's business.
    pub out_port: u32,
    /// Nothing.
    pub reserved: u32,
    /// The link-layer header that the packet came in with, and its length in the last two bytes: 0 if
    /// it has none, or it is not known any more.
    pub link: [u8; 16],
    /// The packet's beginning, from its IP header.
    pub packet: [u8; Event::PACKET],
}

impl Event {
    /// How much of a packet there is room for.
    pub const PACKET: usize = 256;

    /// The link-layer header.
    pub fn link(&self) -> &[u8] {
        let length = usize::from(u16::from_ne_bytes([self.link[14], self.link[15]]));
        &self.link[..length.min(14)]
    }

    /// The packet's beginning.
    pub fn packet(&self) -> &[u8] {
        &self.packet[..(self.taken as usize).min(Self::PACKET)]
    }
}

impl Default for Event {
    fn default() -> Self {
        Self {
            time: 0,
            generation: 0,
            slot: 0,
            in_device: 0,
            out_device: 0,
            mark: 0,
            base: 0,
            bytes: 0,
            taken: 0,
            owned: 0,
            user: 0,
            group: 0,
            in_port: 0,
            out_port: 0,
            reserved: 0,
            link: [0; 16],
            packet: [0; Self::PACKET],
        }
    }
}

pod_words! {
    Event {
        words: EVENT_WORDS,
        fields: [u64, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, [u8; 16], [u8; 256]],
    }
}

/// [`Event`] as plain words: what user space reads from the ring buffer.
pub const EVENT_WORDS: usize = 42;
