//! `-m frag`: IPv6's fragment header.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::policy::model::Negatable;

/// `-m frag`: of IPv6's fragment header, whatever is said. Datagrams are put together before any rule sees
/// them, a single fragment that is all of one included (`nf_ct_frag6_gather`,
/// net/ipv6/netfilter/nf_conntrack_reasm.c): no packet has such a header by then, and nothing holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frag {
    /// `--fragid`, inclusive.
    pub id: Option<Negatable<(u32, u32)>>,
    /// `--fraglen`.
    pub length: Option<Negatable<u32>>,
    /// `--fragres`.
    pub reserved: bool,
    /// `--fragfirst`.
    pub first: bool,
    /// `--fragmore`, which excludes `last`.
    pub more: bool,
    /// `--fraglast`.
    pub last: bool,
}

impl Frag {
    /// Writes the options as `frag_save` does (extensions/libip6t_frag.c).
    pub(super) fn write(&self, f: &mut String) -> fmt::Result {
        let bang = |not: bool| if not { "! " } else { "" };
        match self.id {
            Some(Negatable {
                not,
                value: (one, last),
            }) if one == last => {
                write!(f, " {}--fragid {one}", bang(not))?;
            }
            Some(Negatable {
                not,
                value: (first, last),
            }) => {
                write!(f, " {}--fragid {first}:{last}", bang(not))?;
            }
            None => {}
        }
        if let Some(Negatable { not, value }) = self.length {
            write!(f, " {}--fraglen {value}", bang(not))?;
        }
        let flags = [
            (self.reserved, "res"),
            (self.first, "first"),
            (self.more, "more"),
            (self.last, "last"),
        ];
        for (_, name) in flags.iter().filter(|(set, _)| *set) {
            write!(f, " --frag{name}")?;
        }
        Ok(())
    }
}
