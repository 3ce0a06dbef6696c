//! The owner's session machine: history, blocks in flight one behind the other, what an answer commits.
//!
//! Pure: it says what to draft and what to send; the shell drafts, sends, and hands the answers back in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::answers::Asked;
use crate::block::{Answer, Draft, DraftBlock, Provenance, Score, Verdict};
use crate::decoding::{Decoding, Strategy};
use crate::draft_length::DraftLength;
use crate::history::History;
use crate::ids::{Epoch, TokenId};
use crate::pipeline::Pipeline;

/// A kept token that asks for a score is sent at least this often, so that the client gets its logprobs in time.
const SCORE_EVERY: usize = 16;

/// What the drafter's engine shall do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftOrder {
    /// Names this order; an answer to an older one is void.
    pub ticket: u64,
    /// The engine's copy of the history is right up to here ...
    pub keep: usize,
    /// ... and goes on with these.
    pub append: Vec<TokenId>,
    /// Drafts wanted at most.
    pub count: usize,
    /// The history ends with drafts that the expert may refuse: what follows them may never be needed.
    pub ahead: bool,
}

/// One committed token.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// The token.
    pub token: TokenId,
    /// Who wrote it.
    pub provenance: Provenance,
    /// What the expert says of it; empty where it was not asked.
    pub score: Score,
}

/// What a session did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks verified.
    pub blocks: u64,
    /// Drafts in them.
    pub drafted: u64,
    /// Drafts accepted.
    pub accepted: u64,
    /// Of these, accepted only thanks to the rule.
    pub relaxed: u64,
    /// Tokens the expert wrote.
    pub deferred: u64,
    /// Forward passes of the expert the session took part in, prefill left out.
    pub expert_passes: u64,
    /// `Verify` streams opened after the first.
    pub moves: u64,
    /// Blocks answered `Stale`.
    pub stale_blocks: u64,
    /// Drafts that a verdict on earlier ones made void, in blocks or not yet sent.
    pub stale_drafts: u64,
    /// Drafts in flight when a stream ended and another was opened.
    pub moved_drafts: u64,
}

impl Counters {
    /// What was added since an earlier account.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            blocks: self.blocks - earlier.blocks,
            drafted: self.drafted - earlier.drafted,
            accepted: self.accepted - earlier.accepted,
            relaxed: self.relaxed - earlier.relaxed,
            deferred: self.deferred - earlier.deferred,
            expert_passes: self.expert_passes - earlier.expert_passes,
            moves: self.moves - earlier.moves,
            stale_blocks: self.stale_blocks - earlier.stale_blocks,
            stale_drafts: self.stale_drafts - earlier.stale_drafts,
            moved_drafts: self.moved_drafts - earlier.moved_drafts,
        }
    }
}

/// A block in flight.
#[derive(Clone, Debug)]
struct Flight {
    block: DraftBlock,
    /// An earlier block was rejected: whatever the answer, it commits nothing.
    void: bool,
}

/// A session of a drafter that asks an expert.
#[derive(Clone, Debug)]
pub struct Session {
    decoding: Arc<Decoding>,
    /// Tokens that the drafter's model and the text know.
    vocabulary: usize,
    /// Committed tokens, then the drafts in flight.
    history: History,
    committed: usize,
    /// The expert knows the committed tokens up to here.
    known: usize,
    /// The client has the scores it asked for up to here.
    scored: usize,
    /// The drafter's engine agrees with `history` up to here.
    synced: usize,
    in_flight: VecDeque<Flight>,
    drafting: Option<u64>,
    /// The drafter has no numbers for what follows the drafts in flight: their verdict comes first.
    drafter_stuck: bool,
    tickets: u64,
    epoch: Epoch,
    draft_length: DraftLength,
    pipeline: Pipeline,
    counters: Counters,
    outcomes: BTreeMap<(u32, u32), u64>,
}

impl Session {
    /// A session with `ids` committed: the prompt and whatever an earlier owner wrote. No token of `vocabulary` or above
    /// ever joins them.
    #[must_use]
    pub fn new(decoding: Arc<Decoding>, vocabulary: usize, ids: &[TokenId], epoch: Epoch, pipeline: Pipeline) -> Self {
        let draft_length = DraftLength::fixed(decoding.draft_length);
        Self {
            history: History::from_ids(ids),
            committed: ids.len(),
            known: ids.len(),
            scored: ids.len(),
            synced: 0,
            in_flight: VecDeque::new(),
            drafting: None,
            drafter_stuck: false,
            tickets: 0,
            epoch,
            draft_length,
            pipeline,
            counters: Counters::default(),
            outcomes: BTreeMap::new(),
            vocabulary,
            decoding,
        }
    }

    /// The epoch in force.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All committed ids, prompt first.
    #[must_use]
    pub fn committed(&self) -> &[TokenId] {
        &self.history.ids()[..self.committed]
    }

    /// What a new stream is told: the committed ids, but for those whose scores are still wanted.
    #[must_use]
    pub fn told(&self) -> &[TokenId] {
        &self.history.ids()[..self.known]
    }

    /// What the session did so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many verified blocks had so many drafts, and so many of them accepted.
    #[must_use]
    pub fn outcomes(&self) -> &BTreeMap<(u32, u32), u64> {
        &self.outcomes
    }

    /// Blocks the expert owes an answer to.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.in_flight.len()
    }

    /// Drafts in them.
    #[must_use]
    pub fn unanswered_drafts(&self) -> u64 {
        self.in_flight.iter().map(|flight| flight.block.drafts.len() as u64).sum()
    }

    /// The expert grants so many unanswered blocks.
    pub fn limit_depth(&mut self, slots: usize) {
        self.pipeline.limit(slots);
    }

    /// The expert has room for so many positions.
    pub fn limit_context(&mut self, context: usize) {
        if context < self.decoding.end() {
            let room = context.saturating_sub(self.decoding.prompt_length);
            Arc::make_mut(&mut self.decoding).max_tokens = room;
        }
    }

    /// Whether nothing is being drafted or verified.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.drafting.is_none() && self.in_flight.is_empty()
    }

    /// Committed tokens that wait for the score that the request asks for.
    fn unscored(&self) -> usize {
        if self.decoding.logprobs.is_some() { self.committed - self.known } else { 0 }
    }

    /// The next thing to draft; `None` while one is under way, all slots are taken, or the text may be over.
    pub fn next_draft(&mut self) -> Option<DraftOrder> {
        let position = self.history.len();
        let live = self.in_flight.iter().filter(|flight| !flight.void).count();
        let waits = self.drafting.is_some() || self.drafter_stuck || self.in_flight.len() >= self.pipeline.depth();
        if waits || position >= self.decoding.end() {
            return None;
        }
        // Nothing follows a stop: the draft that ends the text waits for its verdict.
        let last_is_draft_stop =
            live > 0 && self.history.len() > self.committed && self.decoding.is_stop(self.history.ids()[position - 1]);
        if last_is_draft_stop {
            return None;
        }
        // A kept token of `cascade_token` is committed without the expert, so nothing may be in flight before it.
        if matches!(self.decoding.strategy, Strategy::CascadeToken { .. }) && !self.in_flight.is_empty() {
            return None;
        }
        self.tickets += 1;
        self.drafting = Some(self.tickets);
        let count = self.draft_length.next().min(self.decoding.end() - position);
        let append = self.history.ids()[self.synced..].to_vec();
        let ahead = position > self.committed;
        Some(DraftOrder { ticket: self.tickets, keep: self.synced, append, count, ahead })
    }

    /// Takes the drafts of an order: tokens that are committed at once (`cascade_token` keeps them), and the block to
    /// send if there is one. Drafts of a void order are dropped.
    pub fn drafted(&mut self, ticket: u64, mut drafts: Vec<Draft>) -> (Vec<Emitted>, Option<DraftBlock>) {
        if self.drafting != Some(ticket) {
            self.counters.stale_drafts += drafts.len() as u64;
            return (Vec::new(), None);
        }
        self.drafting = None;
        self.drafter_stuck = drafts.is_empty() && self.history.len() > self.committed;
        // The room may have shrunk since the order was given.
        drafts.truncate(self.decoding.end().saturating_sub(self.history.len()));
        if let Strategy::CascadeToken { .. } = self.decoding.strategy {
            return self.keep(drafts);
        }
        if drafts.is_empty() {
            return (Vec::new(), None);
        }
        let block = self.block(self.history.len(), self.history.tail(), drafts);
        self.history.extend(block.drafts.iter().map(|draft| draft.token));
        self.synced = self.history.len();
        (Vec::new(), Some(self.launch(block)))
    }

    /// `cascade_token`: kept tokens stand, the first that is not kept is asked about.
    fn keep(&mut self, mut drafts: Vec<Draft>) -> (Vec<Emitted>, Option<DraftBlock>) {
        let kept = drafts.iter().take_while(|draft| draft.kept).count();
        let emitted: Vec<Emitted> = drafts[..kept]
            .iter()
            .map(|draft| Emitted { token: draft.token, provenance: Provenance::Accepted, score: Score::default() })
            .collect();
        self.history.extend(emitted.iter().map(|e| e.token));
        self.committed = self.history.len();
        self.counters.drafted += kept as u64;
        self.counters.accepted += kept as u64;
        let asked: Vec<Draft> = drafts.drain(kept..).take(1).collect();
        self.synced = self.history.len();
        if asked.is_empty() && self.unscored() < SCORE_EVERY {
            return (emitted, None);
        }
        let block = self.block(self.history.len(), self.history.tail(), asked);
        self.history.extend(block.drafts.iter().map(|draft| draft.token));
        self.synced = self.history.len();
        (emitted, Some(self.launch(block)))
    }

    fn block(&self, base: usize, tail: u64, drafts: Vec<Draft>) -> DraftBlock {
        let given = self.history.ids()[self.known.min(self.committed)..self.committed].to_vec();
        let score_given = self.decoding.logprobs.is_some() && !given.is_empty();
        DraftBlock { epoch: self.epoch, given_from: base - given.len(), given, base, tail, drafts, score_given }
    }

    fn launch(&mut self, block: DraftBlock) -> DraftBlock {
        self.known = self.known.max(self.committed);
        self.in_flight.push_back(Flight { block: block.clone(), void: false });
        block
    }

    /// Commits tokens that the drafter decoded alone, so that [`Self::flush_scores`] has them scored.
    pub fn give(&mut self, tokens: &[TokenId]) {
        self.history.extend(tokens.iter().copied());
        self.committed = self.history.len();
    }

    /// A block of nothing but given tokens, to have the last ones scored before the session finishes.
    pub fn flush_scores(&mut self) -> Option<DraftBlock> {
        if self.unscored() == 0 || !self.in_flight.is_empty() {
            return None;
        }
        self.history.truncate(self.committed);
        self.synced = self.synced.min(self.committed);
        self.drafting = None;
        let block = self.block(self.committed, self.history.tail(), Vec::new());
        Some(self.launch(block))
    }

    /// Takes the answer to the oldest block in flight; returns what it commits, and the scores of given tokens.
    ///
    /// # Errors
    /// When no block is in flight, or the answer is none that an expert gives to it: the peer broke the protocol. Nothing
    /// has changed then, and the block is still in flight.
    pub fn answer(&mut self, answer: Answer) -> Result<Answered, String> {
        let Some(flight) = self.in_flight.pop_front() else {
            return Err("an answer came with no block in flight".into());
        };
        let (logprobs, vocabulary) = (self.decoding.logprobs, self.vocabulary);
        let asked = Asked { block: &flight.block, void: flight.void, logprobs, vocabulary };
        if let Err(wrong) = asked.check(&answer) {
            self.in_flight.push_front(flight);
            return Err(wrong);
        }
        let Flight { block, void } = flight;
        self.drafter_stuck = false;
        match answer {
            Answer::Stale(_) => {
                self.counters.stale_blocks += 1;
                self.counters.stale_drafts += block.drafts.len() as u64;
                if !void {
                    self.reject_from(self.committed);
                }
                Ok(Answered { resync: !void, ..Answered::default() })
            }
            Answer::Verdict(verdict) => Ok(self.take_verdict(&block, verdict)),
        }
    }

    /// Commits what a verdict on this block says, which has been checked.
    fn take_verdict(&mut self, block: &DraftBlock, verdict: Verdict) -> Answered {
        let (drafted, scored_given) = (block.drafts.len(), block.scored_given());
        let mut scores = verdict.scores;
        let emitted_scores = scores.split_off(scored_given);
        let tokens = block.drafts[..verdict.accepted].iter().map(|d| d.token).chain(verdict.replacement);
        let emitted: Vec<Emitted> = tokens
            .zip(emitted_scores)
            .enumerate()
            .map(|(i, (token, score))| {
                let provenance = match (i < verdict.accepted, score.relaxed) {
                    (false, _) => Provenance::Deferred,
                    (true, true) => Provenance::Relaxed,
                    (true, false) => Provenance::Accepted,
                };
                Emitted { token, provenance, score }
            })
            .collect();
        self.committed = block.base + verdict.accepted;
        if let Some(replacement) = verdict.replacement {
            self.reject_from(self.committed);
            self.history.push(replacement);
            self.committed += 1;
        }
        self.known = self.committed;
        self.scored = self.committed;
        self.draft_length.record(verdict.accepted, drafted);
        if drafted > 0 {
            self.pipeline.record(verdict.accepted == drafted);
            *self.outcomes.entry((drafted as u32, verdict.accepted as u32)).or_default() += 1;
        }
        let counters = &mut self.counters;
        counters.blocks += u64::from(drafted > 0);
        counters.drafted += drafted as u64;
        counters.accepted += verdict.accepted as u64;
        counters.relaxed += emitted.iter().filter(|e| e.provenance == Provenance::Relaxed).count() as u64;
        counters.deferred += u64::from(verdict.replacement.is_some());
        counters.expert_passes += u64::from(drafted > 0 || scored_given > 0);
        Answered { given_scores: scores, emitted, resync: false }
    }

    /// Drops everything that stood on tokens at `length..`.
    fn reject_from(&mut self, length: usize) {
        self.history.truncate(length);
        self.synced = self.synced.min(length);
        self.drafting = None;
        self.drafter_stuck = false;
        for flight in &mut self.in_flight {
            flight.void = true;
        }
    }

    /// The session goes on with another stream: nothing is in flight, the expert will be told the whole history.
    pub fn reopen(&mut self) -> Epoch {
        self.counters.moved_drafts += self.unanswered_drafts();
        self.in_flight.clear();
        self.reject_from(self.committed);
        self.known = if self.decoding.logprobs.is_some() { self.scored } else { self.committed };
        self.epoch = self.epoch.moved();
        self.counters.moves += 1;
        self.epoch
    }
}

/// What an answer brings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// Scores of the block's given tokens, if asked for.
    pub given_scores: Vec<Score>,
    /// Newly committed tokens.
    pub emitted: Vec<Emitted>,
    /// The expert holds another history than this owner believes: open a new stream.
    pub resync: bool,
}
