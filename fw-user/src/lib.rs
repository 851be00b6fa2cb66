//! fwbpf's user space as a library: policy -> compile -> sim | kernel -> command.
pub mod addr;
pub mod cli;
pub mod command;
pub mod compile;
pub mod daemon;
pub mod explain;
pub mod host;
pub mod kernel;
pub mod manual;
pub mod policy;
pub mod sim;
