//! What the fuzzer calls (tests/fuzz), and all that it has found worth keeping, as an ordinary test.
//!
//! Each target is a function of bytes that panics when something is wrong. Its inputs are in
//! `tests/fuzz/corpus/TARGET`, found by coverage; those that once failed are in
//! `tests/fuzz/found/TARGET`, each under a name that says what was wrong.

pub mod datagrams;
pub mod datapath;
pub mod header;
#[cfg(test)]
mod hostile;
pub mod policy;
pub mod wire;

/// Takes numbers off the front of an input; zeroes when it has ended.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether anything is left.
    pub fn has_more(&self) -> bool {
        !self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// The next two bytes.
    pub fn half(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}

#[cfg(test)]
mod replay {
    use std::fs;
    use std::path::Path;

    /// Runs a target on all of its inputs, in the order of their names.
    fn replay(target: &str, run: fn(&[u8])) {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
        let mut inputs = Vec::new();
        for folder in ["corpus", "found"] {
            let folder = fuzz.join(folder).join(target);
            if !folder.exists() {
                continue;
            }
            for entry in fs::read_dir(&folder).expect("the folder is readable") {
                inputs.push(entry.expect("the folder is readable").path());
            }
        }
        assert!(!inputs.is_empty(), "no inputs for {target}");
        inputs.sort();
        for path in inputs {
            let bytes = fs::read(&path).expect("readable");
            // A panic's message does not say which.
            let outcome = std::panic::catch_unwind(|| run(&bytes));
            assert!(outcome.is_ok(), "{} fails", path.display());
        }
    }

    #[test]
    fn rule_files() {
        replay("rules", super::policy::rules);
    }

    #[test]
    fn policy_toml() {
        replay("document", super::policy::document);
    }

    #[test]
    fn headers() {
        replay("header", super::header::run);
    }

    #[test]
    fn whole_datapath() {
        replay("datapath", super::datapath::run);
    }
}
