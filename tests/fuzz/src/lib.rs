//! The fuzzer's functions are those of fw-user's tests, which run them on the corpora: no copies.
#![allow(
    missing_docs,
    dead_code,
    reason = "these are modules of an integration test, of which the fuzzer needs a part"
)]

#[path = "../../../fw-user/tests/differential/fuzzed/mod.rs"]
pub mod fuzzed;
#[path = "../../../fw-user/tests/differential/generate.rs"]
mod generate;
#[path = "../../../fw-user/tests/differential/model.rs"]
mod model;
