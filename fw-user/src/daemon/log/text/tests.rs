use super::*;
use crate::policy::model::Nflog;

fn event(packet: &[u8]) -> Event {
    let mut event = Event {
        bytes: packet.len() as u32,
        taken: packet.len() as u32,
        ..Event::default()
    };
    event.packet[..packet.len()].copy_from_slice(packet);
    event
}

fn said<'a>(target: &'a Target, family: Family, event: &'a Event) -> Said<'a> {
    Said {
        in_name: "eth0".into(),
        in_port: String::new(),
        out_port: String::new(),
        out_name: String::new(),
        family,
        target,
        event,
    }
}

/// A SYN with one option (MSS 1460).
fn syn() -> Vec<u8> {
    let mut packet = vec![
        0x45, 0x08, 0, 44, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1,
    ];
    packet.extend([
        0x9c, 0x40, 0, 22, 0, 0, 0, 7, 0, 0, 0, 0, 0x60, 2, 0xfa, 0xf0, 0, 0, 0, 0,
    ]);
    packet.extend([2, 4, 5, 0xb4]);
    packet
}

#[test]
fn a_syn_reads_as_in_the_kernels_log() {
    let target = Target::Log(Log {
        prefix: "drop: ".into(),
        ..Log::PLAIN
    });
    let mut event = event(&syn());
    event.link = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0, 0];
    event.link[14..].copy_from_slice(&14_u16.to_ne_bytes());
    assert_eq!(
        line(&said(&target, Family::Ipv4, &event)),
        "drop: IN=eth0 OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 SRC=192.0.2.2 DST=192.0.2.1 \
         LEN=44 TOS=0x08 PREC=0x00 TTL=64 ID=4660 DF PROTO=TCP SPT=40000 DPT=22 WINDOW=64240 RES=0x00 \
         SYN URGP=0 "
    );
}

#[test]
fn options_add_what_they_name() {
    let target = Target::Log(Log {
        tcp_sequence: true,
        tcp_options: true,
        ..Log::PLAIN
    });
    let mut event = event(&syn());
    event.mark = 0x2a;
    let line = line(&said(&target, Family::Ipv4, &event));
    assert!(line.contains(" SEQ=7 ACK=0 WINDOW="), "{line}");
    assert!(line.ends_with("URGP=0 OPT (020405B4) MARK=0x2a "), "{line}");
}

#[test]
fn who_sends_is_told_where_that_is_asked_and_known() {
    let asked = Target::Log(Log {
        owner: true,
        ..Log::PLAIN
    });
    let mut event = event(&syn());
    (event.mark, event.user, event.group) = (0x2a, 33, 34);
    let end = |target, event: &Event| {
        let line = line(&said(target, Family::Ipv4, event));
        line.split_once("URGP=0 ").map(|(_, end)| end.to_owned())
    };
    assert_eq!(end(&asked, &event).as_deref(), Some("MARK=0x2a "));
    event.owned = 1;
    let told = "UID=33 GID=34 MARK=0x2a ";
    assert_eq!(end(&asked, &event).as_deref(), Some(told));
    let plain = Target::Log(Log::PLAIN);
    assert_eq!(end(&plain, &event).as_deref(), Some("MARK=0x2a "));
}

#[test]
fn an_error_quotes_its_packet_in_brackets() {
    let target = Target::Log(Log::PLAIN);
    let mut packet = vec![
        0x45, 0xc0, 0, 72, 0, 1, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 3, 4, 0, 0, 0, 0,
        5, 0xdc,
    ];
    packet.extend(syn());
    let line = line(&said(&target, Family::Ipv4, &event(&packet)));
    assert_eq!(
        line,
        "IN=eth0 OUT= MAC= SRC=192.0.2.1 DST=192.0.2.2 LEN=72 TOS=0x00 PREC=0xC0 TTL=64 ID=1 PROTO=ICMP \
         TYPE=3 CODE=4 [SRC=192.0.2.2 DST=192.0.2.1 LEN=44 TOS=0x08 PREC=0x00 TTL=64 ID=4660 DF PROTO=TCP \
         SPT=40000 DPT=22 WINDOW=64240 RES=0x00 SYN URGP=0 ] MTU=1500 "
    );
}

#[test]
fn ipv6_is_written_out_and_nflog_names_its_group() {
    let target = Target::Nflog(Nflog {
        group: 3,
        prefix: "six ".into(),
        ..Nflog::PLAIN
    });
    let mut packet = vec![0x60, 0x20, 0, 5, 0, 12, 17, 63];
    packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0x10, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    assert_eq!(
        line(&said(&target, Family::Ipv6, &event(&packet))),
        "six IN=eth0 OUT= MAC= SRC=2001:0db8:0000:0000:0000:0000:0000:0002 \
         DST=2001:0db8:0000:0000:0000:0000:0000:0001 LEN=52 TC=2 HOPLIMIT=63 FLOWLBL=5 PROTO=UDP \
         SPT=4096 DPT=53 LEN=12 NFLOG=3 "
    );
}

#[test]
fn a_packet_cut_anywhere_gives_a_line() {
    let target = Target::Log(Log {
        tcp_sequence: true,
        tcp_options: true,
        ip_options: true,
        ..Log::PLAIN
    });
    let whole = syn();
    for length in 0..whole.len() {
        let mut event = event(&whole[..length]);
        event.bytes = whole.len() as u32;
        for family in [Family::Ipv4, Family::Ipv6] {
            assert!(line(&said(&target, family, &event)).starts_with("IN=eth0"));
        }
    }
}
