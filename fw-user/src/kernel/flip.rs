//! The flip, and the waiting that belongs to it.
//!
//! Three policies are told apart by their place in `POLICY`: the next one, the running one, and the
//! one before it, which packets that are under way may still be judged by. Nothing of the latter
//! may be used again before the last such packet is through. The kernel can wait for that, for two
//! or three ticks of its clock, in which there is nothing to do: children of ours do it, and whoever
//! loads next waits for them in [`StateDir::settled`](super::state::StateDir::settled).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fw_common::abi::maps::{POLICY_PLACES, next_active};
use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use rustix::thread::{MembarrierCommand, membarrier};

use super::load::Maps;
use super::state::Settled;
use super::sys;

/// The children that wait, for one flip. They are made before the policy is read: making one copies
/// this process's page tables, and of a large policy that is all of its memory. Until they hear what to
/// wait for they have nothing of ours but a socket, and they end when it is closed.
pub struct Helpers {
    put: Helper,
    settle: Helper,
}

impl Helpers {
    /// Makes them.
    pub fn start() -> Result<Self> {
        let helpers = || -> io::Result<Self> {
            Ok(Self {
                put: Helper::start(put)?,
                settle: Helper::start(settle)?,
            })
        };
        helpers().context("cannot start a process")
    }
}

/// Puts a policy into its place and in force.
pub fn flip(
    maps: &mut Maps,
    place: u32,
    policy: BorrowedFd<'_>,
    settled: &Settled,
    helpers: Helpers,
) -> Result<()> {
    let Helpers { put, settle } = helpers;
    let places = maps.policy.as_fd();
    put_by(&put, places, place, policy).context("cannot put it beside the running one")?;
    // Before the flip, so that it is waited for whatever becomes of this process.
    settle
        .begin(place, [places, settled.as_fd()])
        .context("cannot tell a process what to wait for")?;
    let word = maps.active.get(&0, 0)?;
    maps.active.set(0, next_active(word, place), 0)?;
    Ok(())
}

/// How often a process looks whether the other has come so far.
const LOOK: Duration = Duration::from_micros(20);

/// Has a policy put into its place, which nobody looks at yet. The kernel makes whoever does that wait
/// nevertheless, so a child does it.
fn put_by(
    helper: &Helper,
    places: BorrowedFd<'_>,
    place: u32,
    policy: BorrowedFd<'_>,
) -> io::Result<()> {
    let wanted = Some(sys::id(policy)?);
    helper.begin(place, [places, policy])?;
    while sys::word(places, place)? != wanted {
        if let Some(ended) = helper.child.ended() {
            ended?;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What the first child does.
fn put(place: u32, [places, policy]: [OwnedFd; 2], _socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::put(places.as_fd(), place, policy.as_fd())
}

/// What the second child does: it waits, once `place` is active, for the last packet that began before.
/// It keeps the lock for so long. The policy before the running one, which no packet has met since the
/// last flip, goes meanwhile: taking it out has the kernel wait.
fn settle(place: u32, [places, _settled]: [OwnedFd; 2], socket: BorrowedFd<'_>) -> io::Result<()> {
    // Nothing more is said: the other end is closed after the flip, or because there will be none.
    recv(socket, &mut [0u8; 1], RecvFlags::empty())?;
    let unused = (place + 1) % POLICY_PLACES;
    if sys::take_out(places.as_fd(), unused).is_err() {
        // It was empty: so far there were only one or two.
        membarrier(MembarrierCommand::Global)?;
    }
    Ok(())
}

/// A child that has yet to hear what it has to do.
struct Helper {
    child: sys::Child,
    socket: OwnedFd,
}

/// Descriptors that a child is given.
const GIVEN: usize = 2;

impl Helper {
    /// `task` makes system calls and does nothing else.
    fn start(
        task: fn(u32, [OwnedFd; GIVEN], BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let child = sys::in_child([theirs.as_fd()], |[socket]| match receive(socket)? {
            Some((place, given)) => task(place, given, socket),
            None => Ok(()),
        })?;
        Ok(Self {
            child,
            socket: ours,
        })
    }

    /// Tells it the place, and gives it copies of descriptors.
    fn begin(&self, place: u32, given: [BorrowedFd<'_>; GIVEN]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(GIVEN))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        with.push(SendAncillaryMessage::ScmRights(&given));
        let place = place.to_ne_bytes();
        sendmsg(
            &self.socket,
            &[IoSlice::new(&place)],
            &mut with,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }
}

/// What [`Helper::begin`] says; nothing if the other end is closed. It takes no memory from the allocator,
/// whose locks another thread of the parent may have held.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(u32, [OwnedFd; GIVEN])>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(GIVEN))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut place = [0; size_of::<u32>()];
    let read = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut place)],
        &mut with,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if read.bytes == 0 {
        return Ok(None);
    }
    let mut given = with.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(given) => Some(given),
        _ => None,
    });
    let mut given = given.by_ref().flatten();
    let (Some(first), Some(second)) = (given.next(), given.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(Some((u32::from_ne_bytes(place), [first, second])))
}
