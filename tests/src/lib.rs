//! End-to-end and conformance tests of fwbpf.
//!
//! [`lab`] makes network namespaces and removes them again, [`packet`] builds and reads packets,
//! [`guide`] is the guide's policy in the lab, [`smoke`] a few claims about it for other
//! kernels, [`conformance`] sends the same packets through iptables and through fwbpf and
//! compares, [`association`] is SCTP by sockets, [`tenants`] are networks of the same addresses, [`beside`] compares the tracking of single packets, [`bench`] measures.

pub mod association;
pub mod bench;
pub mod beside;
pub mod conformance;
pub mod guide;
pub mod lab;
pub mod packet;
pub mod smoke;
pub mod tenants;
