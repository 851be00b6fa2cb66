//! What the numbers were measured on.

use std::fs;

use serde::Serialize;

use super::station::path_cpu;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor.
    pub cpu: String,
    /// How many.
    pub cpus: usize,
    /// The CPU that the path was on.
    pub path_cpu: usize,
    /// How the frequency is governed, if that is known.
    pub governor: Option<String>,
    /// The load when the benchmark began.
    pub load: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .ok()
                .map(|text| text.trim().to_string())
        };
        let cpu_info = read("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name);
        let governor = format!(
            "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor",
            path_cpu()
        );
        Self {
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            cpu: cpu.to_string(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            path_cpu: path_cpu(),
            governor: read(&governor),
            load: read("/proc/loadavg").unwrap_or_default(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "kernel {}, {} x {}, path on CPU {}, governor {}, load {}",
            self.kernel,
            self.cpus,
            self.cpu,
            self.path_cpu,
            self.governor.as_deref().unwrap_or("unknown"),
            self.load
        )
    }
}
