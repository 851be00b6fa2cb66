//! Reading what `iptables-save -c` and `fwbpf show --save` print.

use anyhow::{Context, Result};

/// Packets and bytes of a rule by its text (`-A INPUT -j DROP`), or of a chain's policy by its
/// declaration (`:INPUT DROP`) in the first table that has it.
pub fn count(save: &str, what: &str) -> Result<(u64, u64)> {
    let line = save
        .lines()
        .find(|line| match line.split_once(" [") {
            Some((declaration, _)) if line.starts_with(':') => declaration == what,
            _ => line.trim_end().ends_with(what),
        })
        .with_context(|| format!("there is no `{what}` in\n{save}"))?;
    line.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .and_then(|(count, _)| count.split_once(':'))
        .and_then(|(packets, bytes)| Some((packets.parse().ok()?, bytes.parse().ok()?)))
        .with_context(|| format!("there is no counter in `{line}`"))
}

/// The rules without their counters and comments.
pub fn rules_only(save: &str) -> String {
    save.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match line.split_once("] ") {
            Some((count, rule)) if count.starts_with('[') => rule,
            // Brackets of a rule are an address's.
            _ if line.starts_with(':') => line.split(" [").next().unwrap_or(line),
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: &str =
        "# comment\n*filter\n:INPUT DROP [3:4]\n[1:2] -A INPUT -i lo -j ACCEPT\nCOMMIT\n";

    #[test]
    fn rules_and_policies_are_counted() {
        assert_eq!(count(SAVE, "-A INPUT -i lo -j ACCEPT").unwrap(), (1, 2));
        assert_eq!(count(SAVE, ":INPUT DROP").unwrap(), (3, 4));
        assert!(count(SAVE, ":INPUT ACCEPT").is_err());
    }

    #[test]
    fn counters_and_comments_are_left_out() {
        assert_eq!(
            rules_only(SAVE),
            "*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
        );
    }
}
