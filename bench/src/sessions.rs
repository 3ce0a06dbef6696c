//! Whole servers over held-out problems: one session with and without speculation, and many at once.

use std::sync::Arc;
use std::time::Instant;

use cascadia::Failure;
use cascadia::bench::problem::Problem;
use cascadia::client::Client;
use cascadia::cluster::{ClusterConfig, LocalCluster, Models};
use cascadia::demo::compare::{CASCADE, MAX_TOKENS, request};
use cascadia::load::Pair;
use cascadia::strategy_spec::StrategySpec;
use cascadia_core::commit::{Message, Prompt, Room};
use cascadia_text::Tokenizer;

use crate::llama::{Completion, DRAFTS, Server};

/// What a contender did over all problems.
#[derive(Clone, Debug, Default)]
pub struct SpeedSample {
    /// Tokens a second of each problem (or of each round).
    pub rates: Vec<f64>,
    /// What it wrote.
    pub texts: Vec<String>,
    /// Problems answered right.
    pub right: usize,
}

impl SpeedSample {
    fn add(&mut self, problem: &Problem, tokens: u64, begun: Instant, text: String) {
        self.rates.push(tokens as f64 / begun.elapsed().as_secs_f64());
        self.right += usize::from(problem.is_solved_by(&text));
        self.texts.push(text);
    }

    /// How many texts are those of `other`.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> usize {
        self.texts.iter().zip(&other.texts).filter(|(ours, theirs)| ours == theirs).count()
    }
}

/// One router, one drafter, one expert in this process.
///
/// # Errors
/// When they do not come up.
pub async fn cluster(pair: &Pair, threads: usize) -> Result<LocalCluster, Failure> {
    let mut config = ClusterConfig { drafters: 1, experts: 1, ..ClusterConfig::default() };
    (config.drafter.engine.threads, config.expert.engine.threads) = (threads, threads);
    let models = Models::of_pair(pair, &config.drafter, &config.expert, config.drafters + config.experts);
    Ok(LocalCluster::start(config, models).await?)
}

/// The ids that our router makes of a problem, for servers that get ids.
fn ids(tokenizer: &Tokenizer, problem: &Problem) -> Result<Vec<u32>, Failure> {
    let prompt = Prompt::Messages(vec![Message::new("user", &problem.question)]);
    Ok(tokenizer.resolve(&prompt, Room { context_length: 1024, max_tokens: MAX_TOKENS as usize }, None)?)
}

/// One session at a time, everyone in turn.
#[derive(Debug, Default)]
pub struct Alone {
    /// Our expert alone.
    pub plain: SpeedSample,
    /// Exact speculation.
    pub exact: SpeedSample,
    /// The recommended lossy rule.
    pub lossy: SpeedSample,
    /// Theirs alone.
    pub their_plain: SpeedSample,
    /// Theirs with the draft model.
    pub their_exact: SpeedSample,
}

/// Runs every problem by everyone, one after the other, so that a noisy moment of the machine hits all alike.
///
/// # Errors
/// When any answer fails.
pub async fn alone(
    client: &Client,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    servers: Option<&(Arc<Server>, Arc<Server>)>,
) -> Result<Alone, Failure> {
    let mut all = Alone::default();
    for (number, problem) in problems.iter().enumerate() {
        let specs = [StrategySpec::new("expert"), StrategySpec::new("speculative"), CASCADE];
        for (spec, sample) in specs.iter().zip([&mut all.plain, &mut all.exact, &mut all.lossy]) {
            let begun = Instant::now();
            let mut request = request(spec, problem, format!("{spec}/{number}"));
            if let Some(parameters) = &mut request.parameters {
                parameters.draft_length = (spec.strategy != "expert").then_some(DRAFTS);
            }
            let answer = client.answer(request).await?;
            sample.add(problem, u64::from(answer.usage().completion_tokens), begun, answer.text);
        }
        let Some((plain, exact)) = servers else { continue };
        let prompt = ids(tokenizer, problem)?;
        for (server, sample) in [(plain, &mut all.their_plain), (exact, &mut all.their_exact)] {
            let begun = Instant::now();
            let answer = complete(server, prompt.clone()).await?;
            sample.add(problem, answer.tokens, begun, answer.text);
        }
    }
    Ok(all)
}

/// `problems` all at once, plain decoding: tokens a second in all, ours and theirs.
///
/// # Errors
/// When any answer fails.
pub async fn at_once(
    client: &Client,
    tokenizer: &Tokenizer,
    (round, problems): (usize, &[Problem]),
    server: Option<&Arc<Server>>,
) -> Result<(f64, Option<f64>), Failure> {
    let begun = Instant::now();
    let mut ours = tokio::task::JoinSet::new();
    for (number, problem) in problems.iter().enumerate() {
        let request = request(&StrategySpec::new("expert"), problem, format!("at once/{round}/{number}"));
        let client = client.clone();
        ours.spawn(async move { client.answer(request).await });
    }
    let mut tokens = 0;
    for answer in ours.join_all().await {
        tokens += u64::from(answer?.usage().completion_tokens);
    }
    let rate = tokens as f64 / begun.elapsed().as_secs_f64();
    let Some(server) = server else { return Ok((rate, None)) };
    let prompts: Vec<_> = problems.iter().map(|problem| ids(tokenizer, problem)).collect::<Result<_, _>>()?;
    let begun = Instant::now();
    let mut theirs = tokio::task::JoinSet::new();
    for prompt in prompts {
        let server = server.clone();
        theirs.spawn(async move { complete(&server, prompt).await });
    }
    let mut tokens = 0;
    for answer in theirs.join_all().await {
        tokens += answer?.tokens;
    }
    Ok((rate, Some(tokens as f64 / begun.elapsed().as_secs_f64())))
}

async fn complete(server: &Arc<Server>, prompt: Vec<u32>) -> Result<Completion, Failure> {
    let server = server.clone();
    tokio::task::spawn_blocking(move || server.complete(&prompt, MAX_TOKENS)).await?
}
