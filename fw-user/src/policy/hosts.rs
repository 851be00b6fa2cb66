//! Names of hosts in `-s` and `-d`.

use std::net::IpAddr;

use super::model::Family;

/// Whoever knows the addresses of hosts. Reading a policy asks nobody by itself: what the answers
/// are, and whether there is anybody to ask, is not in the files.
pub trait Hosts {
    /// The addresses of a host in one IP version, at least one, or why there are none.
    fn addresses(&self, name: &str, family: Family) -> Result<Vec<IpAddr>, String>;
}
