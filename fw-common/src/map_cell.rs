//! A word of a map value that other CPUs may read or write at any time.
#![allow(
    unsafe_code,
    reason = "the one place that shares mutable words between CPUs, and between BPF and user space"
)]

use core::cell::UnsafeCell;

/// Like the kernel's `READ_ONCE` and `WRITE_ONCE`: each [`get`](Self::get) and
/// [`set`](Self::set) is one untorn load or store, and the last writer wins.
///
/// `AtomicU32` would say the same, but the BPF target has no atomics below 64 bits.
#[repr(transparent)]
#[derive(Default)]
pub struct MapCell<T: Copy>(UnsafeCell<T>);

// SAFETY: `get` and `set` compile to one machine-word access each, and no reference to the inside
// is ever handed out, so no thread can observe a torn value or hold a borrow across a write.
unsafe impl<T: Copy + Send> Sync for MapCell<T> {}

impl<T: Copy> MapCell<T> {
    /// A cell with a first value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads the word once.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the pointer comes from a live `UnsafeCell`, is aligned, and always initialised.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes the word once.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`; writing through `UnsafeCell` is what it is for.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Where the word is, for what only the machine can do at once.
    #[inline(always)]
    pub const fn as_ptr(&self) -> *mut T {
        self.0.get()
    }
}

impl<T: Copy> Clone for MapCell<T> {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}

impl<T: Copy + core::fmt::Debug> core::fmt::Debug for MapCell<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

impl<T: Copy + PartialEq> PartialEq for MapCell<T> {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}
