//! The differential test: the same rules and the same packets through iptables and through fwbpf.
//!
//! [`grammar`] and [`traffic`] make the input from a seed, [`side`] sends it into a lab of its own
//! and collects what comes out, [`counters`] reads what was counted, [`differences`] is the one
//! place that knows where the two differ on purpose, [`minimise`] shrinks what diverges.

mod compare;
mod counters;
mod differences;
mod extensions;
pub mod grammar;
mod listen;
mod minimise;
mod random_ports;
mod run;
mod side;
mod simulated;
pub mod traffic;
pub mod write;

pub use run::{Options, Outcome, Sabotage, Tested, run};
