//! What the two halves of fwbpf share: [`abi`], every byte of the BPF maps, defined once, and
//! [`datapath`], the packet's whole way, which the kernel programs and the simulator both run.
#![no_std]

pub mod abi;
pub mod datapath;
mod map_cell;

pub use map_cell::MapCell;
