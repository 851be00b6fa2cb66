//! Frames of every kind, cut at every place, and with every byte changed: what is left is judged as what a second
//! parser says that it is, as nothing else, and nothing panics.

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::datapath::{arrive_apart, right_frame, set_sum};
use super::{Input, header};

const L2: usize = 14;

/// Frames of both IP versions, with options or an extension header, whole and in fragments, of many protocols.
fn frames() -> Vec<Vec<u8>> {
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut frames = Vec::new();
    for shape in 0..8 {
        for _ in 0..6 {
            let mut choices = [0; 64];
            random.fill_bytes(&mut choices);
            frames.push(right_frame(&mut Input(&choices), shape));
        }
    }
    frames
}

/// Both parsers say the same of it, and the datapath judges it so.
fn judge(seed: u16, variants: Vec<Vec<u8>>) {
    for frame in &variants {
        header::run(&[&[0], &frame[..]].concat());
    }
    arrive_apart(seed, variants.into_iter());
}

#[test]
fn a_frame_may_end_anywhere() {
    for (seed, frame) in frames().into_iter().enumerate() {
        let cut = (0..=frame.len()).map(|length| frame[..length].to_vec());
        judge(seed as u16 % 8, cut.collect());
    }
}

/// With a right checksum of IPv4's header, too, without which the stack would drop it.
#[test]
fn any_byte_may_be_any_other() {
    for (seed, frame) in frames().into_iter().enumerate() {
        let mut variants = Vec::new();
        for at in L2..frame.len() {
            let old = frame[at];
            for new in [
                0,
                1,
                0x7f,
                0xff,
                old ^ 1,
                old ^ 0x10,
                old ^ 0x80,
                old.wrapping_add(1),
            ] {
                let mut changed = frame.clone();
                changed[at] = new;
                variants.push(changed.clone());
                if changed[12] == 0x08 {
                    set_sum(&mut changed[L2..]);
                    variants.push(changed);
                }
            }
        }
        judge(seed as u16 % 8, variants);
    }
}
