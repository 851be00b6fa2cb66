//! Ports of bridges whose frames are iptables' business, too (`bridge-nf-call-iptables`).
//!
//! What such a bridge only switches meets PREROUTING where it comes in, FORWARD and POSTROUTING where it
//! leaves, as packets do that this host routes, and the bridge is the interface that it comes in by and that
//! it leaves by (`br_nf_pre_routing`, `br_nf_forward_ip` and `br_nf_post_routing`,
//! net/bridge/br_netfilter_hooks.c). A port's record is therefore its bridge's. What goes up from a port, or
//! comes down to it, is the business of the bridge's own programs.

use super::conntrack::{NOTE_SEEN, NOTE_SENT_ON};
use super::packet::{Packet, Way};
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::blob::HeaderFields;
use crate::abi::device::Device;

/// Whether the interface is a port of which the firewall is not asked about what the frame carries, well-formed or
/// not. (The record is in the scratch space.)
#[inline(never)]
pub fn is_not_asked<P: Packet>(packet: &P, scratch: &Scratch) -> bool {
    let asked = match packet.ethertype() {
        0x0800 => Device::PORT4,
        0x86dd => Device::PORT6,
        _ => 0,
    };
    scratch.device.is_port() && scratch.device.flags & asked == 0
}

/// Whether a frame that came in by a port is to be judged here. It is not if all of it goes up, which leaves
/// the bridge's program a note by which port it came; frames to many are judged here, once for all.
#[inline(never)]
pub fn is_switched<P: Packet>(packet: &mut P, scratch: &mut Scratch) -> bool {
    let Some(to) = packet.load::<6>(0) else {
        return false;
    };
    const TO_MANY: u8 = 1;
    if to == scratch.device.link || !packet.is_for_other_host() && to[0] & TO_MANY == 0 {
        scratch.came_through = packet.device();
        packet.set_note(scratch.came_through as u16 & !NOTE_SEEN);
        return false;
    }
    true
}

/// The port of the bridge that has handed over what comes up to it, by the note that its program left, which has the
/// index's low bits (nobody else can leave it one): the others are known where that program ran on this CPU.
#[inline(always)]
pub fn of_note(scratch: &Scratch, note: u16) -> u32 {
    if note != 0 && scratch.came_through as u16 & !NOTE_SEEN == note {
        scratch.came_through
    } else {
        note as u32
    }
}

/// Has the bridge's record, as it is for the packet in hand, say which port has handed it over, if rules ask.
#[inline(never)]
pub fn take_patterns<T: Tables>(tables: &T, scratch: &mut Scratch, bridge: u32) {
    if scratch.features & HeaderFields::PORTS != 0
        && let Some(port) = tables.device(scratch.port)
        && port.master == bridge
    {
        scratch.device.patterns = port.patterns;
    }
}

/// The port that has handed the packet over that is judged; or 0. `comes_in`: the hook is ingress.
#[inline(always)]
pub fn handed_over_by(scratch: &Scratch, comes_in: bool) -> u32 {
    if comes_in {
        scratch.port
    } else if scratch.device.is_port() {
        scratch.came_by
    } else if scratch.came_by != 0
        && scratch.arrival_flags & Device::BRIDGE != 0
        && scratch.is_transit()
    {
        scratch.transit_port
    } else {
        0
    }
}

/// What came by a port has another destination now. If that is behind a port of the same bridge, and its link-layer
/// address is known, it is switched to there; otherwise the stack has to find out where it is, and the frame goes up
/// (`br_nf_pre_routing_finish` and `br_nf_pre_routing_finish_bridge`). Whether it is switched.
#[inline(never)]
pub fn send_elsewhere<P: Packet>(packet: &mut P, scratch: &mut Scratch) -> bool {
    let headers = &scratch.headers;
    let bridge = match scratch.device.master {
        0 => packet.device(),
        bridge => bridge,
    };
    let way = Way {
        device: bridge,
        family: headers.family,
        source: &headers.key.source,
        destination: &headers.key.destination,
        protocol: headers.key.protocol as u8,
        ports: headers.flow_ports,
        tos: headers.tos,
        bytes: headers.bytes,
    };
    let route = &mut scratch.sending.route;
    let switched = packet.route(&way, route) && route.device == bridge;
    let to = if switched {
        route.destination()
    } else {
        scratch.device.link
    };
    // A frame that is too short for this is too short for IP, too.
    packet.store(0, to).is_some() && switched
}

/// Whether the packet that leaves by a bridge, or by a port of it, had come up to be judged, and is switched all the same:
/// [`Scratch::switching`] says by which port it came in. What has it switched is one call on one CPU.
#[inline(always)]
pub fn is_switching<P: Packet>(packet: &P, scratch: &Scratch) -> bool {
    scratch.switching != 0 && packet.note() & NOTE_SEEN != 0 && scratch.may_be_transit()
}

/// Of a packet that leaves by an interface of its own, and came in by a bridge: the port that it came through, if
/// rules ask for it and it is the last that went this way on this CPU; or 0.
#[inline(always)]
pub fn of_transit(scratch: &Scratch) -> u32 {
    if scratch.features & HeaderFields::PORTS != 0 && scratch.is_transit() {
        scratch.transit_port
    } else {
        0
    }
}

/// To POSTROUTING, what a bridge switches has come by no interface, though by a port (`br_nf_post_routing`).
#[inline(never)]
pub fn forget_arrival<T: Tables>(tables: &T, scratch: &mut Scratch) {
    const ANY: u64 = 1;
    let bridge = match tables.device(scratch.device.master) {
        Some(bridge) => scratch.patterns(bridge),
        None => 0,
    };
    scratch.query.in_patterns = scratch.query.in_patterns & !bridge | ANY;
}

/// What becomes of a frame that leaves by a port: the bridge's program has judged it, or it is none of the firewall's.
pub const PASSED: u32 = 0;
/// It is judged here.
pub const SWITCHED: u32 = 1;
/// It came in by a port that was not guarded yet.
pub const UNGUARDED: u32 = 2;
/// It came in by this port, by which the bridge sends nothing back (`should_deliver`, net/bridge/br_forward.c).
pub const NOT_BACK: u32 = 3;

/// One of [`PASSED`] and its siblings.
#[inline(never)]
pub fn departure<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) -> u32 {
    if is_switching(packet, scratch) {
        if packet.device() == scratch.switching && scratch.device.flags & Device::HAIRPIN == 0 {
            return NOT_BACK;
        }
        scratch.came_by = scratch.switching;
        return SWITCHED;
    }
    // What this host makes, or sends back in place of what it refused, the bridge's program has judged.
    if scratch.came_by == 0 || packet.note() == NOTE_SENT_ON {
        return PASSED;
    }
    match tables.device(scratch.came_by) {
        Some(arrival) if arrival.master != scratch.device.master => PASSED,
        Some(_) if packet.note() & NOTE_SEEN != 0 => SWITCHED,
        Some(_) => UNGUARDED,
        // Routed from where the firewall sees no IP packets, the frame would be the bridge's own.
        None => match packet.load::<6>(6) {
            Some(from) if from == scratch.device.link => PASSED,
            _ => UNGUARDED,
        },
    }
}
