//! What this kernel can do, and what that means for the firewall.

use std::fmt;
use std::sync::LazyLock;

use anyhow::{Result, bail};
use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};
use aya::util::KernelVersion;
use serde::Serialize;

use super::{btf, sys};

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

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel has no {}: {}", self.feature, self.without)
    }
}

/// Whether programs attach by tcx (6.6) and not by a clsact filter.
pub fn has_tcx() -> bool {
    static TCX: LazyLock<bool> = LazyLock::new(|| {
        // Older kernels do not know the attach type. Every namespace has a loopback interface.
        SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
    });
    *TCX
}

/// Whether `bpf_l4_csum_replace` knows `BPF_F_IPV6` (6.16, and stable trees from then on).
pub fn has_ipv6_sum() -> bool {
    static KNOWN: LazyLock<bool> = LazyLock::new(|| {
        // The helper looks at its flags first (net/core/filter.c), and refuses those that it does
        // not know with EINVAL; then at the offset, and EFAULT is the answer to an odd one.
        const L4_CSUM_REPLACE: i32 = 11;
        const PSEUDO_HEADER_AND_IPV6: i32 = 0x10 | 0x80;
        let returned = sys::run_classifier(&[
            set_register(2, 1),
            set_register(3, 0),
            set_register(4, 0),
            set_register(5, PSEUDO_HEADER_AND_IPV6),
            instruction(0x85, 0, L4_CSUM_REPLACE),
            instruction(0x95, 0, 0),
        ]);
        returned.is_ok_and(|returned| returned == -libc::EFAULT)
    });
    *KNOWN
}

/// [`SocketPlaces::word`] and [`CredentialPlaces::word`] of this kernel; nothing where it has no BTF, or
/// locks its memory up before programs (`lockdown=confidentiality`).
///
/// [`SocketPlaces::word`]: fw_common::abi::maps::SocketPlaces::word
/// [`CredentialPlaces::word`]: fw_common::abi::maps::CredentialPlaces::word
pub fn credentials() -> Option<(u64, u64)> {
    static PLACES: LazyLock<Option<(u64, u64)>> = LazyLock::new(|| {
        let helper = BpfHelper::BPF_FUNC_probe_read_kernel;
        let reads = is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(false);
        let places = reads.then(btf::credential_places)??;
        Some((places.0.word(), places.1.word()))
    });
    *PLACES
}

/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const fn set_register(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, value)
}

/// A struct bpf_insn as it lies in a little-endian machine's memory, which fwbpf's are.
const fn instruction(code: u8, register: u8, immediate: i32) -> u64 {
    code as u64 | (register as u64) << 8 | (immediate as u32 as u64) << 32
}

/// Refuses a kernel that cannot run the programs, and says what it would have to have.
pub fn require() -> Result<()> {
    let lacking: Vec<String> = required()
        .into_iter()
        .filter(|finding| !finding.present)
        .map(|finding| format!("no {}: {}", finding.feature, finding.without))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    bail!(
        "this kernel ({}) cannot run fwbpf, which needs Linux {OLDEST} or newer with BPF; it has \
         {}",
        kernel_version(),
        lacking.join("; ")
    )
}

/// The oldest kernel that has all that is required.
const OLDEST: &str = "5.18";

/// Looks for everything that matters. Needs root.
pub fn all() -> Vec<Finding> {
    let mut findings = required();
    findings.extend([
        Finding {
            feature: "tcx",
            present: has_tcx(),
            required: false,
            without: "attached by clsact filters, which other users of tc can remove \
                      (tcx needs Linux 6.6)",
        },
        Finding {
            feature: "BPF_F_IPV6",
            present: has_ipv6_sum(),
            required: false,
            without: "the flag is left out; where a network card sums whole packets up \
                      (CHECKSUM_COMPLETE), the kernel may log faults about translated IPv6 packets \
                      (Linux 6.16, and newer stable releases, know it)",
        },
        Finding {
            feature: "BTF that says who opened a socket",
            present: credentials().is_some(),
            required: false,
            without: "rules with `--gid-owner` or `--log-uid` are refused; it needs \
                      CONFIG_DEBUG_INFO_BTF, and no lockdown of confidentiality",
        },
    ]);
    findings
}

/// What of that is not there.
pub fn lacking() -> Vec<Finding> {
    all()
        .into_iter()
        .filter(|finding| !finding.present)
        .collect()
}

fn required() -> Vec<Finding> {
    let program = |program| is_program_supported(program).unwrap_or(false);
    let helper = |program, helper| is_helper_supported(program, helper).unwrap_or(false);
    vec![
        Finding {
            feature: "tc programs",
            present: program(ProgramType::SchedClassifier),
            required: true,
            without: "nothing can be filtered; the kernel needs CONFIG_NET_CLS_BPF",
        },
        Finding {
            feature: "bpf_loop",
            present: helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop),
            required: true,
            without: "rules cannot be walked; it came with Linux 5.17",
        },
        Finding {
            feature: "XDP programs",
            present: program(ProgramType::Xdp),
            required: true,
            without: "the programs cannot be loaded; they came with Linux 4.8",
        },
        Finding {
            feature: "bpf_xdp_load_bytes",
            present: helper(ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_load_bytes),
            required: true,
            without: "the XDP program cannot read packets; it came with Linux 5.18",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        // r5 = 0x90; call 11; exit, as llvm-objdump shows their bytes.
        assert_eq!(
            set_register(5, 0x90).to_le_bytes(),
            [0xb7, 5, 0, 0, 0x90, 0, 0, 0]
        );
        assert_eq!(
            instruction(0x85, 0, 11).to_le_bytes(),
            [0x85, 0, 0, 0, 11, 0, 0, 0]
        );
        assert_eq!(instruction(0x95, 0, 0), 0x95);
    }
}
