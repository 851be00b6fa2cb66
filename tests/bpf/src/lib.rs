//! What the benchmark's programs in the kernel and user space agree on.
#![no_std]

/// A frame for IPv4: Ethernet, IPv4, UDP or TCP, and what is left as payload.
pub const FRAME4: usize = 64;
/// A frame for IPv6.
pub const FRAME6: usize = 80;

/// What the generator sends, and how far it has come. The one value of the map `PLAN`.
///
/// Frame number i has the i-th address, counted from `address` and starting anew after
/// `addresses` of them, and the i-th port likewise.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The frame. What varies, and the checksums, are zero in it.
    pub frame: [u64; FRAME6 / 8],
    /// How many frames were made.
    pub sent: u64,
    /// The ones' complement sum of the IPv4 header, in words as they lie in memory.
    pub header_sum: u32,
    /// The same of the pseudo header, the transport header and the payload.
    pub transport_sum: u32,
    /// The lowest source address, its last 32 bits in host order.
    pub address: u32,
    /// How many there are.
    pub addresses: u32,
    /// The lowest port, source or destination.
    pub port: u32,
    /// How many there are.
    pub ports: u32,
    /// The next frame's address, counted from `address`.
    pub next_address: u32,
    /// The next frame's port, counted from `port`.
    pub next_port: u32,
    /// 1 if the destination port varies rather than the source port.
    pub vary_destination: u32,
    /// 1 for TCP, 0 for UDP.
    pub tcp: u32,
}

/// What a sink has seen. The one value of the map `SINK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sink {
    /// Packets that came.
    pub total: u64,
    /// Those whose source address ends in `source`.
    pub matching: u64,
    /// The last 32 bits of the expected source address, as they lie in memory.
    pub source: u32,
    /// Keeps the size a multiple of eight.
    pub reserved: u32,
}

/// What the floor of forwarding knows of a flow: its key in an LRU map of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FloorKey {
    /// Addresses and ports as they lie in the packet.
    pub words: [u32; 3],
    /// The protocol.
    pub protocol: u32,
}

/// How the floor of forwarding translates. The one value of the map `FLOOR`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// The masquerade address as it lies in memory.
    pub address: u32,
    /// Frames that went on.
    pub forwarded: u32,
}

/// How many flows the floor remembers.
pub const FLOOR_FLOWS: u32 = 131_072;
