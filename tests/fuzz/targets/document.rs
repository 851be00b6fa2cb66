#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fwbpf_fuzz::fuzzed::policy::document(bytes));
