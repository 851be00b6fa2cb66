//! Reading a packet's chunks.

use core::ops::ControlFlow;

use crate::MapCell;
use crate::datapath::packet::Packet;
use crate::datapath::scratch::Scratch;
use crate::datapath::stage::{Name, Stage};
use crate::datapath::tables::{Step, Tables};

/// Types of chunks (RFC 9260 3.2).
pub mod chunk {
    /// DATA.
    pub const DATA: u32 = 0;
    /// INIT.
    pub const INIT: u32 = 1;
    /// INIT ACK.
    pub const INIT_ACK: u32 = 2;
    /// SACK.
    pub const SACK: u32 = 3;
    /// HEARTBEAT.
    pub const HEARTBEAT: u32 = 4;
    /// HEARTBEAT ACK.
    pub const HEARTBEAT_ACK: u32 = 5;
    /// ABORT.
    pub const ABORT: u32 = 6;
    /// SHUTDOWN.
    pub const SHUTDOWN: u32 = 7;
    /// SHUTDOWN ACK.
    pub const SHUTDOWN_ACK: u32 = 8;
    /// ERROR.
    pub const ERROR: u32 = 9;
    /// COOKIE ECHO.
    pub const COOKIE_ECHO: u32 = 10;
    /// COOKIE ACK.
    pub const COOKIE_ACK: u32 = 11;
    /// SHUTDOWN COMPLETE.
    pub const SHUTDOWN_COMPLETE: u32 = 14;
}

/// What a packet's chunks say, as far as tracking needs it.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Chunks {
    /// The packet's verification tag.
    pub tag: MapCell<u32>,
    /// A bit for each type that changes states or tags, and for DATA; [`Chunks::BROKEN`],
    /// [`Chunks::OTHERS`].
    pub kinds: MapCell<u32>,
    /// How many places of the list are used.
    pub used: MapCell<u32>,
    /// One of them that was taken keeps nothing alive.
    pub ignored: MapCell<u32>,
    /// How many chunks there are in all.
    count: MapCell<u32>,
    /// Where the next one is.
    at: MapCell<u32>,
    /// Those that change states or tags.
    pub list: [Chunk; Self::MOST as usize],
}

/// A chunk.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Chunk {
    /// The type, and its flags above; [`Chunk::HAS_TAG`].
    word: MapCell<u32>,
    /// The tag that it tells.
    pub tag: MapCell<u32>,
}

impl Chunks {
    /// Chunks of a packet that may change states. A packet with more is taken for broken: nobody sends such,
    /// and what is not looked at must not pass for what it is not.
    pub const MOST: u32 = 8;
    /// Chunks that are looked at; of more, the same is true.
    const READ: u32 = 512;
    /// The packet is cut short, or its chunks cannot be together.
    pub const BROKEN: u32 = 1 << 31;
    /// There is a chunk that changes no state: DATA, SACK, or one of another type.
    pub const OTHERS: u32 = 1 << 30;
    /// They are alone.
    const SINGLE: u32 = 1 << chunk::INIT | 1 << chunk::INIT_ACK | 1 << chunk::SHUTDOWN_COMPLETE;
    /// They come first.
    const FIRST: u32 = 1 << chunk::COOKIE_ECHO | 1 << chunk::COOKIE_ACK;
    /// They change states or tags.
    const MOVING: u32 = Self::SINGLE
        | Self::FIRST
        | 1 << chunk::HEARTBEAT
        | 1 << chunk::HEARTBEAT_ACK
        | 1 << chunk::ABORT
        | 1 << chunk::SHUTDOWN
        | 1 << chunk::SHUTDOWN_ACK
        | 1 << chunk::ERROR;
}

impl Chunk {
    /// It is long enough to tell a tag.
    const HAS_TAG: u32 = 1 << 16;

    /// One of [`chunk`].
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        self.word.get() & 0xff
    }

    /// Whether it tells the tag that its sender wants.
    #[inline(always)]
    pub fn has_tag(&self) -> bool {
        self.word.get() & Self::HAS_TAG != 0
    }

    /// The T bit: the packet bears the tag that its receiver's packets bore.
    #[inline(always)]
    pub fn is_reflected(&self) -> bool {
        self.word.get() >> 8 & 1 != 0
    }
}

/// Reads the chunks of the packet in the scratch space (`do_basic_checks`).
pub struct ReadChunks;

impl Stage for ReadChunks {
    const NAME: Name = Name::ReadChunks;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, _: u32) -> u32 {
        let begin = scratch.headers.l4 as u32;
        let end = begin + scratch.headers.l4_len as u32;
        let chunks = &scratch.chunks;
        chunks.used.set(0);
        chunks.count.set(0);
        chunks.kinds.set(Chunks::BROKEN);
        let header = packet.load::<12>(begin);
        let Some(header) = header.filter(|_| end >= begin + 12) else {
            return 0;
        };
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        chunks.tag.set(word(4));
        chunks.kinds.set(0);
        chunks.at.set(begin + 12);
        let mut reading = Reading {
            packet,
            chunks,
            end,
        };
        tables.run(Chunks::READ, &mut reading);
        if chunks.count.get() == 0 || chunks.count.get() >= Chunks::READ {
            chunks.kinds.set(Chunks::BROKEN);
        }
        0
    }
}

/// A packet whose chunks are read.
struct Reading<'a, P> {
    packet: &'a P,
    chunks: &'a Chunks,
    /// Where it ends.
    end: u32,
}

impl<P: Packet> Step for Reading<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        if take_chunk(self.packet, self.chunks, self.end) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

/// Takes the next chunk; false if there is none, or it cannot be there.
#[inline(always)]
fn take_chunk<P: Packet>(packet: &P, chunks: &Chunks, end: u32) -> bool {
    let at = chunks.at.get();
    if at + 4 > end {
        return false;
    }
    let Some(head) = packet.load::<4>(at) else {
        return false;
    };
    let kind = head[0] as u32;
    let own = if kind < 16 { 1 << kind } else { 0 };
    let length = u16::from_be_bytes([head[2], head[3]]) as u32;
    let (before, count) = (chunks.kinds.get(), chunks.count.get());
    let alone = (before | own) & Chunks::SINGLE | own & Chunks::FIRST;
    if length == 0 || alone != 0 && count != 0 {
        chunks.kinds.set(before | Chunks::BROKEN);
        return false;
    }
    let others = if own & Chunks::MOVING == 0 {
        Chunks::OTHERS
    } else {
        0
    };
    chunks.kinds.set(before | own | others);
    chunks.count.set(count + 1);
    chunks.at.set(at + ((length + 3) & !3));
    if others != 0 {
        return true;
    }
    let used = chunks.used.get();
    if used >= Chunks::MOST {
        chunks.kinds.set(Chunks::BROKEN);
        return false;
    }
    let chunk = &chunks.list[used as usize % Chunks::MOST as usize];
    // `struct sctp_inithdr`, of which the tag is the first word.
    let tag = if at + 4 + 16 <= end {
        packet.load::<4>(at + 4)
    } else {
        None
    };
    let has_tag = if tag.is_some() { Chunk::HAS_TAG } else { 0 };
    chunk.word.set(kind | (head[1] as u32) << 8 | has_tag);
    chunk.tag.set(u32::from_be_bytes(tag.unwrap_or_default()));
    chunks.used.set(used + 1);
    true
}
