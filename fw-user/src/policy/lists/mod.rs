//! Lists: what `-m recent` and its like remember of addresses, as rules name them.

#[cfg(feature = "testing")]
pub(crate) mod arbitrary;
mod hashlimit;
mod print;

use std::net::IpAddr;

use fw_common::abi::Addr;
use fw_common::abi::list::{ListShape, recent};
use fw_common::abi::set::MASKS;
use serde::{Deserialize, Serialize};

use super::model::{Family, Match, Origin, Policy, Ruleset, Side};
use crate::addr;
pub use hashlimit::{Hashlimit, Rate};

/// A match that keeps a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListMatch {
    /// `-m recent`.
    Recent(Recent),
    /// `-m hashlimit`.
    Hashlimit(Hashlimit),
    /// `-m connlimit`.
    Connlimit(Connlimit),
}

/// `-m connlimit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connlimit {
    /// `--connlimit-above`: more connections than this; else so many at most.
    pub above: bool,
    /// How many.
    pub limit: u32,
    /// `--connlimit-mask`: the bits of an address that count.
    pub bits: u8,
    /// `--connlimit-saddr` or `--connlimit-daddr`.
    pub side: Side,
    /// Which of the policy's it is: each keeps a list of its own. [`Policy::gather_lists`] counts.
    pub number: u32,
}

impl Connlimit {
    /// Addresses and connections, together, that one rule's list has room for.
    pub const CELLS: u32 = 1 << 16;
}

/// `-m recent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    /// `!` before what is asked.
    pub not: bool,
    /// What is asked.
    pub question: Question,
    /// `--seconds`: only packets count that are no older; 0 where it is not given.
    pub seconds: u32,
    /// `--reap`.
    pub reap: bool,
    /// `--hitcount`: so many packets, 0 where it is not given.
    pub hits: u32,
    /// `--rttl`.
    pub hops: bool,
    /// `--name`.
    pub name: String,
    /// `--mask`.
    pub mask: IpAddr,
    /// `--rsource` or `--rdest`.
    pub side: Side,
}

/// What `-m recent` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// `--set`.
    Set,
    /// `--rcheck`.
    Check,
    /// `--update`.
    Update,
    /// `--remove`.
    Remove,
}

impl Recent {
    /// The name of the list of a rule that names none.
    pub const NAME: &str = "DEFAULT";
    /// Entries of a list: xt_recent's `ip_list_tot` where nobody says otherwise.
    pub const ENTRIES: u32 = 100;
    /// The most that `--hitcount` may ask for (`XT_RECENT_MAX_NSTAMPS`, net/netfilter/xt_recent.c; 255 before
    /// Linux 6.11).
    pub const HITS_MAX: u32 = 65_535;

    /// How many times an entry keeps for this rule (`recent_mt_check`, net/netfilter/xt_recent.c).
    const fn times(&self) -> u32 {
        match self.hits {
            0 => 32,
            hits => hits.next_power_of_two(),
        }
    }

    /// The mask as lists have it: IPv4's leaves alone what IPv4's addresses do not have.
    fn words(&self) -> Addr {
        let [first, rest @ ..] = addr::to_abi(self.mask);
        match self.mask {
            IpAddr::V4(_) => [first, u32::MAX, u32::MAX, u32::MAX],
            IpAddr::V6(_) => [first, rest[0], rest[1], rest[2]],
        }
    }

    /// What the datapath is asked: bits of [`recent`].
    pub fn flags(&self) -> u32 {
        let question = match self.question {
            Question::Set => recent::SET,
            Question::Check => recent::CHECK,
            Question::Update => recent::UPDATE,
            Question::Remove => recent::REMOVE,
        };
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        question
            | bit(self.side == Side::Destination, recent::DESTINATION)
            | bit(self.hops, recent::HOPS)
            | bit(self.reap, recent::REAP)
    }
}

/// A list that rules share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListDefinition {
    /// The name that rules know it by.
    pub name: String,
    /// What it remembers.
    pub kind: ListKind,
    /// Its place among the kernel's maps. Whoever loads the policy chooses it.
    pub place: u32,
    /// It is in the kernel already, and stays as it is.
    #[serde(skip)]
    pub kept: bool,
    /// The first rule that names it.
    pub origin: Origin,
}

/// What a list remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListKind {
    /// When addresses were seen.
    Recent {
        /// How many addresses there may be.
        capacity: u32,
        /// How many times are kept of each.
        times: u32,
        /// The bits of an address that count.
        mask: Addr,
    },
    /// Buckets of credit.
    Hashlimit {
        /// The IP version: tables of one name are two.
        family: Family,
        /// The first rule's limit.
        limit: Hashlimit,
    },
    /// Connections, of the rule with this number.
    Connlimit {
        /// See [`Connlimit::number`].
        number: u32,
        /// The bits of an address that count.
        bits: u8,
    },
}

impl ListDefinition {
    /// What its map is like.
    pub fn shape(&self) -> ListShape {
        match &self.kind {
            ListKind::Recent {
                capacity,
                times,
                mask,
            } => ListShape::recent(*capacity, *times, *mask),
            ListKind::Hashlimit { limit, .. } => limit.shape(),
            ListKind::Connlimit { bits, .. } => {
                ListShape::connlimit(Connlimit::CELLS, MASKS[usize::from((*bits).min(128))])
            }
        }
    }

    /// Whether it remembers when addresses were seen.
    pub const fn is_recent(&self) -> bool {
        matches!(self.kind, ListKind::Recent { .. })
    }

    /// Goes on with what another one remembers, if that is of the same name and kind and has room
    /// enough.
    pub fn go_on(&mut self, before: &Self) -> bool {
        let same = match (&self.kind, &before.kind) {
            (
                ListKind::Recent {
                    capacity,
                    times,
                    mask,
                },
                ListKind::Recent {
                    capacity: room,
                    times: kept,
                    mask: counted,
                },
            ) => capacity == room && mask == counted && times <= kept,
            (
                ListKind::Hashlimit { family, limit },
                ListKind::Hashlimit {
                    family: version,
                    limit: running,
                },
            ) => family == version && limit.shares_table(running),
            _ => false,
        };
        let goes_on = same && self.name == before.name;
        if goes_on {
            self.kind = before.kind.clone();
            self.place = before.place;
        }
        goes_on
    }

    /// Whether a match asks it.
    fn is_asked_by(&self, asked: &ListMatch, version: Family) -> bool {
        match (asked, &self.kind) {
            (ListMatch::Recent(asked), ListKind::Recent { .. }) => asked.name == self.name,
            (ListMatch::Hashlimit(asked), ListKind::Hashlimit { family, .. }) => {
                asked.name == self.name && *family == version
            }
            (ListMatch::Connlimit(asked), ListKind::Connlimit { number, .. }) => {
                asked.number == *number
            }
            _ => false,
        }
    }

    /// Takes another rule's wishes into account, or says what they contradict.
    fn agree(&mut self, asked: &ListMatch) -> Result<(), &'static str> {
        match (asked, &mut self.kind) {
            (ListMatch::Recent(asked), ListKind::Recent { times, mask, .. }) => {
                if *mask != asked.words() {
                    return Err("another `--mask`");
                }
                *times = asked.times().max(*times);
            }
            (ListMatch::Hashlimit(asked), ListKind::Hashlimit { limit, .. })
                if !limit.shares_table(asked) =>
            {
                return Err("other numbers");
            }
            _ => {}
        }
        Ok(())
    }
}

impl ListMatch {
    /// The name of the list.
    fn name(&self) -> &str {
        match self {
            Self::Recent(recent) => &recent.name,
            Self::Hashlimit(limit) => &limit.name,
            Self::Connlimit(_) => "connlimit",
        }
    }

    /// What its list remembers, as far as this rule tells.
    fn kind(&self, family: Family) -> ListKind {
        match self {
            Self::Recent(recent) => ListKind::Recent {
                capacity: Recent::ENTRIES,
                times: recent.times(),
                mask: recent.words(),
            },
            Self::Hashlimit(limit) => ListKind::Hashlimit {
                family,
                limit: limit.clone(),
            },
            Self::Connlimit(limit) => ListKind::Connlimit {
                number: limit.number,
                bits: limit.bits,
            },
        }
    }
}

/// Two rules that want different things of one list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The rule that disagrees with one before.
    pub origin: Origin,
    /// The list.
    pub name: String,
    /// What the rule before has.
    pub what: &'static str,
}

impl Policy {
    /// The place of the list that a match asks. Whoever reads rules has gathered their lists; what has
    /// no place drops packets.
    pub fn list_place(&self, asked: &ListMatch, family: Family) -> u32 {
        let list = self
            .lists
            .iter()
            .find(|list| list.is_asked_by(asked, family));
        list.map_or(u32::MAX, |list| list.place)
    }

    /// Gives the lists of recent addresses room for so many.
    pub fn size_lists(&mut self, entries: u32) {
        for list in &mut self.lists {
            if let ListKind::Recent { capacity, .. } = &mut list.kind {
                *capacity = entries;
            }
        }
    }

    /// Notes the lists that the rules name, each in a place of its own.
    pub fn gather_lists(&mut self) -> Result<(), Disagreement> {
        self.number_connlimits();
        let mut lists: Vec<ListDefinition> = Vec::new();
        for (family, ruleset) in self.rulesets() {
            let chains = ruleset.tables().flat_map(|(_, table)| &table.chains);
            for rule in chains.flat_map(|chain| &chain.rules) {
                for each in &rule.matches {
                    let Match::List(asked) = each else {
                        continue;
                    };
                    let known = lists
                        .iter_mut()
                        .find(|list| list.is_asked_by(asked, family));
                    let Some(list) = known else {
                        lists.push(ListDefinition {
                            name: asked.name().to_owned(),
                            kind: asked.kind(family),
                            place: lists.len() as u32,
                            kept: false,
                            origin: rule.origin,
                        });
                        continue;
                    };
                    list.agree(asked).map_err(|what| Disagreement {
                        origin: rule.origin,
                        name: asked.name().to_owned(),
                        what,
                    })?;
                }
            }
        }
        self.lists = lists;
        Ok(())
    }

    /// Tells the rules apart that count connections.
    fn number_connlimits(&mut self) {
        let mut number = 0;
        let rulesets = [&mut self.ipv4, &mut self.ipv6].into_iter().flatten();
        let tables = rulesets.flat_map(|ruleset| {
            let Ruleset {
                filter,
                nat,
                mangle,
                raw,
                security,
            } = ruleset;
            [filter, nat, mangle, raw, security].into_iter().flatten()
        });
        for rule in tables
            .flat_map(|table| &mut table.chains)
            .flat_map(|chain| &mut chain.rules)
        {
            for each in &mut rule.matches {
                if let Match::List(ListMatch::Connlimit(limit)) = each {
                    limit.number = number;
                    number += 1;
                }
            }
        }
    }
}
