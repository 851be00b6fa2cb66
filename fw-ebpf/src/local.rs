//! Addresses as the table of local ones has them.

use aya_ebpf::maps::lpm_trie::Key;
use fw_common::abi::{Addr, Family};

/// Whether an address is a group's, all of which are local (RFC 1112, RFC 4291 2.7).
#[inline(always)]
pub fn is_multicast(family: Family, address: &Addr) -> bool {
    match family {
        Family::V4 => address[0] >> 28 == 14,
        Family::V6 => address[0] >> 24 == 0xff,
    }
}

/// An address as `abi::device::LocalKey` has it: IPv4 is IPv4-mapped (RFC 4291 2.5.5.2).
#[inline(always)]
pub fn local_key(family: Family, address: &Addr) -> Key<[u8; 16]> {
    let data = match family {
        Family::V4 => {
            let [a, b, c, d] = address[0].to_be_bytes();
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
        }
        Family::V6 => bytes(address),
    };
    Key {
        prefix_len: 128,
        data,
    }
}

#[inline(always)]
fn bytes(address: &Addr) -> [u8; 16] {
    let [a, b, c, d] = address[0].to_be_bytes();
    let [e, f, g, h] = address[1].to_be_bytes();
    let [i, j, k, l] = address[2].to_be_bytes();
    let [m, n, o, p] = address[3].to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
