//! Whose socket an skb belongs to.
#![allow(
    unsafe_code,
    reason = "follows the kernel's own pointers by the helpers made for it"
)]

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::{bpf_get_socket_uid, bpf_sk_fullsock, generated};
use fw_common::abi::maps::{CredentialPlaces, SocketPlaces};
use fw_common::datapath::packet::Owner;

/// Where the kernel that runs has what leads from a socket to whoever opened it
/// ([`SocketPlaces::word`]): the loader reads it from the kernel's BTF before the verifier sees the
/// programs. Zero where it says nothing of it, or where programs may not read the kernel's memory:
/// then the verifier leaves out [`follow`], with its helper.
#[unsafe(no_mangle)]
static SOCKET_PLACES: Global<u64> = Global::new(0);

/// The same of what a file says of who opened it ([`CredentialPlaces::word`]).
#[unsafe(no_mangle)]
static CREDENTIAL_PLACES: Global<u64> = Global::new(0);

/// States of sockets (include/net/tcp_states.h).
const TIME_WAIT: u32 = 6;
const NEW_SYN_RECV: u32 = 12;

/// Whose socket an skb belongs to. A connection that is being opened belongs to the one that listens
/// (`skb_to_full_sk`, include/net/inet_sock.h).
#[inline(never)]
pub fn owner_of(skb: *mut __sk_buff, owner: &mut Owner) {
    const SOCK_RAW: u32 = 3;
    const IPPROTO_RAW: u32 = 255;
    owner.exists = false;
    owner.known = false;
    owner.certain = false;
    owner.raw = false;
    owner.full = false;
    // SAFETY: the verifier allows these loads once the pointers are known not to be null.
    unsafe {
        let socket = (&raw const (*skb).__bindgen_anon_2.sk).read_volatile();
        if socket.is_null() {
            return;
        }
        let state = (&raw const (*socket).state).read_volatile();
        owner.full = state != NEW_SYN_RECV;
        if state != NEW_SYN_RECV {
            let full = bpf_sk_fullsock(socket);
            if full.is_null() {
                return;
            }
            // What is sent with a header of its own is a user's, whatever it is.
            owner.raw = (&raw const (*full).type_).read_volatile() == SOCK_RAW
                && (&raw const (*full).protocol).read_volatile() != IPPROTO_RAW;
        }
        let places = SOCKET_PLACES.load();
        if places != 0 {
            if state != TIME_WAIT {
                read_credentials(socket, state == NEW_SYN_RECV, places, owner);
            }
            return;
        }
        owner.exists = true;
        owner.known = true;
        owner.user = bpf_get_socket_uid(skb);
    }
}

/// As `owner_mt` and `nf_log_dump_sk_uid_gid` go (net/netfilter/xt_owner.c and nf_log_syslog.c): from
/// the socket to its file, and to the credentials of whoever opened that. Each of these stays what it
/// is until the program ends, as the kernel frees them one RCU grace period later.
#[inline(always)]
unsafe fn read_credentials(socket: *mut bpf_sock, opening: bool, places: u64, owner: &mut Owner) {
    owner.certain = true;
    let credentials = CREDENTIAL_PLACES.load();
    // The verifier lets nobody calculate with a pointer to a socket, but once it has been in a map's
    // value, it is a number.
    // SAFETY: the word is the scratch space's own.
    unsafe { (&raw mut owner.place).write_volatile(socket as u64) };
    if opening && !follow(owner, SocketPlaces::listener(places)) {
        return;
    }
    if !follow(owner, SocketPlaces::socket(places)) {
        return;
    }
    owner.exists = true;
    // Sockets of the kernel's own have no file.
    if !follow(owner, SocketPlaces::file(places)) {
        return;
    }
    if !follow(owner, SocketPlaces::credentials(places)) {
        return;
    }
    let from = owner.place;
    let user = from.wrapping_add(CredentialPlaces::user(credentials));
    let group = from.wrapping_add(CredentialPlaces::group(credentials));
    // SAFETY: the helper writes the four bytes of each number, and reads wherever it may.
    let failed = unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut owner.user).cast::<c_void>(),
            4,
            user as *const c_void,
        ) | generated::bpf_probe_read_kernel(
            (&raw mut owner.group).cast::<c_void>(),
            4,
            group as *const c_void,
        )
    };
    owner.place = 0;
    owner.known = failed == 0;
}

/// Goes on to what the pointer at an offset leads to; false if it leads nowhere.
#[inline(always)]
fn follow(owner: &mut Owner, offset: u64) -> bool {
    let place = &raw mut owner.place;
    // SAFETY: the helper writes the eight bytes of the word, zeroes if it cannot read.
    unsafe {
        let from = place.read_volatile().wrapping_add(offset);
        let failed =
            generated::bpf_probe_read_kernel(place.cast::<c_void>(), 8, from as *const c_void);
        failed == 0 && place.read_volatile() != 0
    }
}
