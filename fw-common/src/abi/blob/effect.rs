//! What targets do that let the walk go on.

use super::Cell;
use crate::abi::event::Event;

/// The effect of a rule with [`super::target::EFFECT`], whose argument is its cell's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectFields {
    /// LOG. What is written, and how, is the daemon's business, which finds the rule in the model.
    Log,
    /// NFLOG.
    Nflog {
        /// How much of the packet is asked for (`--nflog-size`).
        size: Option<u32>,
    },
    /// SET.
    Sets {
        /// An element is added.
        add: Option<SetAddition>,
        /// And one deleted: the set's place, and how it is asked ([`crate::abi::set::shape`]).
        delete: Option<(u32, u32)>,
    },
    /// The bits of the mask are zeroed in the packet's mark, then those of the value flipped.
    Mark {
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// The same in the type of service.
    Service {
        /// The value.
        value: u8,
        /// The mask.
        mask: u8,
    },
    /// The hop count changes (`datapath::change`).
    Hops {
        /// How.
        mode: u32,
        /// By how much.
        value: u8,
    },
    /// The packet is not tracked.
    Untracked,
    /// The packet's flow is in this zone, which has this place in [`super::ZONES`].
    Zone {
        /// The zone.
        zone: u16,
        /// Its place.
        place: u32,
    },
    /// A checksum that was left to the card is finished (`datapath::fill`).
    FillSum,
    /// TCP's maximum segment size is lowered to this (`datapath::segment_size`).
    SegmentSize(u32),
    /// The mark of the packet's flow, or the packet's from it (`datapath::flow_mark`).
    FlowMark {
        /// What is changed.
        mode: u32,
        /// The value, or the mask of the packet's mark.
        packet: u32,
        /// The mask of the flow's mark.
        flow: u32,
        /// What is written is shifted to the right, and by how many bits.
        shift: (bool, u8),
    },
}

/// What SET adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAddition {
    /// The set's place.
    pub place: u32,
    /// Bits of [`crate::abi::set::shape`].
    pub shape: u32,
    /// An element that is there already gets a new time.
    pub exist: bool,
    /// Seconds that the element stays, 0 for ever; nothing for the set's own time.
    pub timeout: Option<u32>,
    /// Addresses or ports that the set may have.
    pub range: (u32, u32),
}

/// The effects' numbers, the first word's low byte. 10 to 19 change packets and flows, 20 to 29
/// change sets.
pub mod effect_kind {
    /// [`super::EffectFields::Log`].
    pub const LOG: u32 = 1;
    /// [`super::EffectFields::Nflog`].
    pub const NFLOG: u32 = 2;
    /// [`super::EffectFields::Mark`].
    pub const MARK: u32 = 10;
    /// [`super::EffectFields::Service`].
    pub const SERVICE: u32 = 11;
    /// [`super::EffectFields::Hops`].
    pub const HOPS: u32 = 12;
    /// [`super::EffectFields::Untracked`].
    pub const UNTRACKED: u32 = 13;
    /// [`super::EffectFields::FlowMark`].
    pub const FLOW_MARK: u32 = 14;
    /// [`super::EffectFields::SegmentSize`].
    pub const SEGMENT_SIZE: u32 = 15;
    /// [`super::EffectFields::FillSum`].
    pub const FILL_SUM: u32 = 16;
    /// [`super::EffectFields::Zone`].
    pub const ZONE: u32 = 17;
    /// [`super::EffectFields::Sets`].
    pub const SETS: u32 = 20;
}

/// Bits of an effect's first word, of [`effect_kind::SETS`].
pub mod set_change {
    /// There is something to add.
    pub const ADD: u32 = 1 << 8;
    /// There is something to delete.
    pub const DELETE: u32 = 1 << 9;
    /// See [`super::SetAddition::exist`].
    pub const EXIST: u32 = 1 << 10;
    /// The sixth word holds seconds.
    pub const TIMEOUT: u32 = 1 << 11;
}

impl EffectFields {
    /// Writes the cell: kind, then the effect's words.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        cell.w[0] = match *self {
            EffectFields::Log => {
                cell.w[1] = Event::PACKET as u32;
                effect_kind::LOG
            }
            EffectFields::Nflog { size } => {
                let room = Event::PACKET as u32;
                cell.w[1] = size.map_or(room, |size| size.min(room));
                effect_kind::NFLOG
            }
            // Not next to each other, as in the predicate of a limit.
            EffectFields::Sets { add, delete } => {
                let mut first = effect_kind::SETS;
                if let Some(add) = add {
                    first |= set_change::ADD;
                    first |= if add.exist { set_change::EXIST } else { 0 };
                    cell.w[2] = add.place;
                    cell.w[4] = add.shape;
                    if let Some(seconds) = add.timeout {
                        first |= set_change::TIMEOUT;
                        cell.w[6] = seconds;
                    }
                    (cell.w[8], cell.w[10]) = add.range;
                }
                if let Some((place, shape)) = delete {
                    first |= set_change::DELETE;
                    cell.w[12] = place;
                    cell.w[14] = shape;
                }
                first
            }
            EffectFields::Mark { value, mask } => {
                cell.w[1] = value;
                cell.w[2] = mask;
                effect_kind::MARK
            }
            EffectFields::Service { value, mask } => {
                cell.w[1] = value as u32;
                cell.w[2] = mask as u32;
                effect_kind::SERVICE
            }
            EffectFields::Hops { mode, value } => {
                cell.w[1] = mode;
                cell.w[2] = value as u32;
                effect_kind::HOPS
            }
            EffectFields::Untracked => effect_kind::UNTRACKED,
            EffectFields::Zone { zone, place } => {
                cell.w[1] = zone.into();
                cell.w[2] = place;
                effect_kind::ZONE
            }
            EffectFields::FillSum => effect_kind::FILL_SUM,
            EffectFields::SegmentSize(size) => {
                cell.w[1] = size;
                effect_kind::SEGMENT_SIZE
            }
            EffectFields::FlowMark {
                mode,
                packet,
                flow,
                shift: (right, bits),
            } => {
                cell.w[1] = mode;
                cell.w[3] = packet;
                cell.w[4] = flow;
                cell.w[5] = right.into();
                cell.w[6] = bits.into();
                effect_kind::FLOW_MARK
            }
        };
        cell
    }
}

/// View of an effect cell.
#[derive(Clone, Copy)]
pub struct Effect<'a>(pub &'a Cell);

impl Effect<'_> {
    /// One of [`effect_kind`].
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        self.0.w[0] & 0xff
    }
}
