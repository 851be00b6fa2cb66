//! The names of hosts in a policy, looked up as the system does it: /etc/hosts, then name servers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs as _};

use crate::policy::Hosts;
use crate::policy::model::Family;

/// The answers so far: whoever is named in many rules is asked for once, and is the same in all.
#[derive(Debug, Default)]
pub struct SystemHosts {
    answers: RefCell<HashMap<String, Result<Vec<IpAddr>, String>>>,
}

impl Hosts for SystemHosts {
    fn addresses(&self, name: &str, family: Family) -> Result<Vec<IpAddr>, String> {
        let mut answers = self.answers.borrow_mut();
        let all = answers.entry(name.to_owned()).or_insert_with(|| ask(name));
        let mut found: Vec<IpAddr> = Vec::new();
        for address in all.as_ref().map_err(Clone::clone)? {
            if address.is_ipv4() == (family == Family::Ipv4) && !found.contains(address) {
                found.push(*address);
            }
        }
        if found.is_empty() {
            return Err(format!("it has no {} address", family.title()));
        }
        Ok(found)
    }
}

fn ask(name: &str) -> Result<Vec<IpAddr>, String> {
    match (name, 0).to_socket_addrs() {
        Ok(found) => Ok(found.map(|socket| socket.ip()).collect()),
        Err(error) => {
            let text = error.to_string();
            // What std puts before getaddrinfo's own words.
            let words = text.strip_prefix("failed to lookup address information: ");
            Err(words.unwrap_or(&text).to_owned())
        }
    }
}
