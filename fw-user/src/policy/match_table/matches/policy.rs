//! The row of `-m policy`, which asks about IPsec.

use super::{MatchDraft, Unfinished};
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::Match;
use crate::policy::packet_match::PacketMatch;
use crate::policy::save::Value;

/// `-m policy` while its options are being read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Draft {
    /// `--dir`, whether it is `out`.
    out: Option<bool>,
    /// `--pol none`.
    none: Option<()>,
}

impl Draft {
    /// The match, if it says which way and which policy.
    pub fn finish(self) -> Result<Match, Unfinished> {
        match (self.out, self.none) {
            (Some(out), Some(())) => Ok(Match::Packet(PacketMatch::WithoutIpsec { out })),
            _ => Err(Unfinished::Says("both --dir and --pol")),
        }
    }
}

const IPSEC: &str = "what leaves through IPsec is seen behind it, as ESP, and not as what it was, and what comes \
    in transport mode is seen before it: give the tunnel an interface (`ip link add ipsec0 type xfrm if_id 1`), which `-i` \
    and `-o` match, or match `-p esp` and the addresses of its ends";

const fn of_ipsec(name: &'static [&'static str], arguments: usize) -> OptionRow<MatchDraft> {
    OptionRow {
        names: name,
        arguments,
        negatable: true,
        read: ReadOption::Unsupported(IPSEC),
    }
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "policy",
    aliases: &[],
    families: BOTH,
    support: Support::Partly,
    note: "`--pol none`, which holds for every packet of a host without IPsec: where the kernel has IPsec's policies or states, `load` refuses the rule, and where they come later, `status` says so. `--pol ipsec` and what belongs to it would be about packets that fwbpf does not see as what they were: give the tunnel an interface of type xfrm, which `-i` and `-o` match, or match `-p esp` and the addresses of its ends.",
    reading: Some(MatchReading {
        start: || MatchDraft::Policy(Draft::default()),
        protocols: &[],
        options: &[
            OptionRow {
                names: &["dir"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    MatchDraft::Policy(draft) => direction(draft, argument),
                    _ => Ok(()),
                }),
            },
            OptionRow {
                names: &["pol"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    MatchDraft::Policy(draft) => policy(draft, argument),
                    _ => Ok(()),
                }),
            },
            of_ipsec(&["strict"], 0),
            of_ipsec(&["reqid"], 1),
            of_ipsec(&["spi"], 1),
            of_ipsec(&["tunnel-src"], 1),
            of_ipsec(&["tunnel-dst"], 1),
            of_ipsec(&["proto"], 1),
            of_ipsec(&["mode"], 1),
            of_ipsec(&["next"], 0),
        ],
    }),
}];

fn direction(draft: &mut Draft, argument: &Argument<'_>) -> Value<()> {
    let word = &argument.words[0];
    let out = match word.text.as_ref() {
        "in" => false,
        "out" => true,
        _ => {
            let message = format!("`{}` is no direction", word.text);
            return Err(Problem::wrong("bad-value", word.span, message).expected("in or out"));
        }
    };
    argument.once(&mut draft.out, out)
}

fn policy(draft: &mut Draft, argument: &Argument<'_>) -> Value<()> {
    let word = &argument.words[0];
    match word.text.as_ref() {
        "none" => argument.once(&mut draft.none, ()),
        "ipsec" => Err(Problem::unsupported(
            "unsupported-option",
            word.span,
            "`--pol ipsec` is not supported",
        )
        .expected("none")
        .help(IPSEC)),
        _ => {
            let message = format!("`{}` is no policy", word.text);
            Err(Problem::wrong("bad-value", word.span, message).expected("none or ipsec"))
        }
    }
}
