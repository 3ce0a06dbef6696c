//! The rows of a pass, and which of them attend together.

use cascadia_core::engine::Chunk;
use cascadia_core::limits::PAGE_TOKENS;
use cascadia_core::pages::pages_for;

/// Rows of a chunk that attend in one product at most: bounds the scores, which are `heads x rows x positions`.
const PIECE_ROWS: usize = 128;
/// Positions that are gathered at once at most, unless one piece alone has more.
const GATHERED: usize = 1 << 16;

/// The rows of a batch, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// Where each row's key and value go.
    pub(crate) slots: Vec<u32>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<u32>,
    /// The pages of all chunks, one table after the other.
    pages: Vec<u32>,
    pieces: Vec<Piece>,
}

/// Neighbouring rows of a chunk.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Where its session's pages begin.
    table: usize,
    row: usize,
    count: usize,
    /// Position of its first row.
    start: usize,
}

/// Pieces of equal length, padded to one span of positions.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) pieces: usize,
    /// Rows of each piece.
    pub(crate) count: usize,
    /// Positions that each gathers.
    pub(crate) span: usize,
    /// All rows, piece after piece.
    pub(crate) rows: Vec<u32>,
    /// The slots that each piece gathers; what pads is its own first.
    pub(crate) slots: Vec<u32>,
    /// For each row and gathered position: zero where it is seen, else minus infinity.
    pub(crate) mask: Vec<f32>,
}

/// For a kernel that reads pages where they are.
#[cfg(any(feature = "cuda", test))]
#[derive(Debug)]
pub(crate) struct Paged {
    /// Of each row: where its session's pages begin, the first and the last position it sees. Then all pages.
    pub(crate) rows_and_pages: Vec<u32>,
    /// Positions of the longest history.
    pub(crate) longest: usize,
}

/// The first position that a query at `last` sees.
fn first_seen(last: usize, window: Option<usize>) -> usize {
    (last + 1).saturating_sub(window.unwrap_or(usize::MAX))
}

impl Plan {
    pub(crate) fn new(batch: &[Chunk<'_>]) -> Self {
        let mut plan = Self::default();
        for chunk in batch {
            let (first, table) = (plan.tokens.len(), plan.pages.len());
            let end = chunk.start + chunk.tokens.len();
            plan.pages.extend(chunk.pages[..pages_for(end)].iter().map(|page| page.0));
            plan.tokens.extend_from_slice(chunk.tokens);
            plan.positions.extend(chunk.start as u32..end as u32);
            for position in chunk.start..end {
                plan.slots.push(plan.slot(table, position));
            }
            let rows = plan.tokens.len();
            plan.wanted.extend((rows - chunk.rows) as u32..rows as u32);
            for row in (first..rows).step_by(PIECE_ROWS) {
                let count = PIECE_ROWS.min(rows - row);
                plan.pieces.push(Piece { table, row, count, start: chunk.start + row - first });
            }
        }
        plan
    }

    /// The slot of a position of the session whose pages begin at `table`.
    fn slot(&self, table: usize, position: usize) -> u32 {
        self.pages[table + position / PAGE_TOKENS] * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32
    }

    /// The rows one by one, for blocks with this window.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn paged(&self, window: Option<usize>) -> Paged {
        let mut paged = Paged { rows_and_pages: Vec::new(), longest: 0 };
        for piece in &self.pieces {
            for last in piece.start..piece.start + piece.count {
                paged.rows_and_pages.extend([piece.table as u32, first_seen(last, window) as u32, last as u32]);
                paged.longest = paged.longest.max(last + 1);
            }
        }
        paged.rows_and_pages.extend_from_slice(&self.pages);
        paged
    }

    /// The rows in groups, for blocks with this window.
    pub(crate) fn groups(&self, window: Option<usize>) -> Vec<Group> {
        // The first position that any row of a piece sees, and how many there are up to its last row's own.
        let seen = |piece: &Piece| {
            let from = first_seen(piece.start, window);
            (from, piece.start + piece.count - from)
        };
        let mut pieces = self.pieces.clone();
        // Neighbours in this order waste least.
        pieces.sort_by_key(|piece| (piece.count, seen(piece).1));
        let mut groups = Vec::new();
        let mut first = 0;
        while first < pieces.len() {
            let count = pieces[first].count;
            let mut end = first + 1;
            while end < pieces.len()
                && pieces[end].count == count
                && (end + 1 - first) * seen(&pieces[end]).1 <= GATHERED
            {
                end += 1;
            }
            groups.push(self.group(&pieces[first..end], window, seen));
            first = end;
        }
        groups
    }

    fn group(&self, pieces: &[Piece], window: Option<usize>, seen: impl Fn(&Piece) -> (usize, usize)) -> Group {
        let (count, span) = (pieces[0].count, pieces.iter().map(|piece| seen(piece).1).max().unwrap_or(0));
        let mut group = Group {
            pieces: pieces.len(),
            count,
            span,
            rows: Vec::with_capacity(pieces.len() * count),
            slots: Vec::with_capacity(pieces.len() * span),
            mask: Vec::with_capacity(pieces.len() * count * span),
        };
        for piece in pieces {
            let (from, own) = seen(piece);
            group.rows.extend(piece.row as u32..(piece.row + count) as u32);
            group.slots.extend((from..from + own).map(|position| self.slot(piece.table, position)));
            group.slots.resize(group.slots.len() + span - own, self.slot(piece.table, from));
            for last in piece.start..piece.start + count {
                let first = first_seen(last, window);
                let see = |position: usize| if (first..=last).contains(&position) { 0.0 } else { f32::NEG_INFINITY };
                group.mask.extend((from..from + span).map(see));
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cascadia_core::ids::PageId;

    /// Every row stands in one group and sees its window and nothing else, through its own pages.
    #[test]
    fn groups_hold_every_row_once_and_what_it_sees() {
        let tables: Vec<Vec<PageId>> = (0..3).map(|s| (0..40).map(|i| PageId(s * 40 + 39 - i)).collect()).collect();
        let tokens = vec![0; 300];
        let chunk =
            |s: usize, start: usize, n: usize| Chunk { start, tokens: &tokens[..n], pages: &tables[s], rows: 1 };
        let batch = [chunk(0, 0, 300), chunk(1, 77, 1), chunk(2, 500, 1)];
        let plan = Plan::new(&batch);
        for window in [None, Some(1), Some(16), Some(1000)] {
            let mut found = vec![0; plan.tokens.len()];
            for group in plan.groups(window) {
                assert_eq!(group.slots.len(), group.pieces * group.span);
                for (i, &row) in group.rows.iter().enumerate() {
                    found[row as usize] += 1;
                    let (chunk, last) = match row {
                        300 => (&batch[1], 77),
                        301 => (&batch[2], 500),
                        row => (&batch[0], row as usize),
                    };
                    let slots = &group.slots[i / group.count * group.span..][..group.span];
                    let mask = &group.mask[i * group.span..][..group.span];
                    let seen: Vec<u32> = slots.iter().zip(mask).filter(|(_, m)| **m == 0.0).map(|(s, _)| *s).collect();
                    let first = (last + 1_usize).saturating_sub(window.unwrap_or(usize::MAX));
                    let slot = |p: usize| chunk.pages[p / PAGE_TOKENS].0 * 16 + (p % PAGE_TOKENS) as u32;
                    assert_eq!(seen, (first..=last).map(slot).collect::<Vec<_>>(), "row {row}, window {window:?}");
                }
            }
            assert!(found.iter().all(|&n| n == 1), "window {window:?}");
        }
        assert_eq!(plan.groups(None).len(), 3, "two decode steps together, and two lengths of pieces");
        assert_eq!(plan.wanted, [299, 300, 301]);
    }
}
