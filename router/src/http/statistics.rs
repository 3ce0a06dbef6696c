//! What an answer cost and who wrote it: vLLM's `metrics` object, our own `cascadia` object, and the fingerprint of
//! everything that fixes a text besides the request.

use std::collections::BTreeMap;

use cascadia_core::history::hash_bytes;
use cascadia_proto::v1;
use serde::Serialize;
use tokio::time::Instant;

use crate::http::answer::{Answer, Choice};

/// Names the models, how they share the work, and what the operator's defaults made of fields that the request left open:
/// where it is equal, equal requests and seeds give equal texts.
#[must_use]
pub fn system_fingerprint(asked: &v1::Parameters, started: &v1::Started) -> String {
    let (fingerprints, parameters) =
        (started.fingerprints.clone().unwrap_or_default(), started.parameters.clone().unwrap_or_default());
    let law = (
        fingerprints.expert,
        fingerprints.drafter,
        fingerprints.tokenizer,
        parameters.strategy,
        parameters.rule,
        parameters.alpha,
        parameters.coupling,
        parameters.bild.map(|bild| [bild.fallback, bild.rollback]),
        parameters.typical.map(|typical| [typical.epsilon, typical.delta]),
        parameters.strict_first_tokens,
        parameters.wire_top_k,
        asked.temperature.is_none().then_some(parameters.temperature),
        asked.max_tokens.is_none().then_some(parameters.max_tokens),
    );
    let law = serde_json::to_string(&law).expect("a list of words and numbers");
    format!("fp_{:016x}", hash_bytes(0, law.as_bytes()))
}

/// vLLM's per-request metrics, milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    time_to_first_token_ms: Option<f64>,
    generation_time_ms: Option<f64>,
    queue_time_ms: Option<f64>,
    mean_itl_ms: Option<f64>,
    tokens_per_second: Option<f64>,
    speculative_decoding: Option<SpeculativeDecoding>,
}

/// They describe one session, so there are none of several.
#[must_use]
pub fn metrics(answer: &Answer) -> Option<Metrics> {
    let [choice] = answer.choices.as_slice() else { return None };
    let [opened, first, last] = choice.times;
    let millis = |from: Option<Instant>, to: Option<Instant>| {
        from.zip(to).map(|(from, to)| to.saturating_duration_since(from).as_secs_f64() * 1e3)
    };
    let tokens = f64::from(usage(choice).completion_tokens);
    let (generation, whole) = (millis(first, last), millis(opened, last).filter(|time| *time > 0.0));
    Some(Metrics {
        time_to_first_token_ms: millis(opened, first),
        generation_time_ms: generation,
        queue_time_ms: millis(Some(answer.arrived), opened),
        mean_itl_ms: generation.filter(|_| tokens > 1.0).map(|time| time / (tokens - 1.0)),
        tokens_per_second: whole.map(|time| tokens / time * 1e3),
        speculative_decoding: speculative_decoding(choice),
    })
}

/// vLLM's account of blocks that were drafted and verified.
#[derive(Clone, Debug, Serialize)]
struct SpeculativeDecoding {
    mean_acceptance_length: f64,
    draft_acceptance_rate: f64,
    acceptance_histogram: Vec<u64>,
    /// The same, by the length of a block as text.
    acceptance_histogram_by_draft_length: BTreeMap<String, Vec<u64>>,
    num_spec_steps: u64,
    num_accepted_draft_tokens: u64,
    num_draft_tokens: u64,
    num_spec_tokens: u32,
}

/// Nothing where no block is drafted and verified.
///
/// There is no bonus token here: a step of n drafts emits at most n tokens, and `mean_acceptance_length` is what it
/// emitted on average.
fn speculative_decoding(choice: &Choice) -> Option<SpeculativeDecoding> {
    let parameters = choice.started.parameters.clone().unwrap_or_default();
    if !matches!(parameters.strategy.as_str(), "speculative" | "speculative_cascade" | "cascade_token") {
        return None;
    }
    let speculation = speculation(choice);
    let most = parameters.draft_length().max(speculation.outcomes.iter().map(|o| o.drafted).max().unwrap_or(0));
    let mut histogram = vec![0u64; most as usize + 1];
    let mut by_length: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut steps, mut drafted, mut accepted, mut emitted) = (0u64, 0u64, 0u64, 0u64);
    for outcome in &speculation.outcomes {
        let (length, kept) = (outcome.drafted, outcome.accepted.min(outcome.drafted));
        steps += outcome.blocks;
        drafted += u64::from(length) * outcome.blocks;
        accepted += u64::from(kept) * outcome.blocks;
        emitted += u64::from(if kept < length { kept + 1 } else { kept }) * outcome.blocks;
        histogram[kept as usize] += outcome.blocks;
        let row = by_length.entry(length.to_string()).or_insert_with(|| vec![0; length as usize + 1]);
        row[kept as usize] += outcome.blocks;
    }
    let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    Some(SpeculativeDecoding {
        mean_acceptance_length: if steps == 0 { 1.0 } else { ratio(emitted, steps) },
        draft_acceptance_rate: ratio(accepted, drafted),
        acceptance_histogram: histogram,
        acceptance_histogram_by_draft_length: by_length,
        num_spec_steps: steps,
        num_accepted_draft_tokens: accepted,
        num_draft_tokens: drafted,
        num_spec_tokens: parameters.draft_length(),
    })
}

/// Our own object: what was really used, and who wrote how much.
#[derive(Clone, Debug, Serialize)]
pub struct Cascadia {
    request_id: String,
    session: String,
    sessions: Vec<String>,
    seed: u64,
    strategy: String,
    rule: Option<String>,
    alpha: Option<f64>,
    coupling: Option<String>,
    bild: Option<Bild>,
    typical: Option<Typical>,
    draft_length: Option<u32>,
    strict_first_tokens: Option<u32>,
    wire_top_k: Option<u32>,
    accepted: u64,
    relaxed: u64,
    deferred: u64,
    expert_passes: u64,
    moves: u64,
    score: Option<f64>,
    reproducible: bool,
    drafter: Option<String>,
    expert: Option<String>,
    fingerprints: Fingerprints,
}

#[derive(Clone, Debug, Serialize)]
struct Bild {
    fallback: f64,
    rollback: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Typical {
    epsilon: f64,
    delta: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Fingerprints {
    drafter: Option<String>,
    expert: Option<String>,
    tokenizer: Option<String>,
}

/// Over these choices together.
#[must_use]
pub fn cascadia(choices: &[Choice]) -> Option<Cascadia> {
    let first = choices.first()?;
    let (started, parameters) = (&first.started, first.started.parameters.clone().unwrap_or_default());
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let fingerprints = started.fingerprints.clone().unwrap_or_default();
    let sum = |of: fn(&v1::Speculation) -> u64| choices.iter().map(|choice| of(&speculation(choice))).sum::<u64>();
    Some(Cascadia {
        request_id: started.request_id.clone(),
        session: first.session.to_string(),
        sessions: choices.iter().map(|choice| choice.session.to_string()).collect(),
        seed: started.seed,
        rule: some(&parameters.rule),
        alpha: parameters.alpha,
        coupling: some(&parameters.coupling),
        bild: parameters.bild.map(|bild| Bild { fallback: bild.fallback, rollback: bild.rollback }),
        typical: parameters.typical.map(|typical| Typical { epsilon: typical.epsilon, delta: typical.delta }),
        draft_length: parameters.draft_length,
        strict_first_tokens: parameters.strict_first_tokens,
        wire_top_k: parameters.wire_top_k,
        strategy: parameters.strategy,
        accepted: sum(|speculation| speculation.accepted),
        relaxed: sum(|speculation| speculation.relaxed),
        deferred: sum(|speculation| speculation.deferred),
        expert_passes: sum(|speculation| speculation.expert_passes),
        moves: sum(|speculation| speculation.moves),
        score: speculation(first).score,
        reproducible: choices.iter().all(|choice| choice.finished.as_ref().is_some_and(|f| f.reproducible)),
        drafter: some(&started.drafter),
        expert: some(&started.expert),
        fingerprints: Fingerprints {
            drafter: some(&fingerprints.drafter),
            expert: some(&fingerprints.expert),
            tokenizer: some(&fingerprints.tokenizer),
        },
    })
}

fn usage(choice: &Choice) -> v1::Usage {
    choice.finished.as_ref().and_then(|finished| finished.usage).unwrap_or_default()
}

fn speculation(choice: &Choice) -> v1::Speculation {
    choice.finished.as_ref().and_then(|finished| finished.speculation.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cascadia_core::ids::SessionId;
    use cascadia_proto::v1::generate_response::Event;
    use serde_json::{Value, json};

    use super::*;

    fn started(rule: &str, drafter: &str) -> v1::Started {
        v1::Started {
            parameters: Some(v1::Parameters {
                strategy: "speculative_cascade".into(),
                rule: rule.into(),
                draft_length: Some(3),
                temperature: Some(0.7),
                ..Default::default()
            }),
            fingerprints: Some(v1::Fingerprints { drafter: drafter.into(), expert: "e".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn answer(outcomes: Vec<v1::BlockOutcome>) -> Answer {
        let mut answer = Answer::new([SessionId(1)].into_iter(), Instant::now());
        answer.take(0, Event::Started(started("token_v3", "d")), Instant::now());
        let speculation = Some(v1::Speculation { outcomes, ..Default::default() });
        answer.take(0, Event::Finished(v1::Finished { speculation, ..Default::default() }), Instant::now());
        answer
    }

    #[test]
    fn the_histogram_is_vllms() {
        let outcome = |drafted, accepted, blocks| v1::BlockOutcome { drafted, accepted, blocks };
        let metrics = json!(metrics(&answer(vec![outcome(3, 3, 2), outcome(3, 0, 1), outcome(2, 1, 1)])));
        let speculative = &metrics["speculative_decoding"];
        assert_eq!(speculative["acceptance_histogram"], json!([1, 1, 0, 2]));
        assert_eq!(speculative["acceptance_histogram_by_draft_length"], json!({"2": [0, 1, 0], "3": [1, 0, 0, 2]}));
        assert_eq!((&speculative["num_spec_steps"], &speculative["num_draft_tokens"]), (&json!(4), &json!(11)));
        assert_eq!(
            (&speculative["num_accepted_draft_tokens"], &speculative["num_spec_tokens"]),
            (&json!(7), &json!(3))
        );
        // 3 + 3 + 1 + 2 tokens in four steps.
        assert_eq!(speculative["mean_acceptance_length"], json!(2.25));
        assert_eq!(metrics["time_to_first_token_ms"], Value::Null);
        assert_eq!(
            json!(super::metrics(&answer(Vec::new())))["speculative_decoding"]["acceptance_histogram"],
            json!([0, 0, 0, 0])
        );
    }

    #[test]
    fn several_choices_have_no_metrics_of_one() {
        let sessions = [SessionId(1), SessionId(2)];
        assert!(metrics(&Answer::new(sessions.into_iter(), Instant::now())).is_none());
    }

    #[test]
    fn a_fingerprint_follows_the_models_the_rule_and_defaults_and_nothing_else() {
        let asked = v1::Parameters { temperature: Some(0.7), max_tokens: Some(9), ..Default::default() };
        let of = |started: &v1::Started| system_fingerprint(&asked, started);
        let same =
            v1::Started { seed: 7, session: "x".into(), drafter: "drafter-2".into(), ..started("token_v3", "d") };
        assert_eq!(of(&started("token_v3", "d")), of(&same));
        assert_ne!(of(&started("token_v3", "d")), of(&started("token_v2", "d")));
        assert_ne!(of(&started("token_v3", "d")), of(&started("token_v3", "other")));
        let with = |temperature, max_tokens| {
            let started = started("token_v3", "d");
            let parameters = v1::Parameters { temperature, max_tokens, ..started.parameters.clone().unwrap() };
            v1::Started { parameters: Some(parameters), ..started }
        };
        // What a request says is its own; what an operator says for it is not.
        assert_eq!(of(&with(Some(0.2), Some(5))), of(&with(Some(0.3), Some(6))));
        let open = |started: &v1::Started| system_fingerprint(&v1::Parameters::default(), started);
        assert_ne!(open(&with(Some(0.2), Some(5))), open(&with(Some(0.3), Some(5))));
        assert_ne!(open(&with(Some(0.2), Some(5))), open(&with(Some(0.2), Some(6))));
    }
}
