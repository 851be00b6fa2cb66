//! The commands of bpf(2) that aya has no function for.
#![allow(
    unsafe_code,
    reason = "bpf(2) and obtaining an owned descriptor from it; each block proves itself"
)]

use std::ffi::CString;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;

use aya::Pod;
use fw_common::abi::blob::Page;
use fw_common::abi::set::{SetEntry, SetKey};

// enum bpf_cmd, include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What a clock says.
pub fn milliseconds(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes a `struct timespec` to the pointer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

/// How many minutes the kernel's time zone is west of Greenwich (settimeofday(2)); 0 if it has none.
pub fn minutes_west() -> i16 {
    /// `struct timezone` of linux/time.h.
    #[repr(C)]
    struct TimeZone {
        minutes_west: i32,
        dst_time: i32,
    }
    let mut zone = TimeZone {
        minutes_west: 0,
        dst_time: 0,
    };
    // SAFETY: the kernel writes a `struct timezone` to the second pointer, and nothing to a null one.
    unsafe {
        libc::syscall(
            libc::SYS_gettimeofday,
            std::ptr::null_mut::<libc::timeval>(),
            &raw mut zone,
        )
    };
    i16::try_from(zone.minutes_west).unwrap_or_default()
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those that BPF_OBJ_GET reads, and `path` outlives the call, which
    // only reads the string.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches a link's program now. Removing the pin alone would detach it some time later, when the
/// kernel frees the inode.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
    }
    let mut attributes = Attributes {
        fd: link.as_raw_fd() as u32,
    };
    // SAFETY: the attributes are those that BPF_LINK_DETACH reads; no pointer is involved.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Runs a few instructions as a tc classifier on a frame of zeroes, and says what they return.
/// They are struct bpf_insn's, eight bytes each.
pub fn run_classifier(instructions: &[u64]) -> io::Result<i32> {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    const CLASSIFIER: u32 = 3;
    #[repr(C)]
    struct Load {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
    }
    let mut load = Load {
        kind: CLASSIFIER,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the attributes are the first ones that BPF_PROG_LOAD reads, and the kernel takes
    // those that follow for zero; it only reads through the pointers, which outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut load) }?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };

    #[repr(C)]
    struct Run {
        program: u32,
        returned: u32,
        length_in: u32,
        length_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let frame = [0u8; 64];
    let mut run = Run {
        program: program.as_raw_fd() as u32,
        returned: 0,
        length_in: frame.len() as u32,
        length_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the attributes are those that BPF_PROG_TEST_RUN reads; it reads the frame, which
    // outlives the call, and writes none back, as there is no place for it.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }?;
    Ok(run.returned as i32)
}

/// A place in a hash map, between two [`lookup_batch`]es. For hash maps the kernel writes the
/// number of the next bucket, four bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(#[expect(dead_code, reason = "only the kernel reads and writes it")] u32);

/// Reads the next elements of a hash map, about `keys.len()` at most, and says how many they were
/// and where to go on; without a place to go on, these were the last.
///
/// Fails with `ENOSPC` when a bucket holds more elements than the slices.
pub fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<Cursor>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<Cursor>)> {
    let mut next = Cursor::default();
    let mut attributes = Batch {
        in_batch: from
            .as_ref()
            .map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len()) as u32,
        map_fd: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, which the
    // caller's typed handle of the map has checked to be those of `K` and `V`; both are Pod, so
    // any bytes are a value. The cursors outlive the call.
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
        Ok(_) => Ok((attributes.count as usize, Some(next))),
        // The end of the map; what was found before it counts.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            Ok((attributes.count as usize, None))
        }
        Err(error) => Err(error),
    }
}

/// What the commands for many elements read.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Writes elements of an array for each CPU: for each key, as many values as there are possible
/// CPUs.
///
/// # Panics
///
/// If the number of values is not that.
pub fn update_batch<V: Pod>(
    map: BorrowedFd<'_>,
    cpus: usize,
    keys: &[u32],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(values.len(), keys.len() * cpus, "a value for each CPU");
    // The kernel rounds each CPU's value up to this.
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those that BPF_MAP_UPDATE_BATCH reads. The kernel reads `count`
    // keys and values; the caller's typed handle of the map has checked that these are of the
    // map's sizes, and the assertion that they are enough.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attributes) }.map(drop)
}

/// Makes an array of so many pages for a policy.
pub fn create_policy(pages: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_ARRAY`.
    const ARRAY: u32 = 2;
    /// `BPF_F_INNER_MAP | BPF_F_MMAPABLE`: inner maps of different length share a slot.
    const FLAGS: u32 = 0x1400;
    create_map(&mut Creation {
        kind: ARRAY,
        key_size: 4,
        value_size: size_of::<Page>() as u32,
        entries: pages,
        flags: FLAGS,
        inner: 0,
        numa_node: 0,
        name: *b"fwbpf_policy\0\0\0\0",
    })
}

/// Makes a map for a set of so many elements at most. It takes memory as it grows.
pub fn create_set(capacity: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_HASH`.
    const HASH: u32 = 1;
    /// `BPF_F_NO_PREALLOC`.
    const FLAGS: u32 = 1;
    create_map(&mut Creation {
        kind: HASH,
        key_size: size_of::<SetKey>() as u32,
        value_size: size_of::<SetEntry>() as u32,
        entries: capacity,
        flags: FLAGS,
        inner: 0,
        numa_node: 0,
        name: *b"fwbpf_set\0\0\0\0\0\0\0",
    })
}

/// What BPF_MAP_CREATE reads.
#[repr(C)]
struct Creation {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

fn create_map(creation: &mut Creation) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are the first ones that BPF_MAP_CREATE reads, and the kernel takes
    // those that follow for zero; no pointer is involved.
    let fd = unsafe { bpf(BPF_MAP_CREATE, creation) }?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes elements of a hash map.
///
/// # Panics
///
/// If there are not as many values as keys.
pub fn insert_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(values.len(), keys.len(), "a value for each key");
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those that BPF_MAP_UPDATE_BATCH reads. The kernel reads `count`
    // keys and values, which the assertion says are there, of the map's sizes, which are those of
    // the types that the caller made the map for.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attributes) }.map(drop)
}

/// The pages of a policy's array, in this process's memory: the very pages that programs read.
pub struct Pages {
    first: NonNull<Page>,
    count: usize,
}

impl Pages {
    /// Maps the first `count` pages of an array that [`create_policy`] made, for reading.
    pub fn of(policy: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        Self::mapped(policy, count, libc::PROT_READ)
    }

    /// Fills an array that no program has seen yet, and looks at the very pages that programs will read: the
    /// number of one that is not as it should be.
    pub fn fill(policy: BorrowedFd<'_>, pages: &[Page]) -> io::Result<Option<usize>> {
        /// Fewer pages are not worth a thread.
        const PIECE: usize = 1_024;
        let mapped = Self::mapped(policy, pages.len(), libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: the mapping is as long as `pages`, writable, and nobody else's.
        let places = unsafe { std::slice::from_raw_parts_mut(mapped.first.as_ptr(), mapped.count) };
        let piece = pages.len().div_ceil(2).max(PIECE);
        let wrong = std::thread::scope(|scope| {
            let write = |(number, (places, pages)): (usize, (&mut [Page], &[Page]))| {
                places.copy_from_slice(pages);
                let wrong = places
                    .iter()
                    .zip(pages)
                    .position(|(is, should)| is != should);
                wrong.map(|wrong| number * piece + wrong)
            };
            let mut pieces = places
                .chunks_mut(piece)
                .zip(pages.chunks(piece))
                .enumerate();
            let own = pieces.next();
            let others: Vec<_> = pieces.map(|one| scope.spawn(move || write(one))).collect();
            let own = own.and_then(write);
            let others = others.into_iter().map(|other| {
                other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            own.or(others.fold(None, Option::or))
        });
        Ok(wrong)
    }

    fn mapped(policy: BorrowedFd<'_>, count: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory of ours. The
        // kernel refuses one that is longer than the array.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<Page>(),
                protection,
                libc::MAP_SHARED,
                policy.as_raw_fd(),
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(place.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { first, count })
    }
}

impl Pages {
    /// The same, byte by byte.
    pub fn bytes(&self) -> &[u8] {
        let pages: &[Page] = self;
        // SAFETY: pages are arrays of arrays of numbers without padding (`abi::pod`), so each of their
        // bytes is a byte, and a slice of bytes has no alignment.
        unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), size_of_val(pages)) }
    }
}

impl Deref for Pages {
    type Target = [Page];

    fn deref(&self) -> &[Page] {
        // SAFETY: the mapping lives as long as `self`, is as long as `count` says, and any bytes
        // are a page. Nobody writes to it: programs only read policies, and user space fills them
        // before they are put in force.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `mapped` made, and nothing borrows from it any more.
        unsafe {
            libc::munmap(self.first.as_ptr().cast(), self.count * size_of::<Page>());
        }
    }
}

/// Runs a task in a child process, and does not wait for it. The child has only these descriptors
/// of ours, in this order from 0 on, so that nobody who waits for another to be closed waits for
/// the child.
///
/// `task` must do nothing but system calls: another thread of ours may hold any lock.
pub fn in_child<const N: usize>(
    kept: [BorrowedFd<'_>; N],
    task: impl FnOnce([BorrowedFd<'_>; N]) -> io::Result<()>,
) -> io::Result<Child> {
    // The standard descriptors are open in every Rust program, so `kept` is beyond them.
    const { assert!(N <= 3) };
    // SAFETY: the child makes system calls and nothing else, which is safe after fork even if this
    // process has other threads, and ends here.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child > 0 {
        return Ok(Child(child));
    }
    // SAFETY: none of the calls touches memory. The descriptors that `task` borrows are those that
    // `kept` was copied to, and stay open. _exit ends the child without running anything that the
    // parent registered.
    unsafe {
        for (place, kept) in (0..).zip(kept) {
            libc::dup2(kept.as_raw_fd(), place);
        }
        libc::syscall(libc::SYS_close_range, N, libc::c_uint::MAX, 0);
        let code = match task(std::array::from_fn(|place| {
            BorrowedFd::borrow_raw(place as i32)
        })) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        libc::_exit(code)
    }
}

/// A child that runs a task.
pub struct Child(libc::pid_t);

impl Child {
    /// How the task ended, if it has.
    pub fn ended(&self) -> Option<io::Result<()>> {
        let mut status = 0;
        // SAFETY: this is a child of ours, and `status` outlives the call.
        let ended = unsafe { libc::waitpid(self.0, &mut status, libc::WNOHANG) };
        (ended == self.0).then(|| match libc::WEXITSTATUS(status) {
            0 if libc::WIFEXITED(status) => Ok(()),
            code if libc::WIFEXITED(status) => Err(io::Error::from_raw_os_error(code)),
            _ => Err(io::ErrorKind::Interrupted.into()),
        })
    }
}

#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts a map into an array of maps. The kernel replaces the element at once, but lets the caller
/// go only when no program is left that may have the old one (`maybe_wait_bpf_programs`,
/// kernel/bpf/syscall.c).
pub fn put(maps: BorrowedFd<'_>, place: u32, map: BorrowedFd<'_>) -> io::Result<()> {
    let value = map.as_raw_fd() as u32;
    let mut attributes = Element {
        map: maps.as_raw_fd() as u32,
        reserved: 0,
        key: std::ptr::from_ref(&place) as u64,
        value: std::ptr::from_ref(&value) as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those that BPF_MAP_UPDATE_ELEM reads; keys and values of an array
    // of maps are four bytes, and outlive the call, which only reads them.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Takes a map out of an array of maps; as for [`put`], the kernel waits.
pub fn take_out(maps: BorrowedFd<'_>, place: u32) -> io::Result<()> {
    let mut attributes = Element {
        map: maps.as_raw_fd() as u32,
        reserved: 0,
        key: std::ptr::from_ref(&place) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: as for `put`; BPF_MAP_DELETE_ELEM reads the key.
    unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// An element of an array whose elements are four bytes; of an array of maps, the map's id.
pub fn word(map: BorrowedFd<'_>, place: u32) -> io::Result<Option<u32>> {
    let mut word = 0u32;
    let mut attributes = Element {
        map: map.as_raw_fd() as u32,
        reserved: 0,
        key: std::ptr::from_ref(&place) as u64,
        value: std::ptr::from_mut(&mut word) as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those that BPF_MAP_LOOKUP_ELEM reads. The kernel writes an
    // element, which is as long as `word` in the maps that this is called for.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
        Ok(_) => Ok(Some(word)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Some key of a hash map whose keys are four bytes; nothing if it is empty.
pub fn first_key(map: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut key = 0u32;
    let mut attributes = Element {
        map: map.as_raw_fd() as u32,
        reserved: 0,
        key: 0,
        value: std::ptr::from_mut(&mut key) as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those that BPF_MAP_GET_NEXT_KEY reads; the null key has it begin. The kernel
    // writes a key, which is as long as `key` in the map that this is called for.
    match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes) } {
        Ok(_) => Ok(Some(key)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of a map or program.
pub fn id(object: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    // The first two fields of struct bpf_map_info and of struct bpf_prog_info: the type and the id.
    let mut info = [0u32; 2];
    let mut attributes = Attributes {
        fd: object.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the attributes are those that BPF_OBJ_GET_INFO_BY_FD reads; it writes no more than
    // `length` bytes.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info[1])
}

/// # Safety
///
/// `attributes` must be what `command` reads of `union bpf_attr`, and every pointer in it must be
/// valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the attributes; their size is given, so the kernel reads and
    // writes no further.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
