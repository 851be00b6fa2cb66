//! Addresses between the standard library and map records.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_common::abi::{Addr, Family};

/// The address as map records have it.
pub fn to_abi(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => [v4.to_bits(), 0, 0, 0],
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
        }
    }
}

/// An address under a mask, and the mask, as map records have them.
pub fn masked(address: IpAddr, mask: IpAddr) -> (Addr, Addr) {
    let (mut address, mask) = (to_abi(address), to_abi(mask));
    for (word, mask) in address.iter_mut().zip(mask) {
        *word &= mask;
    }
    (address, mask)
}

/// The address that a map record of this family holds.
pub fn from_abi(family: Family, address: Addr) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(address[0]).into(),
        Family::V6 => {
            let bits = address
                .into_iter()
                .fold(0, |bits, word| bits << 32 | u128::from(word));
            Ipv6Addr::from_bits(bits).into()
        }
    }
}

/// The first addresses that are of IPv4, and zeros.
pub fn first4<const N: usize>(addresses: impl Iterator<Item = IpAddr>) -> [u32; N] {
    let mut own = addresses
        .filter(IpAddr::is_ipv4)
        .map(|address| to_abi(address)[0]);
    std::array::from_fn(|_| own.next().unwrap_or_default())
}

/// The same for IPv6.
pub fn first6<const N: usize>(addresses: impl Iterator<Item = IpAddr>) -> [Addr; N] {
    let mut own = addresses.filter(IpAddr::is_ipv6).map(to_abi);
    std::array::from_fn(|_| own.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (text, family, words) in [
            ("192.0.2.1", Family::V4, [0xc000_0201, 0, 0, 0]),
            ("2001:db8::1:2", Family::V6, [0x2001_0db8, 0, 0, 0x1_0002]),
        ] {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(to_abi(address), words);
            assert_eq!(from_abi(family, words), address);
        }
    }
}
