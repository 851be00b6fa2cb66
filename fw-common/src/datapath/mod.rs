//! The packet's way: parse -> track -> classify -> plan -> rewrite -> verdict.
pub mod packet;
pub mod tables;
