//! What people take for a rule file, or leave in one: shell scripts, placeholders, lines that an
//! editor cut off. Of what goes wrong with these, only the cause is worth an error.

use super::lexer::{self, Line};
use crate::policy::error::{Problem, Report};
use crate::policy::source::SourceFile;

/// The error for a file that is a shell script: it says what iptables is to do, not what the rules
/// are.
pub(crate) fn shell_script(file: &SourceFile) -> Option<Problem> {
    // Rules with `#!/sbin/iptables-restore` above them are rules.
    let interpreted = |text: &str| text.starts_with("#!") && !text.contains("tables-restore");
    let mut lines = lexer::lines(&file.text);
    let first = lines.find(|line| {
        let text = line.text.trim();
        interpreted(text) || !(text.is_empty() || text.starts_with('#'))
    })?;
    let text = first.text.trim();
    if !interpreted(text) && (is_rules(text) || !calls_iptables(text)) {
        // Rules, or something else is wrong with the line, which is said where it is read.
        return None;
    }
    let message = "the file is a shell script, not a rule file";
    let problem = Problem::wrong("shell-script", first.span(), message)
        .expected("rules as iptables-save prints them")
        .help("run the script where nothing depends on it, and save what it made: `unshare -n sh -c 'sh SCRIPT; iptables-save' > rules.v4`");
    Some(problem)
}

fn is_rules(text: &str) -> bool {
    text.starts_with(['*', ':', '[', '-']) || text == "COMMIT"
}

fn calls_iptables(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    let names = ["iptables", "ip6tables", "IPTABLES", "IPT", "IP6T"];
    names.iter().any(|name| first.contains(name)) || ["sudo", "set", "export"].contains(&first)
}

/// Puts the cause in the place of the errors that were reported about a line, if it is plain.
pub(super) fn explain(report: &mut Report<'_>, errors_before: usize, line: Line<'_>) {
    if line.text.trim_end().ends_with('$') {
        let end = line.span().end;
        report.errors.truncate(errors_before);
        let message = "the line is cut off: it ends with the `$` that editors show for the rest";
        report.error(
            Problem::wrong("cut-line", (end - 1..end).into(), message)
                .expected("the rest of the line")
                .help("copy the line from the file itself, or from `iptables-save`"),
        );
        return;
    }
    if is_no_rule(line.text) && report.errors.len() > errors_before {
        report.errors.truncate(errors_before);
        let problem = Problem::wrong("no-rule", line.span(), "the line is not a rule");
        let problem = problem.expected("a line that begins with `-`, `*`, `:` or `#`, or COMMIT");
        return report.error(problem.help(if line.text.contains("iptables-save") {
            "leave out what the terminal showed before the rules"
        } else {
            "put a `#` before what is meant for people"
        }));
    }
    for error in report.errors.iter_mut().skip(errors_before) {
        if ["bad-port", "bad-address"].contains(&error.code) && error.found.starts_with("-") {
            error.help = Some(format!("a value is missing before `{}`", error.found));
        }
        let value = bracketed(line.text, &error.found);
        if is_placeholder(value) {
            error.help = Some(format!("put a value in the place of `{value}`"));
        }
    }
}

/// Whether a line is prose, or a shell's prompt: of its words none begins an option before the first
/// that no rule begins with.
fn is_no_rule(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    // A program's name before rules has a message of its own, and so have the rest.
    !first.starts_with(['-', '!', '[', '<', '{', '"', '\'', '$', '#', '+'])
        && !second.starts_with(['-', '!'])
        && !text.contains(" -j ")
        && !calls_iptables(text)
        && first != "COMMIT"
}

/// `[NET/24]` around `24]`: the word whose part is wrong, if it is in brackets.
fn bracketed<'a>(line: &'a str, found: &'a str) -> &'a str {
    if found.is_empty() {
        return found;
    }
    let words = line.split_whitespace();
    let around = |word: &&str| word.starts_with('[') && word.ends_with(']') && word.contains(found);
    words.skip(1).find(around).unwrap_or(found)
}

/// `<ADDRESS>`, `$ADDRESS`, `{{ address }}`, `YOUR_ADDRESS`, `x.x.x.x`.
pub(super) fn is_placeholder(text: &str) -> bool {
    if text.starts_with('[') && text.ends_with(']') && text.contains(char::is_alphabetic) {
        return !text.contains(':');
    }
    let text = text.split('/').next().unwrap_or_default();
    let bracketed = text.starts_with('<') || text.ends_with('>') || text.contains("{{");
    let blank = |letter: char| matches!(letter, 'x' | 'X' | '.' | ':');
    let crossed = text.contains(['x', 'X']) && text.chars().all(blank);
    bracketed || crossed || text.contains('$') || text.to_uppercase().contains("YOUR_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_told_from_rules() {
        let cases = [
            (true, "#!/bin/sh\niptables -F\n"),
            (true, "# firewall\n\nIPT=/sbin/iptables\n$IPT -F\n"),
            (true, "sudo iptables -P INPUT DROP\n"),
            (
                true,
                "/sbin/ip6tables-restore <<END\n*filter\nCOMMIT\nEND\n",
            ),
            (false, "#!/sbin/iptables-restore\n*filter\nCOMMIT\n"),
            (false, "*filter\n-A INPUT -j ACCEPT\niptables -F\nCOMMIT\n"),
            (false, "-P INPUT DROP\n"),
            (false, "what is this\n"),
            (false, ""),
        ];
        for (expected, text) in cases {
            let file = SourceFile::new("rules.v4", text, None);
            assert_eq!(shell_script(&file).is_some(), expected, "{text}");
        }
    }
}
