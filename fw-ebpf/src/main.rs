//! The kernel half of fwbpf.
#![no_std]
#![no_main]
