//! What the fast path has noted of flows' ways.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use fw_common::abi::flow::{Flow, SHORTCUT_WORDS, Shortcut};
use fw_common::abi::maps;

use super::load::typed;
use super::state::StateDir;

/// The shortcuts that flows hold the numbers of, each read once.
pub struct Shortcuts {
    map: Array<MapData, [u64; SHORTCUT_WORDS]>,
    known: RefCell<HashMap<u32, Shortcut>>,
}

impl Shortcuts {
    /// Opens the table.
    pub fn open(state: &StateDir) -> Result<Self> {
        Ok(Self {
            map: typed(state, maps::SHORTCUTS)?,
            known: RefCell::default(),
        })
    }

    /// By which interfaces packets of the flow's original direction came and went, by their indexes; 0 where
    /// neither direction tells.
    pub fn interfaces(&self, flow: &Flow) -> Result<(u32, u32)> {
        let numbers = flow.numbers();
        let active = numbers.active();
        let (forth, back) = (self.read(numbers.of(false))?, self.read(numbers.of(true))?);
        let holds = |shortcut: &Shortcut| active != 0 && shortcut.owner.get() == u64::from(active);
        let of = |shortcut: &Shortcut, index: u32| if holds(shortcut) { index } else { 0 };
        let either = |one: u32, other: u32| if one != 0 { one } else { other };
        Ok((
            either(
                of(&forth, forth.arrival.get()),
                of(&back, back.departure.get()),
            ),
            either(
                of(&forth, forth.departure.get()),
                of(&back, back.arrival.get()),
            ),
        ))
    }

    fn read(&self, number: u32) -> Result<Shortcut> {
        if let Some(shortcut) = self.known.borrow().get(&number) {
            return Ok(shortcut.clone());
        }
        let words = self
            .map
            .get(&number, 0)
            .with_context(|| format!("cannot read the map {}", maps::SHORTCUTS))?;
        let shortcut = Shortcut::from(words);
        self.known.borrow_mut().insert(number, shortcut.clone());
        Ok(shortcut)
    }
}
