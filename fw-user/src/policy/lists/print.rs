//! These matches as iptables-save prints them.

use std::fmt;

use super::{Connlimit, ListMatch, Question, Recent, hashlimit};
use crate::policy::model::{Family, Side};

impl ListMatch {
    /// The match as it stands in a rule of this IP version.
    pub fn text(&self, family: Family) -> String {
        match self {
            Self::Recent(recent) => recent.to_string(),
            Self::Hashlimit(limit) => hashlimit::text(limit, family),
            Self::Connlimit(limit) => limit.to_string(),
        }
    }
}

/// As `recent_save` prints it (extensions/libxt_recent.c).
impl fmt::Display for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.not { "! " } else { "" };
        write!(f, "-m recent {not}--{}", self.question.option())?;
        if self.seconds != 0 {
            write!(f, " --seconds {}", self.seconds)?;
        }
        if self.reap {
            f.write_str(" --reap")?;
        }
        if self.hits != 0 {
            write!(f, " --hitcount {}", self.hits)?;
        }
        if self.hops {
            f.write_str(" --rttl")?;
        }
        let side = match self.side {
            Side::Source => "--rsource",
            Side::Destination => "--rdest",
        };
        write!(f, " --name {} --mask {} {side}", self.name, self.mask)
    }
}

impl Question {
    /// The option that asks it.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Check => "rcheck",
            Self::Update => "update",
            Self::Remove => "remove",
        }
    }
}

/// As `connlimit_save` prints it (extensions/libxt_connlimit.c).
impl fmt::Display for Connlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.above { "above" } else { "upto" };
        let side = match self.side {
            Side::Source => "--connlimit-saddr",
            Side::Destination => "--connlimit-daddr",
        };
        let (limit, bits) = (self.limit, self.bits);
        write!(
            f,
            "-m connlimit --connlimit-{way} {limit} --connlimit-mask {bits} {side}"
        )
    }
}
