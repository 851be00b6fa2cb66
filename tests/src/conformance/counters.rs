//! Reading `iptables-save -c`.

use anyhow::{Context, Result, bail};

/// `[packets:bytes]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// A policy or a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The table.
    pub table: String,
    /// `:INPUT DROP` or `-A INPUT ...`.
    pub text: String,
    /// What it counted.
    pub count: Count,
}

/// The policies and rules of some tables in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the order of the text.
    pub entries: Vec<Entry>,
}

impl Counts {
    /// Reads the tables named, in the order of their names here.
    pub fn parse(text: &str, tables: &[&str]) -> Result<Self> {
        let mut table = String::new();
        let mut entries = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_string();
            } else if let Some(chain) = line.strip_prefix(':') {
                let (head, count) = chain.rsplit_once(' ').context("a chain without counter")?;
                entries.push(Entry {
                    table: table.clone(),
                    text: format!(":{head}"),
                    count: count_of(count)?,
                });
            } else if line.starts_with('[') {
                let (count, rule) = line.split_once(' ').context("a counter without rule")?;
                entries.push(Entry {
                    table: table.clone(),
                    text: rule.trim_end().to_string(),
                    count: count_of(count)?,
                });
            } else if line.starts_with("-A") {
                bail!("a rule without counter: {line}");
            }
        }
        let rank = |entry: &Entry| tables.iter().position(|table| *table == entry.table);
        entries.retain(|entry| rank(entry).is_some());
        entries.sort_by_key(|entry| rank(entry));
        Ok(Self { entries })
    }
}

fn count_of(text: &str) -> Result<Count> {
    let (packets, bytes) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .and_then(|inner| inner.split_once(':'))
        .with_context(|| format!("not a counter: {text}"))?;
    Ok(Count {
        packets: packets
            .parse()
            .with_context(|| format!("not a counter: {text}"))?,
        bytes: bytes
            .parse()
            .with_context(|| format!("not a counter: {text}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_in_the_order_of_the_tables() {
        let text = "# c\n*nat\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n*filter\n:INPUT DROP [3:4]\n\
                    [5:6] -A INPUT -j ACCEPT\nCOMMIT\n";
        let counts = Counts::parse(text, &["filter", "nat"]).unwrap();
        let texts: Vec<_> = counts.entries.iter().map(|e| e.text.as_str()).collect();
        assert_eq!(
            texts,
            [":INPUT DROP", "-A INPUT -j ACCEPT", ":OUTPUT ACCEPT"]
        );
        assert_eq!(
            counts.entries[1].count,
            Count {
                packets: 5,
                bytes: 6
            }
        );
        assert_eq!(Counts::parse(text, &["filter"]).unwrap().entries.len(), 2);
        assert!(Counts::parse("*filter\n-A INPUT\n", &["filter"]).is_err());
    }
}
