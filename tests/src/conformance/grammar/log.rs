//! LOG and NFLOG: rules that say something and let the packet go on. What they say is not compared
//! here; that they change neither verdicts nor counters is.

use rand::Rng;

use super::Writer;

impl<R: Rng> Writer<'_, R> {
    pub(super) fn log_target(&mut self) -> String {
        let mut target = if self.chance(0.6) {
            String::from("-j LOG")
        } else {
            String::from("-j NFLOG")
        };
        if target.ends_with(" LOG") {
            if self.chance(0.6) {
                target += " --log-prefix \"in: \\\"x' \"";
            }
            if self.chance(0.4) {
                target += &format!(" --log-level {}", self.upto(8));
            }
            for option in [
                "--log-tcp-sequence",
                "--log-tcp-options",
                "--log-ip-options",
            ] {
                if self.chance(0.3) {
                    target += &format!(" {option}");
                }
            }
            return target;
        }
        if self.chance(0.5) {
            target += " --nflog-prefix said";
        }
        if self.chance(0.5) {
            target += &format!(" --nflog-group {}", self.upto(4));
        }
        if self.chance(0.3) {
            target += &format!(" --nflog-size {}", self.upto(100));
        }
        target
    }
}
