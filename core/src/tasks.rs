//! What a session wants of an engine: to draft, to have blocks verified, or to decode alone.
//!
//! Each is a [`Task`] of the [`crate::stepper`]; none knows of batches, pages or other sessions.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block::{Answer, Draft, DraftBlock, Stale, StaleReason, Verdict};
use crate::decoding::{Decoding, Strategy};
use crate::drafting::{self, Decoded};
use crate::engine::Rows;
use crate::history::History;
use crate::ids::{Epoch, TokenId};
use crate::session::DraftOrder;
use crate::stepper::{NotFinite, Task};
use crate::verify;

/// A model that decodes alone: `expert`, `drafter`, `cascade_query`.
#[derive(Debug)]
pub struct DecodeTask {
    decoding: Arc<Decoding>,
    history: Vec<TokenId>,
    decoded: Vec<Decoded>,
    over: bool,
}

impl DecodeTask {
    /// Goes on from `ids`, which are committed.
    #[must_use]
    pub fn new(decoding: Arc<Decoding>, ids: Vec<TokenId>) -> Self {
        let over = ids.len() >= decoding.end();
        Self { decoding, history: ids, decoded: Vec::new(), over }
    }

    /// Takes what was decoded since the last call, and whether the text is over.
    pub fn drain(&mut self) -> (Vec<Decoded>, bool) {
        (std::mem::take(&mut self.decoded), self.over)
    }
}

impl Task for DecodeTask {
    fn tokens(&self) -> &[TokenId] {
        &self.history
    }

    fn want(&self) -> Option<usize> {
        (!self.over).then_some(1)
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        let row = rows.finite(first).ok_or(NotFinite { tokens: self.history.len() })?;
        let decoded = drafting::decode(&self.decoding, &self.history, row);
        self.history.push(decoded.token);
        self.over = self.decoding.is_stop(decoded.token) || self.history.len() >= self.decoding.end();
        self.decoded.push(decoded);
        Ok(())
    }
}

/// What a [`DraftOrder`] asks for, beside the history.
#[derive(Clone, Copy, Debug)]
struct Order {
    ticket: u64,
    count: usize,
    ahead: bool,
}

/// A drafter's session: drafts on order, one token a step.
#[derive(Debug)]
pub struct DraftTask {
    decoding: Arc<Decoding>,
    history: Vec<TokenId>,
    order: Option<Order>,
    drafts: Vec<Draft>,
    finished: Option<(u64, Vec<Draft>)>,
}

impl DraftTask {
    /// Stands on `ids`, which are committed, until the first order brings its own history.
    #[must_use]
    pub fn new(decoding: Arc<Decoding>, ids: Vec<TokenId>) -> Self {
        Self { decoding, history: ids, order: None, drafts: Vec::new(), finished: None }
    }

    /// Takes an order; an unfinished one is void.
    pub fn order(&mut self, order: &DraftOrder) {
        self.history.truncate(order.keep);
        self.history.extend_from_slice(&order.append);
        self.drafts.clear();
        self.finished = None;
        self.order = Some(Order { ticket: order.ticket, count: order.count, ahead: order.ahead });
    }

    /// The ticket and drafts of a finished order, once.
    pub fn drain(&mut self) -> Option<(u64, Vec<Draft>)> {
        self.finished.take()
    }

    fn finish(&mut self, ticket: u64) {
        self.order = None;
        self.finished = Some((ticket, std::mem::take(&mut self.drafts)));
    }
}

impl Task for DraftTask {
    fn tokens(&self) -> &[TokenId] {
        &self.history
    }

    fn want(&self) -> Option<usize> {
        self.order.map(|_| 1)
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        let Some(Order { ticket, count, ahead }) = self.order else { return Ok(()) };
        let Some(row) = rows.finite(first) else {
            // Behind drafts that the expert may refuse nobody has to read it: they are asked about first.
            let needed = self.drafts.is_empty() && !ahead;
            self.finish(ticket);
            return if needed { Err(NotFinite { tokens: self.history.len() }) } else { Ok(()) };
        };
        let draft = drafting::draft(&self.decoding, &self.history, row);
        // A block may end early only on what every depth policy sees alike: keyed streams keep the law whatever the
        // length (algorithms 4.5), so a stop, or the first token that a sequential cascade must ask about, ends it.
        let asks = matches!(self.decoding.strategy, Strategy::CascadeToken { .. }) && !draft.kept;
        let ends = asks || self.decoding.is_stop(draft.token);
        self.history.push(draft.token);
        self.drafts.push(draft);
        if ends || self.drafts.len() >= count {
            self.finish(ticket);
        }
        Ok(())
    }
}

/// An expert's session: verifies blocks in the order they came.
#[derive(Debug)]
pub struct VerifyTask {
    decoding: Arc<Decoding>,
    /// Committed tokens, then those of the blocks that are being verified.
    history: History,
    committed: usize,
    epoch: Epoch,
    /// Blocks that wait; the first `merged` stand on each other and are in `history`.
    queue: VecDeque<DraftBlock>,
    merged: usize,
    rows: usize,
    /// The history has not been prefilled since it was opened.
    prefill: bool,
    answers: Vec<Answer>,
}

impl VerifyTask {
    /// A session with the history its owner sent; never empty.
    #[must_use]
    pub fn new(decoding: Arc<Decoding>, ids: &[TokenId], epoch: Epoch) -> Self {
        Self {
            decoding,
            history: History::from_ids(ids),
            committed: ids.len(),
            epoch,
            queue: VecDeque::new(),
            merged: 0,
            rows: 0,
            prefill: ids.len() > 1,
            answers: Vec::new(),
        }
    }

    /// The epoch the session is open in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Blocks that wait for their answer.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Queues a block behind the others.
    pub fn push(&mut self, block: DraftBlock) {
        self.queue.push_back(block);
        self.merge();
    }

    /// Takes the answers since the last call, in the order of their blocks.
    pub fn drain(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Why the block cannot follow the history as it would stand then.
    fn mismatch(&self, block: &DraftBlock) -> Option<StaleReason> {
        if block.epoch != self.epoch {
            return Some(StaleReason::Epoch);
        }
        if block.given_from != self.history.len() || block.base != block.given_from + block.given.len() {
            return Some(StaleReason::Base);
        }
        let tail = block.given.iter().fold(self.history.tail(), |tail, &token| crate::history::chain(tail, token));
        (tail != block.tail).then_some(StaleReason::Tail)
    }

    /// Takes every waiting block that stands on the history into it; answers the first one that cannot if nothing is
    /// under way before it.
    fn merge(&mut self) {
        while let Some(block) = self.queue.get(self.merged) {
            if let Some(reason) = self.mismatch(block) {
                if self.merged > 0 {
                    return;
                }
                self.answers.push(Answer::Stale(Stale {
                    epoch: self.epoch,
                    base: block.base,
                    committed: self.committed,
                    tail: self.history.tail_at(self.committed),
                    reason,
                }));
                self.queue.pop_front();
                continue;
            }
            // Given tokens are committed; behind drafts that are not, they would be a contradiction, and their tail is
            // then wrong unless all of these are accepted: wait for the verdict.
            if self.merged > 0 && !block.given.is_empty() {
                return;
            }
            self.rows += block.rows();
            let tokens: Vec<TokenId> =
                block.given.iter().copied().chain(block.drafts.iter().map(|d| d.token)).collect();
            self.history.extend(tokens);
            self.merged += 1;
            if self.rows == 0 {
                self.settle_given();
            }
        }
    }

    /// A block of given tokens alone that nobody wants scored: committed without a forward.
    fn settle_given(&mut self) {
        if let Some(block) = self.queue.pop_front() {
            self.merged -= 1;
            self.committed = self.history.len();
            self.answers.push(Answer::Verdict(Verdict {
                epoch: block.epoch,
                base: block.base,
                accepted: 0,
                replacement: None,
                scores: Vec::new(),
            }));
        }
    }

    /// Walks one block with its rows, of which those behind the first that is no numbers are missing; whether it was
    /// accepted whole.
    fn verify(&mut self, block: &DraftBlock, rows: &[&[f32]]) -> Result<bool, NotFinite> {
        let scored = block.rows() - block.drafts.len();
        let missing = NotFinite { tokens: block.base - scored + rows.len() };
        if rows.len() < scored {
            return Err(missing);
        }
        let mut scores = Vec::with_capacity(rows.len());
        for (i, row) in rows[..scored].iter().enumerate() {
            let before = &self.history.ids()[..block.given_from + i];
            scores.push(verify::score(&self.decoding, before, row, block.given[i]));
        }
        let (rows, history) = (&rows[scored..], &self.history.ids()[..block.base]);
        let mut walk = verify::walk(&self.decoding, history, &block.drafts[..rows.len()], rows);
        if walk.replacement.is_none() && rows.len() < block.drafts.len() {
            // What was tested before the missing row is committed, with the last of it for a replacement: where a text
            // ends hangs neither on the block's length nor on what is behind it.
            walk.accepted = walk.accepted.checked_sub(1).ok_or(missing)?;
            walk.replacement = Some(block.drafts[walk.accepted].token);
        }
        self.committed = block.base + walk.accepted;
        let whole = walk.replacement.is_none();
        if let Some(replacement) = walk.replacement {
            self.history.truncate(self.committed);
            self.history.push(replacement);
            self.committed += 1;
        }
        scores.extend(walk.scores);
        self.answers.push(Answer::Verdict(Verdict {
            epoch: block.epoch,
            base: block.base,
            accepted: walk.accepted,
            replacement: walk.replacement,
            scores,
        }));
        Ok(whole)
    }
}

impl Task for VerifyTask {
    /// The row that scores a position is computed by the token before it, so the last token needs no slot yet.
    fn tokens(&self) -> &[TokenId] {
        let ids = self.history.ids();
        &ids[..ids.len() - 1]
    }

    fn want(&self) -> Option<usize> {
        if self.merged > 0 { Some(self.rows) } else { self.prefill.then_some(0) }
    }

    fn take(&mut self, rows: &Rows, first: usize) -> Result<(), NotFinite> {
        self.prefill = false;
        let mut next = first;
        self.rows = 0;
        for index in 0..std::mem::take(&mut self.merged) {
            let Some(block) = self.queue.pop_front() else { break };
            let own: Vec<&[f32]> = (next..next + block.rows()).map_while(|i| rows.finite(i)).collect();
            next += block.rows();
            match self.verify(&block, &own) {
                Ok(true) => {}
                Ok(false) => break,
                Err(missing) if index == 0 => return Err(missing),
                // The blocks before it have their verdicts; then it is asked about again.
                Err(_) => {
                    self.history.truncate(self.committed);
                    self.queue.push_front(block);
                    break;
                }
            }
        }
        // What was merged behind a rejected block stands on another history now, and is answered so.
        self.merge();
        Ok(())
    }
}
