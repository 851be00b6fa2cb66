//! Hints say what the tables of flows may have, and bits which hints say anything: too much now and then, never too
//! little.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use fw_common::abi::flow::Hint;
use fw_common::abi::maps::{HINTS_MAX, PROGRAM_SWEEP, SWEEP_HINTS};
use fw_user::kernel::flows::monotonic_now;

use crate::kernel::Kernel;

impl Kernel {
    /// Clears the bits of hints that say nothing any more, as the daemon does now and then.
    pub fn forget_hints(&self) -> Result<()> {
        let context: Vec<u8> = [0, 0, SWEEP_HINTS]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let program: &SchedClassifier = self.program(PROGRAM_SWEEP)?;
        program
            .test_run(TestRunOptions {
                data_in: Some(&[0; 128]),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .context("run the program that sweeps")?;
        Ok(())
    }

    /// That each flow's hint says so, and has its bit; and that bits are cleared where there is nothing.
    pub fn check_hints(&self) -> Result<()> {
        let before = monotonic_now();
        self.forget_hints()?;
        let words = self.hints()?;
        for (key, state) in self.state()?.flows {
            let number = key.hint();
            let (word, bit) = words[number as usize];
            let alive = state.flow.expires.get() > before;
            ensure!(
                Hint::may_have_kind(word, key.kind())
                    && if state.embryo {
                        !alive || Hint::may_have_embryo(word, || before)
                    } else {
                        Hint::may_have_confirmed(word)
                    },
                "hint {number} is {word:#x}, beside {key:?}, {state:?}"
            );
            ensure!(bit || !alive, "hint {number} has no bit, beside {key:?}");
        }
        for (number, (word, bit)) in words.into_iter().enumerate() {
            ensure!(
                !bit || !Hint::is_idle(word, before),
                "hint {number} has a bit, but is {word:#x}"
            );
            ensure!(
                bit || Hint::is_idle(word, monotonic_now()),
                "hint {number} has no bit, but is {word:#x}"
            );
        }
        Ok(())
    }

    /// Every hint's word, and whether it has its bit.
    fn hints(&self) -> Result<Vec<(u64, bool)>> {
        let of = |number: u32| {
            let bits = self.maps().hinted.get(&(number / u64::BITS), 0)?;
            let word = self.maps().hints.get(&number, 0)?;
            Ok((word, bits >> (number % u64::BITS) & 1 != 0))
        };
        (0..HINTS_MAX).map(of).collect()
    }
}
