//! End-to-end and conformance tests of fwbpf.
//!
//! [`lab`] makes network namespaces and removes them again, [`packet`] builds and reads packets,
//! [`conformance`] sends the same packets through iptables and through fwbpf and compares.

pub mod conformance;
pub mod lab;
pub mod packet;
