//! An explanation for people.

use std::fmt::{Display, Formatter, Result};

use fw_common::abi::stat::Stat;

use super::{Decider, Explanation, State, Step, Verdict};

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        f.write_str(match self.verdict {
            Verdict::Accept => "ACCEPT",
            Verdict::Drop => "DROP",
        })?;
        match (&self.decided_by, self.reason) {
            (Some(decider), _) => write!(f, " by {decider}"),
            (None, Some(reason)) => {
                let stat = Stat::ALL.iter().find(|stat| stat.name() == reason);
                write!(f, ": {}", stat.map_or(reason, |stat| stat.text()))
            }
            (None, None) => write!(f, ": no filter table has a say"),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Arrives { interface } => write!(f, "comes in by {interface}"),
            Self::Leaves {
                interface,
                made_here: true,
            } => write!(f, "this host sends it by {interface}"),
            Self::Leaves {
                interface,
                made_here: false,
            } => write!(f, "is forwarded, and leaves by {interface}"),
            Self::Assumed { what } => write!(f, "assumed: {what}"),
            Self::Tracked {
                state,
                original,
                translated,
                redirected,
            } => {
                write!(f, "connection tracking: {state}")?;
                match original {
                    Some(true) if *state == State::New => {}
                    Some(true) => write!(f, ", in the direction of the first packet")?,
                    Some(false) => write!(f, ", a reply")?,
                    None => {}
                }
                if *translated {
                    write!(f, ", source translated")?;
                }
                if *redirected {
                    write!(f, ", destination translated")?;
                }
                Ok(())
            }
            Self::Destination {
                address,
                local: true,
            } => write!(f, "{address} is this host's: INPUT"),
            Self::Destination {
                address,
                local: false,
            } => write!(f, "{address} is another host's: FORWARD"),
            Self::Hit { rule, action } => write!(f, "{rule}: {action}"),
            Self::Translated { end, from, to } => write!(f, "{end} {from} becomes {to}"),
            Self::Remembered { embryo: false } => write!(f, "the connection is remembered"),
            Self::Remembered { embryo: true } => {
                write!(f, "the connection is remembered until it is answered")
            }
        }
    }
}

impl Display for Decider {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self {
            table,
            chain,
            rule,
            place,
            ..
        } = self;
        if let Some(place) = place {
            write!(f, "{place}: ")?;
        }
        match rule {
            Some(rule) => write!(f, "{table} -A {chain} {rule}"),
            None => write!(f, "{table} {chain}'s policy"),
        }
    }
}

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(self.name())
    }
}
