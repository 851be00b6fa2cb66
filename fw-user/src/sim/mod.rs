//! The datapath on the host: `Packet` and `Tables` over plain collections, for `explain` and tests.
//!
//! The simulator runs `fw_common::datapath` itself. What it replaces is the kernel below: maps,
//! checksum helpers, the clock and the routing decision.

mod held;
mod host;
mod packet;
mod state;
mod tables;
mod trace;

pub use held::Held;
pub use host::{Host, HostDevice};
pub use packet::{NextHop, SlicePacket};
pub use state::{FlowState, State};
pub use tables::{Capacities, HostSet, HostTables};
pub use trace::{Event, Traced};
