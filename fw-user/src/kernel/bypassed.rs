//! What the stack has between ingress and egress that the fast path would bypass.

use std::io;
use std::path::Path;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_XFRM};
use netlink_sys::{Socket, SocketAddr};

/// Why no packet may bypass the stack in this network namespace, if there is a reason. What cannot
/// be asked, because the kernel was built without it, is not there.
pub fn obstacle() -> Option<String> {
    let netfilter = netfilter_hooks().unwrap_or_else(|_| netfilter_tables());
    if let Some(found) = netfilter {
        return Some(format!("netfilter has {found}, which it would bypass"));
    }
    has_ipsec_policy().unwrap_or(false).then(|| {
        "there are IPsec policies, which it would bypass (`ip xfrm policy` shows them)".to_owned()
    })
}

/// `NLM_F_REQUEST` and `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x301;

/// The first place on the way of a forwarded packet that netfilter hooks are at.
fn netfilter_hooks() -> io::Result<Option<String>> {
    for (family, name) in [(libc::AF_INET, "IPv4"), (libc::AF_INET6, "IPv6")] {
        for (hook, place) in [(0, "PREROUTING"), (2, "FORWARD"), (4, "POSTROUTING")] {
            if has_netfilter_hook(family as u8, hook)? {
                return Ok(Some(format!(
                    "hooks in {name} {place} (see `nft list hooks`)"
                )));
            }
        }
    }
    Ok(None)
}

/// For kernels that do not tell the hooks: tables, whose chains have some as a rule.
fn netfilter_tables() -> Option<String> {
    for (file, restore) in [
        ("ip_tables_names", "iptables"),
        ("ip6_tables_names", "ip6tables"),
    ] {
        let names = std::fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default();
        if let Some(table) = names.lines().next() {
            return Some(format!("the table {table} of {restore}-legacy"));
        }
    }
    has_nftables_table()
        .unwrap_or(false)
        .then(|| "tables of nftables (see `nft list tables`)".to_owned())
}

/// Asks nf_tables (include/uapi/linux/netfilter/nf_tables.h) for its tables.
fn has_nftables_table() -> io::Result<bool> {
    const SUBSYSTEM: u16 = 10;
    const NEW: u16 = SUBSYSTEM << 8;
    const GET: u16 = NEW + 1;
    let answers = ask(NETLINK_NETFILTER, GET, DUMP, &[0; 4])?;
    Ok(answers.iter().any(|(kind, _)| *kind == NEW))
}

/// Asks nfnetlink_hook (include/uapi/linux/netfilter/nfnetlink_hook.h) for the functions at a hook.
fn has_netfilter_hook(family: u8, hook: u32) -> io::Result<bool> {
    const SUBSYSTEM: u16 = 12;
    const GET: u16 = SUBSYSTEM << 8;
    const HOOKNUM: u16 = 1;
    let mut payload = vec![family, 0, 0, 0];
    payload.extend(8u16.to_ne_bytes());
    payload.extend(HOOKNUM.to_ne_bytes());
    payload.extend(hook.to_be_bytes());
    let answers = ask(NETLINK_NETFILTER, GET, DUMP, &payload)?;
    Ok(answers.iter().any(|(kind, _)| *kind == GET))
}

/// Whether this network namespace has IPsec's policies or states. A kernel without IPsec has none; of one
/// that does not answer otherwise, nothing is known.
pub fn has_ipsec() -> io::Result<bool> {
    match has_ipsec_policy() {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(false),
        Ok(false) => has_ipsec_state(),
        known => known,
    }
}

/// Asks for the numbers of IPsec policies (`XFRM_MSG_GETSPDINFO`, include/uapi/linux/xfrm.h): six of them, in,
/// out and forward, then the same for per-socket ones.
fn has_ipsec_policy() -> io::Result<bool> {
    const NEW: u16 = 0x10 + 0x14;
    counts_ipsec(NEW, 6)
}

/// Asks for the number of IPsec states (`XFRM_MSG_GETSADINFO`).
fn has_ipsec_state() -> io::Result<bool> {
    const NEW: u16 = 0x10 + 0x12;
    counts_ipsec(NEW, 1)
}

/// Whether one of so many numbers is not zero that the first attribute of an answer has. A question has the
/// number behind its answer's.
fn counts_ipsec(answer: u16, numbers: usize) -> io::Result<bool> {
    const FIRST: u16 = 1;
    let answers = ask(NETLINK_XFRM, answer + 1, REQUEST, &u32::MAX.to_ne_bytes())?;
    let Some((_, body)) = answers.iter().find(|(kind, _)| *kind == answer) else {
        return Ok(false);
    };
    // The flags that were sent, then attributes.
    let attributes = body.get(4..).unwrap_or_default();
    let is_info = attributes.get(2..4) == Some(&FIRST.to_ne_bytes());
    let counts = attributes.get(4..4 + 4 * numbers).unwrap_or_default();
    Ok(is_info && counts.iter().any(|byte| *byte != 0))
}

/// Sends one request and returns the type and body of each answer.
fn ask(protocol: isize, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    const HEADER: usize = 16;
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let length = (HEADER + payload.len()) as u32;
    let mut request = Vec::with_capacity(length as usize);
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(payload);
    socket.send(&request, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((length, kind)) = header(rest) {
            let body = rest.get(HEADER..length).unwrap_or_default().to_vec();
            match kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let code = body
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code == 0 {
                        Ok(answers)
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                _ => answers.push((kind, body)),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if flags == REQUEST {
            return Ok(answers);
        }
    }
}

/// Length and type of the message that begins here.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    (length >= 16 && length <= bytes.len()).then_some((length, kind))
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn a_message_is_no_longer_than_what_came() {
        let mut bytes = [0; 20];
        bytes[0] = 20;
        bytes[4] = 3;
        assert_eq!(header(&bytes), Some((20, 3)));
        assert_eq!(header(&bytes[..16]), None);
        assert_eq!(header(&bytes[..3]), None);
        bytes[0] = 4;
        assert_eq!(header(&bytes), None);
    }
}
