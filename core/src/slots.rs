//! KV slots that hold tokens instead of tensors: the pages of engines without weights.
//!
//! A slot knows its position and the hash of everything up to it, so a page table that leads to another session's page
//! is noticed by whoever reads it.

use crate::engine::Chunk;
use crate::history::chain;
use crate::ids::{PageId, TokenId};
use crate::limits::PAGE_TOKENS;

/// What a slot's KV would be: the token, and what it was computed from.
#[derive(Clone, Copy, Debug)]
struct Slot {
    position: usize,
    token: TokenId,
    /// Chained hash of all tokens up to and including this one.
    tail: u64,
    /// Number of the forward pass that wrote it.
    pass: u64,
}

/// The slots of all pages.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Option<Slot>>,
    passes: u64,
}

impl Slots {
    /// Slots for so many pages, never written.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self { slots: vec![None; pages * PAGE_TOKENS], passes: 0 }
    }

    /// A forward pass begins.
    pub fn next_pass(&mut self) {
        self.passes += 1;
    }

    /// Reads the whole past of a chunk, as attention does, and returns the hash of its tokens.
    ///
    /// # Panics
    /// Where the table leads to a slot that was not written, or holds another history.
    #[must_use]
    pub fn read_past(&self, chunk: &Chunk<'_>) -> u64 {
        let mut tail = 0;
        for position in 0..chunk.start {
            let slot = self.read(chunk.pages, position);
            tail = chain(tail, slot.token);
            assert!(slot.tail == tail, "position {position} is read from a slot of another history");
        }
        tail
    }

    /// The hash of the tokens before a chunk, from the last slot before it alone: it costs nothing however long they are.
    ///
    /// # Panics
    /// Where the table leads to a slot that was not written, or is of another position.
    #[must_use]
    pub fn tail_before(&self, chunk: &Chunk<'_>) -> u64 {
        chunk.start.checked_sub(1).map_or(0, |last| self.read(chunk.pages, last).tail)
    }

    fn read(&self, pages: &[PageId], position: usize) -> Slot {
        let slot = self.slots[slot_of(pages, position)]
            .unwrap_or_else(|| panic!("position {position} is read from a slot that was never written"));
        assert!(slot.position == position, "position {position} is read from a slot of {}", slot.position);
        assert!(slot.pass < self.passes, "position {position} is read from a slot written in the same batch");
        slot
    }

    /// Writes a chunk behind tokens of this hash.
    ///
    /// # Panics
    /// Where two chunks of a batch write one slot.
    pub fn write(&mut self, chunk: &Chunk<'_>, mut tail: u64) {
        for (position, token) in (chunk.start..).zip(chunk.tokens) {
            tail = chain(tail, *token);
            let slot = &mut self.slots[slot_of(chunk.pages, position)];
            assert!(slot.is_none_or(|slot| slot.pass < self.passes), "two chunks of a batch write one slot");
            *slot = Some(Slot { position, token: *token, tail, pass: self.passes });
        }
    }

    /// The token at a position that was written.
    ///
    /// # Panics
    /// Where it was not.
    #[must_use]
    pub fn token(&self, pages: &[PageId], position: usize) -> TokenId {
        self.slots[slot_of(pages, position)].expect("a slot read or written by this chunk").token
    }

    /// The hash of all tokens up to and including a position that was written.
    ///
    /// # Panics
    /// Where it was not.
    #[must_use]
    pub fn tail(&self, pages: &[PageId], position: usize) -> u64 {
        self.slots[slot_of(pages, position)].expect("a slot read or written by this chunk").tail
    }
}

fn slot_of(pages: &[PageId], position: usize) -> usize {
    pages[position / PAGE_TOKENS].index() * PAGE_TOKENS + position % PAGE_TOKENS
}
