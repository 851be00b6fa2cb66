//! From text to the typed model: iptables-save and policy.toml meet here.
//!
//! ```text
//! rules.v4, rules.v6 -> save::lexer -> save::rule (by match_table) -> save::table -> model
//! policy.toml -> document::read -> document::lower --------------------> model
//! ```

#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod arbitrary;
pub mod change;
pub mod connection;
mod document;
pub mod error;
pub mod hosts;
pub mod ids;
pub mod lint;
pub mod lists;
pub mod load;
pub mod match_table;
pub mod model;
pub mod names;
pub mod packet_match;
pub mod print;
mod save;
pub mod set;
pub mod source;
pub mod tracking;

pub use document::{NotExpressible, print_toml};
pub use error::{Kind, PolicyError, PolicyErrors, Warning};
pub use hosts::Hosts;
pub use ids::{CounterId, TableName};
pub use lint::{LintContext, SshSession, lint};
pub use load::{LoadOptions, Loaded, load, load_with_hosts};
pub use print::{print_rule, print_save};
pub use source::SourceFile;
