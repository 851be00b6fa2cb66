//! Random policies and packets: the compiled policy against the model's own meaning, and
//! properties of the whole datapath.

mod adversarial;
mod answers;
mod associations;
mod classify;
mod connection;
mod datapath;
mod fuzzed;
mod generate;
mod hashlimit;
mod limit;
mod machine;
mod mappings;
mod model;
mod recent;
mod text;
mod tracking;
mod translation;
mod zones;
