//! Every record that user space and the BPF programs exchange, defined once.
pub mod ct;
