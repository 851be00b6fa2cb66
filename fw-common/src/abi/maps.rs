//! The names and sizes of the maps, and of their pins in the state directory.
//!
//! Every map is pinned under its name; `fw-ebpf/src/maps.rs` declares them.

/// ARRAY_OF_MAPS: policies, each an array of [`super::blob::Page`]. Generation `n` is in place
/// `n % POLICY_PLACES`.
pub const POLICY: &str = "POLICY";
/// ARRAY by place in [`POLICY`]: the first [`super::blob::NEAR_PAGES`] pages of that policy.
pub const NEAR_PAGES: &str = "NEAR_PAGES";
/// ARRAY of one u32: the place in [`POLICY`] of the running generation, in the two lowest bits.
/// Writing it is the flip. The bits above change whenever anything changes on which the verdict
/// about an established flow may depend, so that cached ones are void.
pub const ACTIVE: &str = "ACTIVE";
/// PERCPU_ARRAY of `[u64; 2]`: packets and bytes by counter slot.
pub const COUNTERS: &str = "COUNTERS";
/// HASH, u32 interface index -> [`super::device::Device`].
pub const DEVICES: &str = "DEVICES";
/// ARRAY by interface index: the records of [`DEVICES`] whose index is small.
pub const NEAR_DEVICES: &str = "NEAR_DEVICES";
/// LPM_TRIE of [`super::device::LocalKey`] -> u32, an [`super::device::address_kind`] and above it the
/// index of the address's interface: addresses that are this host's, and broadcast.
pub const LOCAL: &str = "LOCAL";
/// HASH of confirmed flows, IPv4: key [`super::flow::FlowKey4`].
pub const FLOWS4: &str = "FLOWS4";
/// HASH of confirmed flows, IPv6: key [`super::flow::FlowKey`].
pub const FLOWS6: &str = "FLOWS6";
/// LRU_HASH of embryonic flows opened from outside, IPv4.
pub const EMBRYOS4: &str = "EMBRYOS4";
/// LRU_HASH of embryonic flows opened from outside, IPv6.
pub const EMBRYOS6: &str = "EMBRYOS6";
/// ARRAY of [`super::flow::Hint`] by a hash of flow keys: where a look-up in the flow tables could
/// find anything. Missing in tables of gigabytes costs more than everything else that is done
/// about a packet of a flood.
pub const HINTS: &str = "HINTS";
/// ARRAY of u64: a bit for each of [`HINTS`], the first in the lowest, which is set where that one may say
/// anything. These 8 KiB stay in the nearest caches, where hints do not.
pub const HINTED: &str = "HINTED";
/// ARRAY of [`super::flow::Shortcut`]: ways through the chains, by the numbers that flows hold.
pub const SHORTCUTS: &str = "SHORTCUTS";
/// LRU_HASH of [`super::flow::FragmentKey`] -> [`super::flow::Fragment`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// DEVMAP_HASH: interfaces that XDP may send frames out of.
pub const XDP_DEVICES: &str = "XDP_DEVICES";
/// LRU_HASH, address -> u64: up to when a peer's share of ICMP errors is spent; zeroes for all's.
pub const ANSWERED: &str = "ANSWERED";
/// ARRAY_OF_MAPS: sets, each a HASH of [`super::set::SetKey`] -> [`super::set::SetEntry`] that was
/// made with room for the elements that it may have. The places that the running policy uses are
/// in its description.
pub const SETS: &str = "SETS";
/// ARRAY of [`super::set::SetInfo`] by place in [`SETS`].
pub const SET_INFO: &str = "SET_INFO";
/// ARRAY_OF_MAPS: lists, each an ARRAY of [`super::list::ListPage`]. The places that the running
/// policy uses are in its description.
pub const LISTS: &str = "LISTS";
/// PERCPU_ARRAY of u64 by [`super::stat::Stat`].
pub const STATS: &str = "STATS";
/// RINGBUF of [`super::event::Event`]: what LOG and NFLOG say.
pub const EVENTS: &str = "EVENTS";

/// PERCPU_ARRAY of u64: the chain interpreter's return addresses. Scratch, not pinned.
pub const FRAMES: &str = "FRAMES";
/// PERCPU_ARRAY of one value. Scratch, not pinned.
pub const SCRATCH: &str = "SCRATCH";

/// Places in [`POLICY`]. A packet that began under a generation may still be under way when the next
/// load begins, so that load takes a third place. Once it is written, the kernel has waited for such
/// packets (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c), and the first place is free.
pub const POLICY_PLACES: u32 = 3;
/// The word in [`ACTIVE`] that follows `word`, for a policy in `place`.
pub const fn next_active(word: u32, place: u32) -> u32 {
    (word & !3).wrapping_add(4) | place
}

/// The place that a word in [`ACTIVE`] names.
pub const fn place_of(word: u32) -> u32 {
    word & 3
}

/// Counter slots, unless the loader says otherwise: rules and policies of the running and the next
/// generation together.
pub const COUNTER_SLOTS: u32 = 262_144;
/// The most counter slots that the loader asks for.
pub const COUNTER_SLOTS_MAX: u32 = 1 << 22;
/// Capacity of [`DEVICES`].
pub const DEVICES_MAX: u32 = 4_096;
/// Capacity of [`NEAR_DEVICES`]. A container's interfaces take new indexes at every start.
pub const NEAR_DEVICES_MAX: u32 = 16_384;
/// Capacity of [`XDP_DEVICES`].
pub const XDP_DEVICES_MAX: u32 = 1_024;
/// Capacity of [`LOCAL`].
pub const LOCAL_MAX: u32 = 65_536;
/// Capacity of [`FLOWS4`].
pub const FLOWS4_MAX: u32 = 262_144;
/// Capacity of [`FLOWS6`].
pub const FLOWS6_MAX: u32 = 131_072;
/// Capacity of [`EMBRYOS4`] and of [`EMBRYOS6`].
pub const EMBRYOS_MAX: u32 = 65_536;
/// Elements of [`HINTS`].
pub const HINTS_MAX: u32 = 65_536;
/// Elements of [`HINTED`].
pub const HINTED_MAX: u32 = HINTS_MAX / u64::BITS;
/// Elements of [`SHORTCUTS`]. There are as many as pairs of interfaces, times the ways through FORWARD that
/// established connections take; without a free one, packets take the slow way.
pub const SHORTCUTS_MAX: u32 = 16_384;
/// Places in [`SETS`]: those of the running and of the next policy together.
pub const SETS_MAX: u32 = 512;
/// Sets that a policy may have; as many as ipset makes by default (CONFIG_IP_SET_MAX).
pub const POLICY_SETS_MAX: usize = 256;
/// Places in [`LISTS`]: those of the running and of the next policy together.
pub const LISTS_MAX: u32 = 512;
/// Lists that a policy may have.
pub const POLICY_LISTS_MAX: usize = 256;
/// Capacity of [`ANSWERED`].
pub const ANSWERED_MAX: u32 = 16_384;
/// Capacity of [`FRAGMENTS`].
pub const FRAGMENTS_MAX: u32 = 16_384;

/// Bytes of [`EVENTS`]: some three thousand events.
pub const EVENTS_MAX: u32 = 1 << 20;

/// The programs, by the name that they have in the object and as pins.
pub const PROGRAM_INGRESS: &str = "fwbpf_ingress";
/// tcx or clsact egress.
pub const PROGRAM_EGRESS: &str = "fwbpf_egress";
/// XDP early drop.
pub const PROGRAM_XDP: &str = "fwbpf_xdp";
/// Run by user space only: deletes flows that are still expired when it looks, cuts flows, changes
/// lists, and clears [`HINTED`].
pub const PROGRAM_SWEEP: &str = "fwbpf_sweep";

/// What [`PROGRAM_SWEEP`] does with a flow: it deletes one whose time is over.
pub const SWEEP_EXPIRED: u8 = 0;
/// It deletes the flow, whatever its time.
pub const SWEEP_ANY: u8 = 1;
/// It cuts the flow ([`super::flow::Flow::REVOKED`]).
pub const SWEEP_REVOKE: u8 = 2;
/// It has a flow go on that was cut.
pub const SWEEP_RESTORE: u8 = 3;

/// The mark of a frame with which [`PROGRAM_SWEEP`] changes a list instead of a flow.
pub const SWEEP_LISTS: u32 = 1;
/// The mark of one with which it clears the bits in [`HINTED`] of hints that say nothing any more.
pub const SWEEP_HINTS: u32 = 2;

/// Constant of the programs, u64: the flag that says to `bpf_l4_csum_replace` that a packet is
/// IPv6, or zero for kernels without it. The loader sets it.
pub const GLOBAL_FLAG_IPV6_SUM: &str = "FLAG_IPV6_SUM";

/// Constant of the programs, u64: [`SocketPlaces::word`]. The loader sets it.
pub const GLOBAL_SOCKET_PLACES: &str = "SOCKET_PLACES";
/// Constant of the programs, u64: [`CredentialPlaces::word`]. The loader sets it.
pub const GLOBAL_CREDENTIAL_PLACES: &str = "CREDENTIAL_PLACES";

/// What leads from a socket to the credentials of whoever opened it: places in the kernel's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPlaces {
    /// In a request for a connection, the socket that listens.
    pub listener: u16,
    /// In `struct sock`, the `struct socket`.
    pub socket: u16,
    /// In that, the file.
    pub file: u16,
    /// In that, the credentials.
    pub credentials: u16,
}

impl SocketPlaces {
    /// All of them.
    pub const fn word(&self) -> u64 {
        self.listener as u64
            | (self.socket as u64) << 16
            | (self.file as u64) << 32
            | (self.credentials as u64) << 48
    }
    /// See [`Self::listener`].
    #[inline(always)]
    pub const fn listener(word: u64) -> u64 {
        word & 0xffff
    }
    /// See [`Self::socket`].
    #[inline(always)]
    pub const fn socket(word: u64) -> u64 {
        word >> 16 & 0xffff
    }
    /// See [`Self::file`].
    #[inline(always)]
    pub const fn file(word: u64) -> u64 {
        word >> 32 & 0xffff
    }
    /// See [`Self::credentials`].
    #[inline(always)]
    pub const fn credentials(word: u64) -> u64 {
        word >> 48
    }
}

/// What is in credentials: places in `struct cred`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialPlaces {
    /// The user (`fsuid`).
    pub user: u16,
    /// The group (`fsgid`).
    pub group: u16,
}

impl CredentialPlaces {
    /// Both of them.
    pub const fn word(&self) -> u64 {
        self.user as u64 | (self.group as u64) << 16
    }
    /// See [`Self::user`].
    #[inline(always)]
    pub const fn user(word: u64) -> u64 {
        word & 0xffff
    }
    /// See [`Self::group`].
    #[inline(always)]
    pub const fn group(word: u64) -> u64 {
        word >> 16 & 0xffff
    }
}
