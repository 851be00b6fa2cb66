//! docs/iptables-support.md, made from the rows that the parser reads.

use std::fmt::Write as _;

use super::{ReadOption, Support, all_matches, all_targets};
use crate::policy::model::Family;

/// The text of docs/iptables-support.md.
pub fn support_document() -> String {
    let mut text = String::from(INTRODUCTION);
    text.push_str("\n## Matches\n\n| match | IP versions | works | |\n| --- | --- | --- | --- |\n");
    let mut matches: Vec<_> = all_matches().collect();
    matches.sort_by_key(|row| (row.support as u8, row.name));
    for row in matches {
        let mut note = row.note.to_owned();
        let options = row.reading.iter().flat_map(|reading| reading.options);
        let missing: Vec<_> = options
            .filter(|option| matches!(option.read, ReadOption::Unsupported(_)))
            .map(|option| format!("`--{}`", option.names[0]))
            .collect();
        if !missing.is_empty() {
            let _ = write!(note, " Not: {}.", missing.join(", "));
        }
        push_row(
            &mut text,
            &format!("-m {}", row.name),
            row.families,
            row.support,
            &note,
        );
    }
    text.push_str(
        "\n## Targets\n\n| target | IP versions | works | |\n| --- | --- | --- | --- |\n",
    );
    let mut targets: Vec<_> = all_targets().collect();
    targets.sort_by_key(|row| (row.support as u8, row.name));
    for row in targets {
        push_row(
            &mut text,
            &format!("-j {}", row.name),
            row.families,
            row.support,
            row.note,
        );
    }
    text
}

fn push_row(text: &mut String, name: &str, families: &[Family], support: Support, note: &str) {
    let versions: Vec<_> = families.iter().map(|family| family.title()).collect();
    let works = match support {
        Support::Yes => "yes",
        Support::Partly => "partly",
        Support::No => "no",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "| `{name}` | {} | {works} | {note} |",
        versions.join(", ")
    );
}

const INTRODUCTION: &str = "\
# What of iptables works

Made from the table that the parser reads (`fw-user/src/policy/match_table`); a test fails when the
two differ: `FWBPF_BLESS=1 cargo test -p fw-user --test policy_golden` writes it anew.

fwbpf reads what `iptables-save` and `ip6tables-save` 1.8 write. What is not supported is refused
when a policy is loaded or checked, with its place in the file and the nearest thing that works; it
is never skipped silently.

## Lines and options

| what | works | |
| --- | --- | --- |
| `*filter`, `*nat`, `*mangle`, `*raw`, `*security` | yes | Built-in chains with their policies, and chains of one's own. |
| `:CHAIN POLICY [packets:bytes]`, `[packets:bytes] -A ...` | yes | The counters are read and checked. |
| `-A`, `-I`, `-N`, `-P`, `-F`, `-X`, `-Z` | yes | |
| `-D`, `-R`, `-C`, `-E`, `-L`, `-S` | no | Write the chain as it shall be. |
| `COMMIT`, comments, quotes, `-4`, `-6` | yes | Split into words exactly as iptables-restore does. A missing `*filter` or COMMIT is supplied with a warning, or refused with `--strict`. |
| `-s`, `-d` | yes | Addresses, lists, prefixes, any mask; names of hosts, looked up when loaded, with a warning that names the addresses. |
| `-i`, `-o` | yes | `+` at the end for every name that begins so. |
| `-p` | yes | Names, numbers, `all`. |
| `-f` | yes | IPv4: never holds, and `! -f` always, as datagrams are put together before rules see them. |
| `-j CHAIN`, `-g CHAIN` | yes | |
| `!` | yes | Before the option, where iptables takes it; behind it, as iptables before 1.4.3 wrote it, with a warning, or refused with `--strict`. |
| policy DROP in `*nat` | yes | Of the packets that open connections, as only they meet the table. |
";
