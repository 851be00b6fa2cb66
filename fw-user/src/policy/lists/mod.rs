//! Lists: what `-m recent` and its like remember of addresses, as rules name them.

#[cfg(feature = "testing")]
pub(crate) mod arbitrary;
mod print;

use std::net::IpAddr;

use fw_common::abi::Addr;
use fw_common::abi::list::{ListShape, recent};
use serde::{Deserialize, Serialize};

use super::model::{Match, Origin, Policy, Side};
use crate::addr;

/// A match that keeps a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListMatch {
    /// `-m recent`.
    Recent(Recent),
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
    /// The most that `--hitcount` may ask for.
    pub const HITS_MAX: u32 = 255;

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
    /// How many entries it may have.
    pub capacity: u32,
    /// How many times an entry keeps.
    pub times: u32,
    /// The bits of an address that count.
    pub mask: Addr,
    /// Its place among the kernel's maps. Whoever loads the policy chooses it.
    pub place: u32,
    /// It is in the kernel already, and stays as it is.
    #[serde(skip)]
    pub kept: bool,
    /// The first rule that names it.
    pub origin: Origin,
}

impl ListDefinition {
    /// What its map is like.
    pub const fn shape(&self) -> ListShape {
        ListShape::recent(self.capacity, self.times, self.mask)
    }

    /// Whether rules that name this list can go on with what another of its name remembers.
    pub fn continues(&self, other: &Self) -> bool {
        self.name == other.name
            && self.capacity == other.capacity
            && self.mask == other.mask
            && self.times <= other.times
    }
}

/// Two rules that want different things of one list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The rule that disagrees with one before.
    pub origin: Origin,
    /// The list.
    pub name: String,
}

impl Policy {
    /// The list of that name.
    pub fn list(&self, name: &str) -> Option<&ListDefinition> {
        self.lists.iter().find(|list| list.name == name)
    }

    /// Gives the lists room for so many addresses.
    pub fn size_lists(&mut self, entries: u32) {
        for list in &mut self.lists {
            list.capacity = entries;
        }
    }

    /// Notes the lists that the rules name, each in a place of its own.
    pub fn gather_lists(&mut self) -> Result<(), Disagreement> {
        let mut lists: Vec<ListDefinition> = Vec::new();
        for rule in self.rules() {
            for each in &rule.matches {
                let Match::List(ListMatch::Recent(asked)) = each else {
                    continue;
                };
                let (mask, times) = (asked.words(), asked.times());
                match lists.iter_mut().find(|list| list.name == asked.name) {
                    Some(list) if list.mask != mask => {
                        return Err(Disagreement {
                            origin: rule.origin,
                            name: asked.name.clone(),
                        });
                    }
                    Some(list) => list.times = list.times.max(times),
                    None => lists.push(ListDefinition {
                        name: asked.name.clone(),
                        capacity: Recent::ENTRIES,
                        times,
                        mask,
                        place: lists.len() as u32,
                        kept: false,
                        origin: rule.origin,
                    }),
                }
            }
        }
        self.lists = lists;
        Ok(())
    }
}
