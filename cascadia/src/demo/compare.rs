//! Every strategy solves the same problems, in turns, so that a noisy moment of the machine hits all alike.

use std::time::{Duration, Instant};

use cascadia_proto::v1;
use cascadia_proto::v1::prompt::Kind;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;

use crate::Failure;
use crate::bench::problem::Problem;
use crate::client::{Answer, Client};
use crate::strategy_spec::StrategySpec;

/// Tokens of an answer at most; the longest right ones have about 80.
pub const MAX_TOKENS: u32 = 128;

/// Problems a strategy solves before the next one's turn, for each session at a time: enough that the end of a turn,
/// where sessions run out, weighs little.
const TURN: usize = 4;

/// The request for one problem. Nothing of it is found in a prefix cache unless `salt` was used before.
#[must_use]
pub fn request(spec: &StrategySpec, problem: &Problem, salt: String) -> v1::GenerateRequest {
    let message = v1::Message { role: "user".into(), content: problem.question.clone() };
    let parameters = v1::Parameters { temperature: Some(0.0), max_tokens: Some(MAX_TOKENS), ..spec.parameters() };
    v1::GenerateRequest {
        prompt: Some(v1::Prompt { kind: Some(Kind::Messages(v1::Messages { messages: vec![message] })) }),
        parameters: Some(parameters),
        cache_salt: Some(salt),
        ..Default::default()
    }
}

/// The recommended lossy strategy; the streamed answers use it too.
pub const CASCADE: StrategySpec = StrategySpec::with("speculative_cascade", Some("token_v3"), 0.67);

/// All strategies, the yardstick first. Their thresholds were compared on these same held-out problems, so that a point of
/// accuracy between them means nothing.
pub const ALL: [StrategySpec; 6] = [
    StrategySpec::new("expert"),
    StrategySpec::new("drafter"),
    StrategySpec::with("cascade_query", None, -0.05),
    StrategySpec::with("cascade_token", Some("chow"), 0.3),
    StrategySpec::new("speculative"),
    CASCADE,
];

/// Those of the padded pair's shorter table.
pub const SHORT: [StrategySpec; 3] = [StrategySpec::new("expert"), StrategySpec::new("speculative"), CASCADE];

/// What one strategy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StrategyScore {
    /// Problems answered.
    pub problems: usize,
    /// Problems answered right.
    pub right: usize,
    /// Tokens written.
    pub tokens: u64,
    /// Tokens that came from the drafter.
    pub from_drafter: u64,
    /// Passes of the expert.
    pub expert_passes: u64,
    /// Time of its turns.
    pub time: Duration,
}

impl StrategyScore {
    /// Adds an answer.
    pub fn add(&mut self, problem: &Problem, answer: &Answer) {
        self.problems += 1;
        self.right += usize::from(problem.is_solved_by(&answer.text));
        self.tokens += u64::from(answer.usage().completion_tokens);
        self.from_drafter += answer.from_drafter() as u64;
        self.expert_passes += answer.speculation().expert_passes;
    }
}

/// Runs `specs` over `problems`, `sessions` at a time; one tally each.
///
/// # Errors
/// When any answer fails: a table with holes would be no measurement.
pub async fn run(
    client: &Client,
    specs: &[StrategySpec],
    problems: &[Problem],
    sessions: usize,
    bar: &ProgressBar,
) -> Result<Vec<StrategyScore>, Failure> {
    let mut scores = vec![StrategyScore::default(); specs.len()];
    let turn = if sessions == 1 { 1 } else { TURN * sessions };
    for (number, turn) in problems.chunks(turn).enumerate() {
        for place in 0..specs.len() {
            // Nobody always goes first.
            let which = (place + number) % specs.len();
            let spec = &specs[which];
            bar.set_message(spec.strategy.clone());
            let began = Instant::now();
            let answers = take_turn(client, spec, turn, (number, sessions)).await?;
            scores[which].time += began.elapsed();
            for (problem, answer) in turn.iter().zip(&answers) {
                scores[which].add(problem, answer);
            }
            bar.inc(turn.len() as u64);
        }
    }
    Ok(scores)
}

async fn take_turn(
    client: &Client,
    spec: &StrategySpec,
    problems: &[Problem],
    (number, sessions): (usize, usize),
) -> Result<Vec<Answer>, Failure> {
    stream::iter(problems.iter().enumerate())
        .map(|(i, problem)| {
            let salt = format!("{}/{number}/{i}", spec.strategy);
            let request = request(spec, problem, salt);
            async move {
                client.answer(request).await.map_err(|error| {
                    Failure::from(format!("{} failed on {:?}: {error}", spec.strategy, problem.question))
                })
            }
        })
        .buffered(sessions)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::provenance_name;

    fn problem() -> Problem {
        Problem { question: "How many?".into(), answer: 4 }
    }

    #[test]
    fn the_yardstick_comes_first_and_names_are_unique() {
        assert_eq!((&*ALL[0].strategy, &*SHORT[0].strategy), ("expert", "expert"));
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|spec| spec.strategy.clone()).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(SHORT.iter().all(|spec| ALL.contains(spec)));
    }

    #[test]
    fn a_request_is_greedy_and_names_a_rule_only_where_there_is_a_choice() {
        for spec in ALL {
            let request = request(&spec, &problem(), "salt".into());
            let parameters = request.parameters.expect("parameters");
            assert_eq!(parameters.temperature, Some(0.0));
            assert_eq!(!parameters.rule.is_empty(), spec.strategy == "speculative_cascade");
            assert_eq!(request.cache_salt.as_deref(), Some("salt"));
        }
    }

    #[test]
    fn a_tally_counts_tokens_by_where_they_came_from() {
        let answer = Answer {
            text: "2 and 2 make 4".into(),
            provenance: vec![v1::Provenance::Accepted, v1::Provenance::Relaxed, v1::Provenance::Deferred],
            finished: v1::Finished {
                usage: Some(v1::Usage { completion_tokens: 3, ..Default::default() }),
                speculation: Some(v1::Speculation { expert_passes: 2, ..Default::default() }),
                ..Default::default()
            },
            ..Default::default()
        };
        let mut score = StrategyScore::default();
        score.add(&problem(), &answer);
        score.add(&problem(), &Answer { text: "5".into(), ..answer });
        let expected =
            StrategyScore { problems: 2, right: 1, tokens: 6, from_drafter: 4, expert_passes: 4, time: Duration::ZERO };
        assert_eq!(score, expected);
        assert_eq!(provenance_name(v1::Provenance::Relaxed), "relaxed");
    }
}
