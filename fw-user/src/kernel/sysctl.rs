//! netfilter's settings, which connections are tracked by unless the policy says otherwise.

/// What this network namespace's sysctl `nf_conntrack_NAME` says; nothing where netfilter's tracking is
/// not in the kernel.
pub fn conntrack_setting(name: &str) -> Option<u32> {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
