//! Network namespaces as values: what a test makes is gone when the test ends, even by a panic.

mod daemon;
mod firewall;
mod namespace;
mod raw_socket;
mod requirements;
pub mod saved;
mod server;
pub mod sockets;

pub use daemon::{Daemon, scrape};
pub use firewall::{Firewall, Fwbpf, Iptables, fwbpf_binary};
pub use namespace::{Namespace, run};
pub use raw_socket::{FrameSocket, LocalReceiver, LocalSender, Received, UnfinishedSender};
pub use requirements::{Missing, no_hand_over, ready};
pub use server::{Peers, ServerLab, address, mac, quiet};
