//! The options that iptables itself has, apart from those of matches and targets.

/// An option of iptables itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    Append,
    Insert,
    Policy,
    NewChain,
    Flush,
    DeleteChain,
    Zero,
    Source,
    Destination,
    Protocol,
    InInterface,
    OutInterface,
    Match,
    Jump,
    Goto,
    SetCounters,
    Ipv4,
    Ipv6,
    /// `-t`, which iptables-restore refuses.
    Table,
    /// `-w`, `-n` and others that mean nothing in a file.
    OutOfPlace,
    /// Commands that change rules set before: iptables-restore takes them, fwbpf does not.
    Edit,
    Fragment,
}

impl Core {
    /// Whether the option says what to do with a chain.
    pub fn is_command(self) -> bool {
        use Core::{Append, DeleteChain, Edit, Flush, Insert, NewChain, Policy, Zero};
        matches!(
            self,
            Append | Insert | Policy | NewChain | Flush | DeleteChain | Zero | Edit
        )
    }

    /// Whether `!` may stand before it.
    pub fn is_negatable(self) -> bool {
        use Core::{Destination, Fragment, InInterface, OutInterface, Protocol, Source};
        matches!(
            self,
            Source | Destination | Protocol | InInterface | OutInterface | Fragment
        )
    }
}

/// Letter, long names, option.
type Row = (char, &'static [&'static str], Core);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ('A', &["append"], Core::Append),
    ('I', &["insert"], Core::Insert),
    ('P', &["policy"], Core::Policy),
    ('N', &["new-chain"], Core::NewChain),
    ('F', &["flush"], Core::Flush),
    ('X', &["delete-chain"], Core::DeleteChain),
    ('Z', &["zero"], Core::Zero),
    ('D', &["delete"], Core::Edit),
    ('C', &["check"], Core::Edit),
    ('R', &["replace"], Core::Edit),
    ('E', &["rename-chain"], Core::Edit),
    ('L', &["list"], Core::Edit),
    ('S', &["list-rules"], Core::Edit),
    ('s', &["source", "src"], Core::Source),
    ('d', &["destination", "dst"], Core::Destination),
    ('p', &["protocol", "proto"], Core::Protocol),
    ('i', &["in-interface"], Core::InInterface),
    ('o', &["out-interface"], Core::OutInterface),
    ('m', &["match"], Core::Match),
    ('j', &["jump"], Core::Jump),
    ('g', &["goto"], Core::Goto),
    ('c', &["set-counters"], Core::SetCounters),
    ('4', &["ipv4"], Core::Ipv4),
    ('6', &["ipv6"], Core::Ipv6),
    ('t', &["table"], Core::Table),
    ('f', &["fragments"], Core::Fragment),
    ('v', &["verbose"], Core::OutOfPlace),
    ('n', &["numeric"], Core::OutOfPlace),
    ('x', &["exact"], Core::OutOfPlace),
    ('w', &["wait"], Core::OutOfPlace),
    ('W', &["wait-interval"], Core::OutOfPlace),
    ('V', &["version"], Core::OutOfPlace),
    ('h', &["help"], Core::OutOfPlace),
    ('M', &["modprobe"], Core::OutOfPlace),
];

/// The option of a letter.
pub(crate) fn by_letter(letter: char) -> Option<Core> {
    ROWS.iter().find(|row| row.0 == letter).map(|row| row.2)
}

/// Every long name with its option.
pub(crate) fn long_names() -> impl Iterator<Item = (&'static str, Core)> {
    ROWS.iter()
        .flat_map(|row| row.1.iter().map(|name| (*name, row.2)))
}
