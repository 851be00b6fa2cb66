//! How the kernel's clocks and its time zone lie.

use fw_common::abi::blob::HeaderFields;

use super::sys;

/// What [`HeaderFields::clock`] packs. Programs read the TAI clock; it is ahead of the clock of the
/// day by whole seconds, which whoever keeps the time sets with leap seconds.
pub fn read() -> u32 {
    let ahead = sys::milliseconds(libc::CLOCK_TAI) - sys::milliseconds(libc::CLOCK_REALTIME);
    let seconds = (ahead + 500).div_euclid(1000);
    HeaderFields::clock(
        i16::try_from(seconds).unwrap_or_default(),
        sys::minutes_west(),
    )
}
