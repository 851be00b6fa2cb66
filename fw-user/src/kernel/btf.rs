//! Where the kernel's records have their members, by its BTF (Documentation/bpf/btf.rst).

use std::fs;

use fw_common::abi::maps::{CredentialPlaces, SocketPlaces};

/// The kernel's own description of its types.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// What leads from a socket to who opened it; nothing where the kernel does not say.
pub(super) fn credential_places() -> Option<(SocketPlaces, CredentialPlaces)> {
    places(&fs::read(KERNEL).ok()?)
}

fn places(bytes: &[u8]) -> Option<(SocketPlaces, CredentialPlaces)> {
    let btf = Btf::read(bytes)?;
    let sockets = SocketPlaces {
        listener: btf.offset("sock_common", "skc_listener")?,
        socket: btf.offset("sock", "sk_socket")?,
        file: btf.offset("socket", "file")?,
        credentials: btf.offset("file", "f_cred")?,
    };
    let credentials = CredentialPlaces {
        user: btf.offset("cred", "fsuid")?,
        group: btf.offset("cred", "fsgid")?,
    };
    Some((sockets, credentials))
}

/// Kinds of types.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNCTION_TYPE: u32 = 13;
const VARIABLE: u32 = 14;
const DATA_SECTION: u32 = 15;
const DECLARATION_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// How deep records without a name may be nested.
const NESTED: u32 = 8;

struct Btf<'a> {
    strings: &'a [u8],
    /// By id, from 1: where each type begins.
    types: Vec<&'a [u8]>,
}

impl<'a> Btf<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u32 = 0xeb9f;
        if word(bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let body = bytes.get(word(bytes, 4)? as usize..)?;
        let part = |at: usize| {
            let (offset, length) = (word(bytes, at)?, word(bytes, at + 4)?);
            body.get(offset as usize..)?.get(..length as usize)
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            types.push(rest);
            let info = word(rest, 4)?;
            let members = (info & 0xffff) as usize;
            let more = match info >> 24 & 0x1f {
                INT | VARIABLE | DECLARATION_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATA_SECTION | ENUM64 => 12 * members,
                ENUM | FUNCTION_TYPE => 8 * members,
                _ => 0,
            };
            rest = rest.get(12 + more..)?;
        }
        Some(Self { strings, types })
    }

    /// Where a record has a member, in bytes.
    fn offset(&self, record: &str, member: &str) -> Option<u16> {
        let mut records = self
            .types
            .iter()
            .filter(|one| kind(one) == Some(STRUCT) && self.is_named(one, 0, record));
        let bits = records.find_map(|one| self.member(one, member, NESTED))?;
        (bits % 8 == 0).then(|| u16::try_from(bits / 8).ok())?
    }

    /// Where it has one, in bits, its own or that of a record without a name within it.
    fn member(&self, record: &[u8], name: &str, depth: u32) -> Option<u32> {
        let info = word(record, 4)?;
        // The offset's upper byte is a width, then.
        let mask = if info >> 31 == 0 { u32::MAX } else { 0xff_ffff };
        (0..(info & 0xffff) as usize).find_map(|number| {
            let at = 12 + 12 * number;
            let offset = word(record, at + 8)? & mask;
            if self.is_named(record, at, name) {
                return Some(offset);
            }
            if word(record, at)? != 0 || depth == 0 {
                return None;
            }
            let id = word(record, at + 4)? as usize;
            let within = *self.types.get(id.checked_sub(1)?)?;
            let is_record = matches!(kind(within)?, STRUCT | UNION);
            let found = is_record.then(|| self.member(within, name, depth - 1))??;
            Some(offset + found)
        })
    }

    /// Whether the name that a word leads to is this one.
    fn is_named(&self, record: &[u8], at: usize, name: &str) -> bool {
        let named = || {
            let from = self.strings.get(word(record, at)? as usize..)?;
            Some(from.strip_prefix(name.as_bytes())?.first() == Some(&0))
        };
        named() == Some(true)
    }
}

fn kind(record: &[u8]) -> Option<u32> {
    Some(word(record, 4)? >> 24 & 0x1f)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with a union without a name in it.
    fn described() -> Vec<u8> {
        const NAMES: &[u8] = b"\0thing\0first\0second\0";
        let types: Vec<u32> = [
            // 1: an int, 32 bits.
            [0, INT << 24, 4, 32].as_slice(),
            // 2: union { int second; }
            &[0, UNION << 24 | 1, 4, 13, 1, 0],
            // 3: struct thing { int first; union { .. }; }
            &[1, STRUCT << 24 | 2, 8, 7, 1, 0, 0, 2, 32],
        ]
        .concat();
        let length = 4 * types.len() as u32;
        let head = [0x0001_eb9f, 24, 0, length, length, NAMES.len() as u32];
        let words = head
            .iter()
            .chain(&types)
            .flat_map(|word| word.to_le_bytes());
        words.chain(NAMES.iter().copied()).collect()
    }

    #[test]
    fn members_are_found_within_records_without_a_name() {
        let bytes = described();
        let btf = Btf::read(&bytes).expect("it is well-formed");
        assert_eq!(btf.offset("thing", "first"), Some(0));
        assert_eq!(btf.offset("thing", "second"), Some(4));
        assert_eq!(btf.offset("thing", "third"), None);
        assert_eq!(btf.offset("thin", "first"), None);
    }

    #[test]
    fn what_is_cut_short_says_nothing() {
        let bytes = described();
        for length in 0..bytes.len() {
            let found = Btf::read(&bytes[..length]).map(|btf| btf.offset("thing", "second"));
            assert_eq!(found.flatten(), None, "{length}");
        }
    }
}
