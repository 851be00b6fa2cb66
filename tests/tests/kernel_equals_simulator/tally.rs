//! What a comparison came upon.

use std::fmt;

use anyhow::{Result, ensure};

/// What was compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub runs: u64,
    pub drops: u64,
    pub early_drops: u64,
    pub answers: u64,
    pub sent_on: u64,
    pub rewritten: u64,
    pub spoiled: u64,
    pub flows: u64,
    pub fragments: u64,
    /// Chains in order, in tables, and in tables with bitmaps over them.
    pub shapes: [u64; 3],
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.drops += other.drops;
        self.early_drops += other.early_drops;
        self.answers += other.answers;
        self.sent_on += other.sent_on;
        self.rewritten += other.rewritten;
        self.spoiled += other.spoiled;
        self.flows += other.flows;
        self.fragments += other.fragments;
        for (sum, count) in self.shapes.iter_mut().zip(other.shapes) {
            *sum += count;
        }
    }

    /// Fails if something did not occur at all: then the comparison compared nothing.
    pub fn ensure_variety(&self) -> Result<()> {
        let all = [
            self.runs,
            self.drops,
            self.early_drops,
            self.answers,
            self.sent_on,
            self.rewritten,
            self.spoiled,
            self.flows,
            self.fragments,
            self.shapes[0],
            self.shapes[1],
            self.shapes[2],
        ];
        // Too short a run need not have everything.
        ensure!(
            self.runs < 5_000 || !all.contains(&0),
            "something never happened: {self}"
        );
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runs,
            drops,
            early_drops,
            answers,
            sent_on,
            rewritten,
            spoiled,
            flows,
            fragments,
            shapes: [linear, tables, pruned],
        } = self;
        write!(
            f,
            "{runs} runs of a program ({drops} drops, {early_drops} early drops, {answers} answers, {sent_on} sent on, {rewritten} \
             frames rewritten, {spoiled} frames spoiled), {flows} flows and {fragments} fragmented \
             datagrams at the end; chains: {linear} in order, {tables} in tables, {pruned} of these \
             with bitmaps"
        )
    }
}
