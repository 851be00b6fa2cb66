#![allow(unsafe_code, reason = "packet pointers and map values")]
#![allow(
    missing_docs,
    reason = "the program macros make undocumented functions beside the documented ones"
)]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_NOEXIST, TC_ACT_UNSPEC, bpf_fib_lookup as FibParams};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_redirect};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::{TcContext, XdpContext};
use bench_ebpf::{FLOOR_FLOWS, FRAME4, FRAME6, Floor, FloorKey, Plan, Sink};

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);

#[map]
static SINK: Array<Sink> = Array::with_max_entries(1, 0);

#[map]
static FLOOR: Array<Floor> = Array::with_max_entries(1, 0);

#[map]
static FLOOR_TABLE: LruHashMap<FloorKey, [u64; 8]> = LruHashMap::with_max_entries(FLOOR_FLOWS, 0);

/// What [`floor_track`] knows of connections.
#[map]
static TRACKED: HashMap<FloorKey, [u64; 8]> = HashMap::with_max_entries(FLOOR_FLOWS, 0);

/// Where things are in a frame.
struct Layout {
    address: usize,
    header_check: Option<usize>,
    transport: usize,
}

const LAYOUT4: Layout = Layout {
    address: 26,
    header_check: Some(24),
    transport: 34,
};

const LAYOUT6: Layout = Layout {
    address: 34,
    header_check: None,
    transport: 54,
};

/// Makes the next IPv4 frame of the plan and sends it from the interface that it is run for.
#[xdp]
pub fn generate4(context: XdpContext) -> u32 {
    generate::<FRAME4>(&context, &LAYOUT4)
}

/// The same for IPv6.
#[xdp]
pub fn generate6(context: XdpContext) -> u32 {
    generate::<FRAME6>(&context, &LAYOUT6)
}

#[inline(always)]
fn generate<const LENGTH: usize>(context: &XdpContext, layout: &Layout) -> u32 {
    let Some(plan) = PLAN.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the benchmark runs one generator of a map at a time, on one CPU.
    let plan = unsafe { &mut *plan };
    let Some(frame) = frame::<LENGTH>(context) else {
        return XDP_ABORTED;
    };
    // The kernel hands out the same pages again and again, in whatever state the receiver left
    // them: everything is written anew.
    for word in 0..LENGTH / 8 {
        write(frame, word * 8, plan.frame[word]);
    }
    let address = (plan.address + plan.next_address).to_be();
    let port = ((plan.port + plan.next_port) as u16).to_be();
    plan.next_address = next(plan.next_address, plan.addresses);
    plan.next_port = next(plan.next_port, plan.ports);
    plan.sent += 1;

    write(frame, layout.address, address);
    let varied = (address & 0xffff) + (address >> 16);
    if let Some(check) = layout.header_check {
        write(frame, check, !fold(plan.header_sum + varied));
    }
    let side = if plan.vary_destination == 1 { 2 } else { 0 };
    if side == 2 {
        write(frame, layout.transport + 2, port);
    } else {
        write(frame, layout.transport, port);
    }
    let sum = !fold(plan.transport_sum + varied + port as u32);
    if plan.tcp == 1 {
        write(frame, layout.transport + 16, sum);
    } else {
        write(frame, layout.transport + 6, sum);
    }
    XDP_TX
}

#[inline(always)]
fn next(at: u32, count: u32) -> u32 {
    if at + 1 >= count { 0 } else { at + 1 }
}

/// Takes what comes out of the firewall, and counts IPv4 packets and IPv6's TCP and UDP.
#[xdp]
pub fn sink(context: XdpContext) -> u32 {
    let Some(sink) = SINK.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: as in `generate`: the path is on one CPU.
    let sink = unsafe { &mut *sink };
    let Some(frame) = frame::<42>(&context) else {
        return XDP_DROP;
    };
    // What the stack sends by itself, ARP and multicast listener reports, is nobody's packet.
    let next_header = read::<u8>(frame, 20);
    let source: u32 = match u16::from_be(read(frame, 12)) {
        0x0800 => read(frame, LAYOUT4.address),
        0x86dd if next_header == 6 || next_header == 17 => read(frame, LAYOUT6.address),
        _ => return XDP_DROP,
    };
    sink.total += 1;
    if source == sink.source {
        sink.matching += 1;
    }
    XDP_DROP
}

/// Lets everything pass: an interface can only send generated frames if it has an XDP program.
#[xdp]
pub fn pass(_context: XdpContext) -> u32 {
    XDP_PASS
}

/// The floor of dropping: nothing is looked at.
#[xdp]
pub fn floor_drop(_context: XdpContext) -> u32 {
    if let Some(floor) = FLOOR.get_ptr_mut(0) {
        // SAFETY: as in `generate`.
        unsafe { (*floor).forwarded += 1 };
    }
    XDP_DROP
}

/// The floor of masquerading: one look-up of the flow, the kernel's route, the new header.
#[xdp]
pub fn floor_forward(context: XdpContext) -> u32 {
    floor_forwarded(&context).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn floor_forwarded(context: &XdpContext) -> Option<u32> {
    const UDP: u8 = 17;
    let frame = frame::<42>(context)?;
    let is_plain = read::<u16>(frame, 12) == 0x0800_u16.to_be()
        && read::<u8>(frame, 14) == 0x45
        && read::<u8>(frame, 22) > 1
        && read::<u8>(frame, 23) == UDP;
    if !is_plain {
        return None;
    }
    let floor = FLOOR.get_ptr_mut(0)?;
    // SAFETY: as in `generate`.
    let floor = unsafe { &mut *floor };
    let source: u32 = read(frame, 26);
    let destination: u32 = read(frame, 30);
    let key = FloorKey {
        words: [source, destination, read(frame, 34)],
        protocol: u32::from(UDP),
    };
    match FLOOR_TABLE.get_ptr_mut(&key) {
        // SAFETY: as in `generate`; the map gives values of this type.
        Some(flow) => unsafe { (*flow)[0] += 1 },
        None => FLOOR_TABLE
            .insert(&key, &[0; 8], u64::from(BPF_NOEXIST))
            .ok()?,
    }

    // SAFETY: the all-zero record is a valid request of plain integers.
    let mut route: FibParams = unsafe { core::mem::zeroed() };
    route.family = 2;
    route.l4_protocol = UDP;
    // SAFETY: the context is the program's own, and plain integers are read.
    route.ifindex = unsafe { (*context.ctx).ingress_ifindex };
    route.__bindgen_anon_3.ipv4_src = source;
    route.__bindgen_anon_4.ipv4_dst = destination;
    // SAFETY: the record is as large as said.
    let found = unsafe {
        bpf_fib_lookup(
            context.as_ptr(),
            &raw mut route,
            size_of::<FibParams>() as i32,
            0,
        )
    };
    if found != 0 {
        return None;
    }
    // Three words of two bytes each, as aligned as the record has them.
    for (start, mac) in [(0, route.dmac), (6, route.smac)] {
        let [a, b, c, d, e, f] = mac;
        for (place, pair) in [[a, b], [c, d], [e, f]].into_iter().enumerate() {
            write(frame, start + place * 2, u16::from_ne_bytes(pair));
        }
    }
    let address = floor.address;
    let words = |value: u32| (value & 0xffff) + (value >> 16);
    // RFC 1624: HC' = ~(~HC + ~m + m'), for the address and, in the header, the TTL.
    let change = words(!source) + words(address);
    let ttl: u8 = read(frame, 22);
    let header: u16 = read(frame, 24);
    let ttl_change =
        u32::from(!u16::from_ne_bytes([ttl, UDP])) + u32::from(u16::from_ne_bytes([ttl - 1, UDP]));
    write(frame, 22, ttl - 1);
    write(frame, 24, !fold(u32::from(!header) + change + ttl_change));
    write(frame, 26, address);
    let check: u16 = read(frame, 40);
    if check != 0 {
        write(frame, 40, !fold(u32::from(!check) + change));
    }
    floor.forwarded += 1;
    // SAFETY: plain integers.
    Some(unsafe { bpf_redirect(route.ifindex, 0) } as u32)
}

/// The floor of tracking TCP: a look-up of the connection for each packet, which is noted there, or stored if there
/// is none. No state, no window, no rule.
#[classifier]
pub fn floor_track(context: TcContext) -> i32 {
    track(&context);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn track(context: &TcContext) -> Option<()> {
    const TCP: u8 = 6;
    const HEADERS: usize = 54;
    if context.data() + HEADERS > context.data_end() {
        return None;
    }
    let packet = context.data() as *mut u8;
    let is_plain = read::<u16>(packet, 12) == 0x0800_u16.to_be()
        && read::<u8>(packet, 14) == 0x45
        && read::<u8>(packet, 23) == TCP;
    if !is_plain {
        return None;
    }
    let (source, destination): (u32, u32) = (read(packet, 26), read(packet, 30));
    let ports: u32 = read(packet, 34);
    let words = if source < destination {
        [source, destination, ports]
    } else {
        [destination, source, ports.rotate_left(16)]
    };
    let key = FloorKey {
        words,
        protocol: u32::from(TCP),
    };
    // SAFETY: no argument, no side effect.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    match TRACKED.get_ptr_mut(&key) {
        // SAFETY: as in `generate`; the map gives values of this type.
        Some(flow) => unsafe { (*flow)[0] = now },
        None => TRACKED.insert(&key, &[now, 0, 0, 0, 0, 0, 0, 0], 0).ok()?,
    }
    let floor = FLOOR.get_ptr_mut(0)?;
    // SAFETY: as in `generate`.
    unsafe { (*floor).forwarded += 1 };
    Some(())
}

/// The start of a frame that has at least this many bytes.
#[inline(always)]
fn frame<const LENGTH: usize>(context: &XdpContext) -> Option<*mut u8> {
    (context.data() + LENGTH <= context.data_end()).then_some(context.data() as *mut u8)
}

#[inline(always)]
fn write<T>(frame: *mut u8, offset: usize, value: T) {
    // SAFETY: the verifier has seen the check in `frame` and refuses what goes beyond it. It also
    // refuses misaligned access where the CPU has none; where it has (x86-64, arm64), this keeps
    // LLVM from writing byte after byte.
    unsafe { frame.add(offset).cast::<T>().write_volatile(value) }
}

#[inline(always)]
fn read<T: Copy>(frame: *mut u8, offset: usize) -> T {
    // SAFETY: as in `write`.
    unsafe { frame.add(offset).cast::<T>().read_volatile() }
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could get here, as this does not end.
    loop {}
}

/// Helpers that the kernel exports to GPL programs only need this.
#[expect(unsafe_code, reason = "the loader finds the licence by its section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
