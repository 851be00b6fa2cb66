//! Every record that user space and the BPF programs exchange, defined once.
//!
//! Words are in host byte order unless a field says otherwise. Addresses are four words, the most
//! significant first, so that numeric order is address order; IPv4 uses the first and leaves the
//! others zero. Times are nanoseconds of `CLOCK_MONOTONIC_COARSE`.

pub mod blob;
pub mod ct;
pub mod device;
pub mod event;
pub mod flow;
pub mod list;
pub mod maps;
mod pod;
pub mod set;
pub mod stat;

/// IP address: four words, most significant first; IPv4 is the first word.
pub type Addr = [u32; 4];

/// IP version, as map records and the datapath name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}
