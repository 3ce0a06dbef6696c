//! The rows of a pass, and how attention walks them.

use std::ops::Range;

use cascadia_core::engine::Chunk;

/// The rows of a batch and how attention walks them; rebuilt for each pass in the same memory.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<Row>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
    /// Attention of all rows.
    pub(crate) all: Vec<Item>,
    /// Attention of the wanted rows, for the last block.
    pub(crate) last: Vec<Item>,
}

/// One token of the batch.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) token: usize,
    pub(crate) position: usize,
    pub(crate) chunk: usize,
}

/// Neighbouring rows of a chunk whose queries share the loads of keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    pub(crate) chunk: usize,
    pub(crate) row: usize,
    /// Where the first row's result goes.
    pub(crate) out: usize,
    pub(crate) count: usize,
}

impl Plan {
    /// Plans `batch`; `together` rows share an attention call.
    pub(crate) fn build(&mut self, batch: &[Chunk<'_>], together: usize) {
        self.rows.clear();
        self.wanted.clear();
        self.all.clear();
        self.last.clear();
        for (index, chunk) in batch.iter().enumerate() {
            let first = self.rows.len();
            let rows = chunk.tokens.iter().zip(chunk.start..);
            self.rows.extend(rows.map(|(&token, position)| Row { token: token as usize, position, chunk: index }));
            let end = self.rows.len();
            items(&mut self.all, index, first..end, first, together);
            items(&mut self.last, index, end - chunk.rows..end, self.wanted.len(), together);
            self.wanted.extend(end - chunk.rows..end);
        }
    }
}

fn items(to: &mut Vec<Item>, chunk: usize, rows: Range<usize>, out: usize, together: usize) {
    for row in rows.clone().step_by(together) {
        let count = together.min(rows.end - row);
        to.push(Item { chunk, row, out: out + row - rows.start, count });
    }
}
