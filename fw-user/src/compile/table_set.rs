//! The compiled policy as a plain value.

use std::fmt;

use fw_common::abi::blob::{Cell, HEADER, HeaderFields, PAGE_CELLS};

use super::patterns::{Pattern, Patterns};
use super::{Meta, MetaError, dump, stride};
use crate::policy::model::Family;

/// The exact contents of the policy map, and what else a load has to write.
#[derive(Clone, PartialEq, Eq)]
pub struct TableSet {
    /// The map's cells.
    pub cells: Vec<Cell>,
    /// The patterns that the cells name: pattern `i` is bit `i + 1`.
    pub patterns: Vec<Pattern>,
}

/// Why cells are no policy.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The first cell is no header of this version.
    #[error("the policy map was not written by this version of fwbpf: load the policy again")]
    Header,
    /// The header points past the end.
    #[error(
        "the policy map is cut short: {cells} cells, and the description would begin at {meta}; load the policy again"
    )]
    Short {
        /// The cells there are.
        cells: usize,
        /// Where the meta data should be.
        meta: u32,
    },
    /// The description does not decode.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

impl TableSet {
    /// Reads a policy back from the cells of a map. The cells are trusted as far as `compile`
    /// wrote them; whoever reads them stays within bounds whatever they say.
    pub fn from_cells(cells: Vec<Cell>) -> Result<Self, BlobError> {
        Ok(Self::read(cells)?.0)
    }

    /// [`TableSet::from_cells`], with the description that is among them.
    pub fn read(mut cells: Vec<Cell>) -> Result<(Self, Meta), BlobError> {
        let meta = Meta::decode(&decode_meta(&cells)?)?;
        // A policy that was compiled names no more patterns than fit, so none are left out here.
        let patterns = Patterns::of(&meta.policy)
            .map(Patterns::into_list)
            .unwrap_or_default();
        cells.shrink_to_fit();
        Ok((Self { cells, patterns }, meta))
    }

    /// Says how far the kernel's clocks are apart, and in which time zone it is: see
    /// [`HeaderFields::clock`].
    pub fn set_clock(&mut self, clock: u32) {
        if let Some(cell) = self.cells.get_mut(HEADER as usize) {
            cell.w[15] = clock;
        }
    }

    /// The header; nothing if the first cell is none.
    pub fn header(&self) -> Option<HeaderFields> {
        HeaderFields::decode(self.cells.get(HEADER as usize)?)
    }
}

impl fmt::Debug for TableSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        dump::write(self, f)
    }
}

/// The meta bytes of a blob.
pub fn decode_meta(cells: &[Cell]) -> Result<Vec<u8>, BlobError> {
    let header = cells
        .first()
        .and_then(HeaderFields::decode)
        .ok_or(BlobError::Header)?;
    let short = || BlobError::Short {
        cells: cells.len(),
        meta: header.meta,
    };
    let tail = cells.get(header.meta as usize..).ok_or_else(short)?;
    let length = header.meta_bytes as usize;
    if size_of_val(tail) < length {
        return Err(short());
    }
    let mut bytes = Vec::with_capacity(length.next_multiple_of(size_of::<Cell>()));
    for cell in &tail[..length.div_ceil(size_of::<Cell>())] {
        bytes.extend_from_slice(&cell_bytes(cell));
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// The same where the cells are at hand as bytes, in the memory of a little-endian machine.
pub fn meta_bytes<'a>(bytes: &'a [u8], header: &HeaderFields) -> Result<&'a [u8], BlobError> {
    let start = header.meta as usize * size_of::<Cell>();
    bytes
        .get(start..)
        .and_then(|tail| tail.get(..header.meta_bytes as usize))
        .ok_or(BlobError::Short {
            cells: bytes.len() / size_of::<Cell>(),
            meta: header.meta,
        })
}

/// A cell's bytes, little-endian.
fn cell_bytes(cell: &Cell) -> [u8; size_of::<Cell>()] {
    let mut bytes = [0; size_of::<Cell>()];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(cell.w) {
        *place = word.to_le_bytes();
    }
    bytes
}

/// Appends an empty cell if a rule of this family would straddle a page here.
pub(super) fn align(cells: &mut Vec<Cell>, family: Family) {
    let stride = stride(family) as usize;
    cells.resize(cells.len().next_multiple_of(stride), Cell::default());
}

/// Appends empty cells up to the end of the page.
pub(super) fn fill_page(cells: &mut Vec<Cell>) {
    cells.resize(cells.len().next_multiple_of(PAGE_CELLS), Cell::default());
}

/// Appends bytes as cells, little-endian, the last one filled up with zeros.
pub(super) fn append_bytes(cells: &mut Vec<Cell>, bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks();
    cells.extend(whole.iter().map(cell_of));
    if !rest.is_empty() {
        let mut last = [0; size_of::<Cell>()];
        last[..rest.len()].copy_from_slice(rest);
        cells.push(cell_of(&last));
    }
}

fn cell_of(bytes: &[u8; size_of::<Cell>()]) -> Cell {
    let words = bytes.as_chunks().0;
    Cell {
        w: std::array::from_fn(|word| u32::from_le_bytes(words[word])),
    }
}
