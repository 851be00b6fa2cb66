//! The running firewall: its pins, its programs, the flip from one policy to the next.
//!
//! Only this module needs root. Everything that makes up a running firewall is pinned in one
//! directory of a bpffs (see [`state`]), so that no process has to stay alive for it.

pub mod attach;
pub mod bridge;
mod btf;
pub mod bypassed;
pub mod clock;
mod ctnetlink;
pub mod fast_path;
pub mod flip;
pub mod flows;
pub mod import;
pub mod lists;
pub mod load;
pub mod probe;
pub mod read;
pub mod reverse_path;
pub mod sets;
pub mod shortcuts;
pub mod state;
pub mod sweep;
pub mod sync;
mod sys;
pub mod sysctl;
