//! What a session's owners did together: statistics that survive the loss of an owner.

use cascadia_core::ids::TokenId;
use cascadia_proto::v1::{self, BlockOutcome, Provenance, Speculation};

/// Statistics over all owners of a session.
#[derive(Clone, Debug, Default)]
pub struct SpeculationTotals {
    total: Speculation,
    /// What the present owner was seen to do; its own account replaces it when it gives one.
    seen: Speculation,
}

impl SpeculationTotals {
    /// The present owner committed these tokens.
    pub fn committed(&mut self, tokens: &v1::Tokens) {
        for provenance in tokens.provenance() {
            match provenance {
                Provenance::Accepted => self.seen.accepted += 1,
                Provenance::Relaxed => {
                    self.seen.accepted += 1;
                    self.seen.relaxed += 1;
                }
                Provenance::Deferred => self.seen.deferred += 1,
                Provenance::Unspecified => {}
            }
        }
    }

    /// The present owner moved to another expert.
    pub fn moved(&mut self) {
        self.seen.moves += 1;
    }

    /// The present owner ended and gave its account.
    pub fn accounted(&mut self, account: &Speculation) {
        self.seen = Speculation::default();
        add(&mut self.total, account);
    }

    /// The present owner is gone without one: what was seen counts, the rest it did is unknown.
    pub fn owner_gone(&mut self) {
        // At least what was accepted had been drafted.
        self.seen.drafted = self.seen.accepted;
        let seen = std::mem::take(&mut self.seen);
        add(&mut self.total, &seen);
        self.total.moves += 1;
    }

    /// All owners together.
    #[must_use]
    pub fn total(&self) -> Speculation {
        self.total.clone()
    }
}

fn add(total: &mut Speculation, part: &Speculation) {
    total.blocks += part.blocks;
    total.drafted += part.drafted;
    total.accepted += part.accepted;
    total.relaxed += part.relaxed;
    total.deferred += part.deferred;
    total.expert_passes += part.expert_passes;
    total.moves += part.moves;
    total.stale_blocks += part.stale_blocks;
    total.score = part.score.or(total.score);
    for part in &part.outcomes {
        let same = |outcome: &&mut BlockOutcome| (outcome.drafted, outcome.accepted) == (part.drafted, part.accepted);
        match total.outcomes.iter_mut().find(same) {
            Some(outcome) => outcome.blocks += part.blocks,
            None => total.outcomes.push(*part),
        }
    }
}

/// The client's `Finished`: the last owner's, with what only the router knows of the whole session.
#[must_use]
pub fn finished(
    last: v1::Finished,
    ids: &[TokenId],
    prompt_tokens: usize,
    totals: &SpeculationTotals,
    exact: bool,
) -> v1::Finished {
    let cached_tokens = last.usage.map_or(0, |usage| usage.cached_tokens);
    let usage = v1::Usage {
        prompt_tokens: prompt_tokens as u32,
        completion_tokens: (ids.len() - prompt_tokens) as u32,
        cached_tokens,
    };
    v1::Finished {
        usage: Some(usage),
        speculation: Some(totals.total()),
        reproducible: last.reproducible && exact,
        ..last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(provenance: &[Provenance]) -> v1::Tokens {
        v1::Tokens { provenance: provenance.iter().map(|&p| p.into()).collect(), ..Default::default() }
    }

    #[test]
    fn counters_add_up_over_owners() {
        let mut totals = SpeculationTotals::default();
        totals.committed(&tokens(&[Provenance::Accepted, Provenance::Relaxed, Provenance::Deferred]));
        totals.moved();
        totals.owner_gone();
        totals.committed(&tokens(&[Provenance::Accepted]));
        totals.accounted(&Speculation { blocks: 2, drafted: 12, accepted: 8, deferred: 2, ..Default::default() });
        let total = totals.total();
        assert_eq!((total.blocks, total.drafted, total.accepted, total.relaxed), (2, 14, 10, 1));
        assert_eq!((total.deferred, total.moves), (3, 2));
    }

    #[test]
    fn the_client_is_told_of_the_whole_session() {
        let last = v1::Finished {
            usage: Some(v1::Usage { prompt_tokens: 2, completion_tokens: 1, cached_tokens: 1 }),
            reproducible: true,
            ..Default::default()
        };
        let told = finished(last.clone(), &[1, 2, 3, 4, 5], 2, &SpeculationTotals::default(), true);
        assert_eq!(told.usage.unwrap(), v1::Usage { prompt_tokens: 2, completion_tokens: 3, cached_tokens: 1 });
        assert!(told.reproducible);
        assert!(!finished(last, &[1, 2, 3], 2, &SpeculationTotals::default(), false).reproducible);
    }
}
