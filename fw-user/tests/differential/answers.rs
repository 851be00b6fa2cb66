//! Whom the answers of this host are told, and what they quote, as netfilter's are.

use fw_common::datapath::Verdict;
use fw_user::policy::model::Family;

use crate::machine::{ETH0, Machine, SERVER6, frame, icmpv6, other};

const GRE: u8 = 47;

/// Two tunnels from one sender, whose destinations are translated to that sender. The second one's first packet is
/// past its time: the error comes from where that was sent to, though a tunnel that is known bears the same name.
#[test]
fn an_error_about_a_first_packet_comes_from_where_it_was_sent_to() {
    const SENDER: &str = "fd17::2";
    const SECOND: &str = "2001:db8:50::7";
    let rules = "-A PREROUTING -j DNAT --to-destination fd17::2";
    let mut machine = Machine::with(Family::Ipv6, rules);
    machine.forward(ETH0, ETH0, other([SENDER, "2001:db8:50::2"], GRE));
    let second = other([SENDER, SECOND], GRE);
    let (verdict, packet) = machine.arrive(ETH0, frame(second.clone()));
    assert_eq!(verdict, Verdict::Pass);
    let error = icmpv6([SERVER6, SENDER], 64, 3, &packet.bytes[14..]);
    let (verdict, error) = machine.leave(ETH0, frame(error).made_here());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(error.bytes[14..], icmpv6([SECOND, SENDER], 64, 3, &second));
}
