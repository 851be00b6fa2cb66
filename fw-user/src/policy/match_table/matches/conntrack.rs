//! The row of `-m conntrack`.

use super::{MatchDraft, ct_states};
use crate::policy::connection::Connection;
use crate::policy::error::{Problem, nearest};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Conntrack, CtDirection};
use crate::policy::save::{Value, packet_values, values};

/// An option with one argument, which may stand behind `!`, about the connection.
macro_rules! option {
    ($name:literal, |$connection:ident, $argument:ident| $read:expr) => {
        draft_option!(
            MatchDraft::Conntrack(Conntrack),
            &[$name],
            1,
            true,
            |conntrack, $argument| {
                let $connection = &mut **conntrack.connection.get_or_insert_default();
                $read
            }
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "conntrack",
    aliases: &[],
    families: BOTH,
    support: Support::Yes,
    note: "State, direction, the original and the reply tuple, status and remaining life. No helper expects \
           connections, so that EXPECTED never holds; a packet that opens its connection has 0 seconds left.",
    reading: Some(MatchReading {
        start: || MatchDraft::Conntrack(Conntrack::default()),
        protocols: &[],
        options: &[
            draft_option!(
                MatchDraft::Conntrack(Conntrack),
                &["ctstate"],
                1,
                true,
                |conntrack, argument| ct_states(&mut conntrack.states, argument, true)
            ),
            draft_option!(
                MatchDraft::Conntrack(Conntrack),
                &["ctdir"],
                1,
                false,
                direction
            ),
            option!("ctproto", |connection, argument| protocol(
                connection, argument
            )),
            option!("ctorigsrc", |connection, argument| address(
                connection, 0, argument
            )),
            option!("ctorigdst", |connection, argument| address(
                connection, 1, argument
            )),
            option!("ctreplsrc", |connection, argument| address(
                connection, 2, argument
            )),
            option!("ctrepldst", |connection, argument| address(
                connection, 3, argument
            )),
            option!("ctorigsrcport", |connection, argument| ports(
                connection, 0, argument
            )),
            option!("ctorigdstport", |connection, argument| ports(
                connection, 1, argument
            )),
            option!("ctreplsrcport", |connection, argument| ports(
                connection, 2, argument
            )),
            option!("ctrepldstport", |connection, argument| ports(
                connection, 3, argument
            )),
            option!("ctstatus", |connection, argument| status(
                connection, argument
            )),
            option!("ctexpire", |connection, argument| {
                let value = packet_values::range32(&argument.words[0])?;
                argument.once(&mut connection.expires, argument.negatable(value))
            }),
        ],
    }),
}];

fn direction(conntrack: &mut Conntrack, argument: &Argument<'_>) -> Value<()> {
    let word = &argument.words[0];
    let direction = match word.text.to_ascii_uppercase().as_str() {
        "ORIGINAL" => CtDirection::Original,
        "REPLY" => CtDirection::Reply,
        _ => {
            let message = format!("`{}` is not a direction", word.text);
            let problem = Problem::wrong("bad-direction", word.span, message);
            return Err(problem.expected("ORIGINAL or REPLY"));
        }
    };
    argument.once(&mut conntrack.direction, direction)
}

fn protocol(connection: &mut Connection, argument: &Argument<'_>) -> Value<()> {
    let word = &argument.words[0];
    let value = values::protocol(word)?;
    if value == 0 {
        let message = match argument.not {
            true => "every connection has another protocol than 0",
            false => "no connection is of protocol 0, which stands for all",
        };
        return Err(Problem::wrong("bad-value", word.span, message)
            .expected("a protocol's name or its number from 1 to 255")
            .help("leave `--ctproto` out to match every protocol"));
    }
    argument.once(&mut connection.protocol, argument.negatable(value))
}

fn address(connection: &mut Connection, end: usize, argument: &Argument<'_>) -> Value<()> {
    let value = values::host_under_mask(&argument.words[0], argument.family)?;
    argument.once(&mut connection.addresses[end], argument.negatable(value))
}

fn ports(connection: &mut Connection, end: usize, argument: &Argument<'_>) -> Value<()> {
    let value = values::port_range(&argument.words[0], argument.protocol)?;
    argument.once(&mut connection.ports[end], argument.negatable(value))
}

/// Statuses, with commas.
fn status(connection: &mut Connection, argument: &Argument<'_>) -> Value<()> {
    let word = &argument.words[0];
    let mut bits = 0;
    for (name, span) in word.parts(',') {
        let known = Connection::STATUSES
            .iter()
            .find(|(_, known)| known.eq_ignore_ascii_case(name));
        match known {
            Some((bit, _)) => bits |= bit,
            None if name.eq_ignore_ascii_case("NONE") => {}
            None => {
                let names = Connection::STATUSES.map(|(_, name)| name);
                let message = format!("there is no connection status `{name}`");
                let problem = Problem::wrong("bad-value", span, message)
                    .expected(format!("statuses of NONE {}, with commas", names.join(" ")));
                return Err(match nearest(name, names) {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem,
                });
            }
        }
    }
    argument.once(&mut connection.status, argument.negatable(bits))
}
