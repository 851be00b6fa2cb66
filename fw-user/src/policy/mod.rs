//! From text to the typed model: iptables-save and policy.toml meet here.
pub mod ids;
pub mod model;
pub mod names;
pub mod print;

pub use ids::{CounterId, TableName};
pub use print::{print_rule, print_save};
