//! From text to the typed model: iptables-save and policy.toml meet here.
pub mod model;
