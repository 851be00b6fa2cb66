//! The commands of bpf(2) that aya has no function for.
#![allow(
    unsafe_code,
    reason = "bpf(2) and obtaining an owned descriptor from it; each block proves itself"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;

// enum bpf_cmd, include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_DETACH: libc::c_long = 34;

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
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        element_flags: u64,
        flags: u64,
    }
    let mut next = Cursor::default();
    let mut attributes = Attributes {
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
