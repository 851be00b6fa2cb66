//! What this kernel can do, and what that means for the firewall.

use std::sync::LazyLock;

use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};
use aya::util::KernelVersion;
use serde::Serialize;

/// One ability of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked for.
    pub feature: &'static str,
    /// Whether it is there.
    pub present: bool,
    /// Whether the firewall cannot run without it.
    pub required: bool,
    /// What its absence means.
    pub without: &'static str,
}

/// Whether programs attach by tcx (6.6) and not by a clsact filter.
pub fn has_tcx() -> bool {
    static TCX: LazyLock<bool> = LazyLock::new(|| {
        // Older kernels do not know the attach type. Every namespace has a loopback interface.
        SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
    });
    *TCX
}

/// Looks for everything that matters. Needs root.
pub fn all() -> Vec<Finding> {
    let supported = |program| is_program_supported(program).unwrap_or(false);
    vec![
        Finding {
            feature: "tc programs",
            present: supported(ProgramType::SchedClassifier),
            required: true,
            without: "nothing can be filtered: the kernel needs CONFIG_NET_CLS_BPF",
        },
        Finding {
            feature: "bpf_loop",
            present: is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop)
                .unwrap_or(false),
            required: true,
            without: "the programs cannot be loaded: they need Linux 5.17 or newer",
        },
        Finding {
            feature: "tcx",
            present: has_tcx(),
            required: false,
            without: "attached by clsact filters, which other users of tc can remove \
                      (tcx needs Linux 6.6)",
        },
        Finding {
            feature: "XDP programs",
            present: supported(ProgramType::Xdp),
            required: false,
            without: "no early drop: floods cost more",
        },
    ]
}

/// The kernel's version, `6.18.44`.
pub fn kernel_version() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .unwrap_or_else(|_| match KernelVersion::current() {
            Ok(version) => format!("{version:?}"),
            Err(_) => "unknown".to_owned(),
        })
}
