//! fwbpf's user space as a library: policy -> compile -> sim | kernel -> command.
pub mod addr;
pub mod compile;
pub mod host;
pub mod kernel;
pub mod policy;
pub mod sim;
