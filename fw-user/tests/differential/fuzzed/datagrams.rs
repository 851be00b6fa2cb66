//! What is known of datagrams in fragments: how many bytes a first fragment counts for those that came before it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::wire::{Part, Told};

/// How long fragments wait for each other (`IP_FRAG_TIME`, include/net/ip.h; IPv6 has twice that, here not).
const LIFETIME: u64 = 30_000_000_000;

/// A datagram's name (RFC 791 3.2, RFC 8200 4.5), and the protocol, which is part of it in IPv4.
type Datagram = (IpAddr, IpAddr, u32, u8);

/// Datagrams that are not complete, as ingress has seen them.
#[derive(Default)]
pub struct Datagrams(BTreeMap<Datagram, Seen>);

/// Until when it is known, and how many bytes came before the first fragment, or nothing if that one has come.
struct Seen {
    until: u64,
    ahead: Option<u32>,
}

impl Datagrams {
    /// A packet arrives; the bytes that rules count for it.
    pub fn count(&mut self, told: &Told, now: u64) -> u32 {
        let name = (told.source, told.destination, told.id, told.protocol);
        let known = self.0.get(&name).filter(|seen| seen.until >= now);
        let until = now + LIFETIME;
        match (told.part, known.map(|seen| seen.ahead)) {
            (Part::Whole, _) | (Part::Later, Some(None)) => told.bytes,
            (Part::First, known) => {
                self.0.insert(name, Seen { until, ahead: None });
                told.bytes + known.flatten().unwrap_or(0)
            }
            (Part::Later, known) => {
                let ahead = Some(told.bytes + known.flatten().unwrap_or(0));
                self.0.insert(name, Seen { until, ahead });
                told.bytes
            }
        }
    }
}
