//! CONNMARK.

use super::targets::TargetDraft;
use super::{Argument, BOTH, OptionRow, ReadOption, Support, TargetRow, Value};
use crate::policy::change::{Change, FlowMark, MarkShift};
use crate::policy::save::packet_values as values;

/// CONNMARK while its options are being read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FlowMarkDraft {
    operation: Option<Operation>,
    both: Option<u32>,
    packet: Option<u32>,
    flow: Option<u32>,
    shift: Option<MarkShift>,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Set { value: u32, mask: u32 },
    Save,
    Restore,
}

impl FlowMarkDraft {
    const NONE: Self = Self {
        operation: None,
        both: None,
        packet: None,
        flow: None,
        shift: None,
    };

    /// The finished target, or what is missing or superfluous.
    pub fn finish(self) -> Result<Change, &'static str> {
        let Some(operation) = self.operation else {
            return Err(
                "--set-mark, --set-xmark, --and-mark, --or-mark, --xor-mark, --save-mark or \
                        --restore-mark",
            );
        };
        let named = self.packet.is_some() || self.flow.is_some();
        if self.both.is_some() && named {
            return Err("either --mask, or --nfmask and --ctmask");
        }
        let packet = self.packet.or(self.both).unwrap_or(u32::MAX);
        let flow = self.flow.or(self.both).unwrap_or(u32::MAX);
        let mark = match operation {
            Operation::Set { .. } if named || self.both.is_some() => {
                return Err(
                    "the mask behind the mark, as in --set-xmark 0x1/0xff: --mask, --nfmask and \
                            --ctmask are for --save-mark and --restore-mark",
                );
            }
            Operation::Set { value, mask } => FlowMark::Set { value, mask },
            Operation::Save => FlowMark::Save { packet, flow },
            Operation::Restore => FlowMark::Restore { packet, flow },
        };
        Ok(Change::FlowMark {
            mark,
            shift: self.shift.filter(|shift| shift.bits != 0),
        })
    }
}

/// An option: names, arguments, and what it does to the draft.
macro_rules! option {
    ($names:expr, $arguments:literal, |$draft:ident, $argument:ident| $read:expr) => {
        draft_option!(
            TargetDraft::FlowMark(FlowMarkDraft),
            $names,
            $arguments,
            false,
            |$draft, $argument| $read
        )
    };
}

fn set(draft: &mut FlowMarkDraft, argument: &Argument<'_>, value: u32, mask: u32) -> Value<()> {
    argument.once(&mut draft.operation, Operation::Set { value, mask })
}

fn shift(draft: &mut FlowMarkDraft, argument: &Argument<'_>, right: bool) -> Value<()> {
    let bits = values::up_to(&argument.words[0], 31)? as u8;
    let shift = MarkShift { right, bits };
    argument.once(&mut draft.shift, shift)
}

pub(crate) const TARGETS: &[TargetRow] = &[TargetRow {
    name: "CONNMARK",
    families: BOTH,
    support: Support::Yes,
    note: "In every table; in raw a packet has no flow yet. `fwbpf flows` shows marks, and the first \
           load takes over those of the kernel's connections.",
    start: Some(TargetDraft::FlowMark(FlowMarkDraft::NONE)),
    tables: &[],
    options: &[
        option!(&["set-mark"], 1, |draft, argument| {
            let (value, mask) = values::mark(&argument.words[0])?;
            set(draft, argument, value, value | mask)
        }),
        option!(&["set-xmark"], 1, |draft, argument| {
            let (value, mask) = values::mark(&argument.words[0])?;
            set(draft, argument, value, mask)
        }),
        option!(&["and-mark"], 1, |draft, argument| {
            let bits = values::number32(&argument.words[0])?;
            set(draft, argument, 0, !bits)
        }),
        option!(&["or-mark"], 1, |draft, argument| {
            let bits = values::number32(&argument.words[0])?;
            set(draft, argument, bits, bits)
        }),
        option!(&["xor-mark"], 1, |draft, argument| {
            let bits = values::number32(&argument.words[0])?;
            set(draft, argument, bits, 0)
        }),
        option!(&["save-mark"], 0, |draft, argument| argument
            .once(&mut draft.operation, Operation::Save)),
        option!(&["restore-mark"], 0, |draft, argument| argument
            .once(&mut draft.operation, Operation::Restore)),
        option!(&["mask"], 1, |draft, argument| {
            let mask = values::number32(&argument.words[0])?;
            argument.once(&mut draft.both, mask)
        }),
        option!(&["nfmask"], 1, |draft, argument| {
            let mask = values::number32(&argument.words[0])?;
            argument.once(&mut draft.packet, mask)
        }),
        option!(&["ctmask"], 1, |draft, argument| {
            let mask = values::number32(&argument.words[0])?;
            argument.once(&mut draft.flow, mask)
        }),
        option!(&["left-shift-mark"], 1, |draft, argument| shift(
            draft, argument, false
        )),
        option!(&["right-shift-mark"], 1, |draft, argument| shift(
            draft, argument, true
        )),
    ],
}];
