//! Scoring by an expert what the drafter answered whole (`cascade_query` with logprobs).

use cascadia_core::block::Score;
use cascadia_core::ids::TokenId;
use cascadia_core::pipeline::Pipeline;
use cascadia_core::session::{Counters, Emitted, Session};
use cascadia_node::owner::Output;
use cascadia_proto::fault;
use tonic::Status;

use super::search::{ExpertLoss, is_final};
use super::{Generation, MAX_FRUITLESS};
use crate::expert_link::{ExpertEvent, ExpertLink};

/// Tokens that are scored at once where the drafter answered whole; bounds the rows of one chunk.
const SCORE_TOKENS: usize = 64;

impl Generation<'_> {
    /// Has an expert score tokens that the drafter decoded alone; the passes it took. Without an expert they stay
    /// unscored where the request prefers that to waiting.
    pub async fn score(&mut self, emitted: &mut [Emitted], output: &mut Output) -> Result<u64, Status> {
        let mut ids = self.session.committed().to_vec();
        let (mut done, mut passes, mut fruitless) = (0, 0, 0);
        while done < emitted.len() {
            self.count();
            self.counted = Counters::default();
            let vocabulary = self.node.facts.vocabulary;
            let epoch = self.session.epoch();
            self.session = Session::new(self.decoding.clone(), vocabulary, &ids, epoch, Pipeline::Fixed(1));
            let Some(mut link) = self.any_link().await? else {
                self.say_alone(output).await?;
                return Ok(passes);
            };
            while done < emitted.len() {
                let end = emitted.len().min(done + SCORE_TOKENS);
                let piece = &mut emitted[done..end];
                let tokens: Vec<TokenId> = piece.iter().map(|e| e.token).collect();
                let distrusted = self.faulty.len();
                let scores = match self.score_piece(&mut link, &tokens).await {
                    Ok(scores) => scores,
                    Err(status) if is_final(&status) => return Err(status),
                    Err(status) => {
                        self.blame(&link.expert.id, &status);
                        // The next stream starts from what has been scored.
                        self.failed.insert(link.expert.id.clone());
                        fruitless += u32::from(self.faulty.len() == distrusted);
                        match ExpertLoss::of(status) {
                            ExpertLoss::Lost => self.node.experts.failed(&link.expert.id),
                            ExpertLoss::Refused(status) if fruitless >= MAX_FRUITLESS => {
                                return Err(fault::of(&link.expert.id.0, status));
                            }
                            ExpertLoss::Refused(_) | ExpertLoss::Leaving => {}
                        }
                        self.session.reopen();
                        break;
                    }
                };
                for (token, score) in piece.iter_mut().zip(scores) {
                    token.score = score;
                }
                ids.extend(tokens);
                done = end;
                passes += 1;
                fruitless = 0;
            }
        }
        Ok(passes)
    }

    async fn score_piece(&mut self, link: &mut ExpertLink, tokens: &[TokenId]) -> Result<Vec<Score>, Status> {
        self.session.give(tokens);
        let Some(block) = self.session.flush_scores() else { return Ok(Vec::new()) };
        self.send(link, &block)?;
        let expert = link.expert.id.clone();
        loop {
            let said = tokio::select! {
                biased;
                said = link.next() => said?,
                () = self.node.experts.gone(&expert) => return Err(Status::unknown("the expert is hung")),
            };
            match said {
                ExpertEvent::Answer(answer, took) => match self.take_answer(answer, took) {
                    Ok(answered) => return Ok(answered.given_scores),
                    Err(wrong) => return Err(self.distrust(&expert, &wrong)),
                },
                ExpertEvent::Wrong(wrong) => return Err(self.distrust(&expert, &wrong)),
                ExpertEvent::Move => return Err(fault::leaving("the expert drains")),
                ExpertEvent::Held => {}
            }
        }
    }
}
