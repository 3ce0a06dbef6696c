//! The published vectors of `golden_rules.json` against the public API.
//!
//! Not covered, because nothing here implements them: block verification (`block_cases`), the biased truncation that
//! must not be done (`bias_cases`) and the speed-up formulas (`speedup_cases`, `gamma_star`).

use cascadia_core::chance::{Chance, Stream};
use cascadia_core::distribution::Distribution;
use cascadia_core::ids::TokenId;
use cascadia_core::rule::{Pair, Parameters, RawRow, Rule, Target};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tolerance: f64,
    scenarios: std::collections::BTreeMap<String, Scenario>,
    rule_cases: Vec<RuleCase>,
    lossy_cases: Vec<LossyCase>,
    bild_cases: Vec<BildCase>,
    typical_cases: Vec<TypicalCase>,
    gumbel_cases: Vec<GumbelCase>,
    rng: Rng,
    trace_cases: Vec<Trace>,
    block_rejection: Vec<BlockRejection>,
}

#[derive(Deserialize, Default)]
struct Scenario {
    #[serde(default)]
    q: Vec<f64>,
    #[serde(default)]
    p: Vec<f64>,
}

#[derive(Deserialize)]
struct RuleCase {
    id: String,
    rule: String,
    alpha: f64,
    temperature: f64,
    q: Vec<f64>,
    p: Vec<f64>,
    q_raw: Vec<f64>,
    p_raw: Vec<f64>,
    max_q_raw: f64,
    max_p_raw: f64,
    d_tv: f64,
    entropy_q_raw: f64,
    entropy_p_raw: f64,
    pi: Vec<f64>,
    accept_prob: Vec<f64>,
    reject_prob: f64,
    residual: Option<Vec<f64>>,
    marginal: Vec<f64>,
}

#[derive(Deserialize)]
struct LossyCase {
    id: String,
    variant: String,
    alpha: f64,
    q: Vec<f64>,
    p: Vec<f64>,
    accept_prob: Vec<f64>,
    reject_prob: f64,
    residual: Option<Vec<f64>>,
    output_law: Vec<f64>,
}

#[derive(Deserialize)]
struct BildCase {
    id: String,
    q: Vec<f64>,
    p: Vec<f64>,
    token: TokenId,
    alpha_fb: f64,
    alpha_rb: f64,
    max_q: f64,
    fallback: bool,
    rollback: bool,
}

#[derive(Deserialize)]
struct TypicalCase {
    id: String,
    p: Vec<f64>,
    epsilon: f64,
    delta: f64,
    accept: Vec<bool>,
}

#[derive(Deserialize)]
struct GumbelCase {
    id: String,
    q: Vec<f64>,
    p: Vec<f64>,
    optimal_coupling: f64,
    gumbel_collision: f64,
    pi_token_v3_alpha03: Vec<f64>,
    optimal_coupling_pi: f64,
}

#[derive(Deserialize)]
struct Rng {
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    seed: u64,
    position: u64,
    token: u64,
    stream: u32,
    u: f64,
    gumbel: f64,
}

#[derive(Deserialize)]
struct Trace {
    id: String,
    rule: String,
    alpha: f64,
    seed: u64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    position: u64,
    scenario: String,
    draft: TokenId,
    u: f64,
    accept_prob: f64,
    accepted: bool,
    emitted: TokenId,
}

#[derive(Deserialize)]
struct BlockRejection {
    rule: String,
    alpha: f64,
    scenarios: Vec<String>,
    per_position_reject: Vec<f64>,
    survival: Vec<f64>,
    expected_accepted: f64,
    block_reject_prob: f64,
}

fn golden() -> Golden {
    let golden: Golden = serde_json::from_str(include_str!("golden_rules.json")).expect("the vectors parse");
    assert_eq!(golden.tolerance, 1e-12);
    golden
}

fn close(id: &str, what: &str, got: f64, wanted: f64) {
    assert!((got - wanted).abs() < 1e-12, "{id}: {what} is {got}, not {wanted}");
}

fn rows_close(id: &str, what: &str, got: impl Fn(TokenId) -> f64, wanted: &[f64]) {
    for (token, &wanted) in wanted.iter().enumerate() {
        close(id, &format!("{what} of {token}"), got(token as TokenId), wanted);
    }
}

fn row(weights: &[f64]) -> Distribution {
    Distribution::dense(weights.to_vec())
}

/// `None` is `pi = p`.
fn rule(name: &str, alpha: f64) -> Option<Rule> {
    let parameters = Parameters { alpha: Some(alpha), ..Parameters::default() };
    (name != "lossless").then(|| Rule::parse(name, parameters).expect("a rule of the vectors is one of ours"))
}

fn target<'a>(rule: Option<Rule>, pair: &Pair<'a>) -> Target<'a> {
    rule.map_or_else(|| Target::exact(pair), |rule| rule.target(pair, &[]))
}

/// A pair at temperature 1, where raw rows and sampled rows are the same.
fn plain<'a>(q: &'a Distribution, p: &'a Distribution) -> Pair<'a> {
    Pair { q, p, max_q: q.max(), entropy_q: q.entropy(), raw_p: p, temperature: 1.0 }
}

fn check_law(id: &str, target: &Target<'_>, q: &Distribution, pi: &[f64], accept: &[f64], reject: f64) {
    rows_close(id, "pi", |token| target.prob(token), pi);
    close(id, "mass of pi", target.iter().map(|entry| entry.1).sum(), 1.0);
    for (token, weight) in q.iter() {
        close(id, "acceptance", (target.prob(token) / weight).min(1.0), accept[token as usize]);
    }
    close(id, "rejection", target.rejection(q), reject);
    close(id, "mass of the residual", target.residual(q).map(|entry| entry.1).sum(), reject);
}

fn check_residual(id: &str, target: &Target<'_>, q: &Distribution, wanted: Option<&[f64]>) {
    let Some(wanted) = wanted else { return };
    let mut left: Vec<_> = target.residual(q).collect();
    left.sort_by_key(|entry| entry.0);
    let residual = Distribution::sparse(left).normalised();
    rows_close(id, "residual", |token| residual.prob(token), wanted);
}

#[test]
fn rules() {
    for case in golden().rule_cases {
        let (id, q, p, raw_q, raw_p) =
            (case.id.as_str(), row(&case.q), row(&case.p), row(&case.q_raw), row(&case.p_raw));
        close(id, "max q", raw_q.max(), case.max_q_raw);
        close(id, "max p", raw_p.max(), case.max_p_raw);
        close(id, "entropy of q", raw_q.entropy(), case.entropy_q_raw);
        close(id, "entropy of p", raw_p.entropy(), case.entropy_p_raw);
        close(id, "distance", p.total_variation(&q), case.d_tv);
        close(id, "distance, other way", q.total_variation(&p), case.d_tv);
        let (max_q, entropy_q) = (raw_q.max(), raw_q.entropy());
        let pair = Pair { q: &q, p: &p, max_q, entropy_q, raw_p: &raw_p, temperature: case.temperature };
        let target = target(rule(&case.rule, case.alpha), &pair);
        check_law(id, &target, &q, &case.pi, &case.accept_prob, case.reject_prob);
        check_residual(id, &target, &q, case.residual.as_deref());
        let marginal = |token| {
            let residual = target.residual(&q).find(|entry| entry.0 == token).map_or(0.0, |entry| entry.1);
            q.prob(token).min(target.prob(token)) + residual
        };
        rows_close(id, "marginal", marginal, &case.marginal);
        // The dense residual is the same.
        let pi = Distribution::dense((0..case.pi.len()).map(|token| target.prob(token as TokenId)).collect());
        if let (Some(wanted), Some(residual)) = (case.residual, pi.residual(&q)) {
            rows_close(id, "dense residual", |token| residual.prob(token), &wanted);
        }
    }
}

#[test]
fn lossy_baselines() {
    for case in golden().lossy_cases {
        let name = if case.variant == "tran_thien_solved_beta" { "mentored" } else { "lenience" };
        let (q, p) = (row(&case.q), row(&case.p));
        let target = target(rule(name, case.alpha), &plain(&q, &p));
        check_law(&case.id, &target, &q, &case.output_law, &case.accept_prob, case.reject_prob);
        if case.reject_prob > 0.0 {
            check_residual(&case.id, &target, &q, case.residual.as_deref());
        }
    }
}

#[test]
fn bild() {
    for case in golden().bild_cases {
        let (raw_q, p) = (row(&case.q), row(&case.p));
        close(&case.id, "max q", raw_q.max(), case.max_q);
        assert_eq!(raw_q.argmax(), case.token, "{}", case.id);
        let q = Distribution::point_mass(case.token);
        let pair = Pair { q: &q, p: &p, max_q: case.max_q, entropy_q: 0.0, raw_p: &p, temperature: 1.0 };
        let target = Rule::Bild { fallback: case.alpha_fb, rollback: case.alpha_rb }.target(&pair, &[]);
        // The vectors leave out that the expert's own choice is never taken back.
        let defers = case.fallback || (case.rollback && p.argmax() != case.token);
        let law = if defers { &p } else { &q };
        rows_close(
            &case.id,
            "pi",
            |token| target.prob(token),
            &case.p.iter().enumerate().map(|(token, _)| law.prob(token as TokenId)).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn typical_acceptance() {
    for case in golden().typical_cases {
        let p = row(&case.p);
        let even = 1.0 / case.p.len() as f64;
        let q = Distribution::dense(vec![even; case.p.len()]);
        let target = Rule::Typical { epsilon: case.epsilon, delta: case.delta }.target(&plain(&q, &p), &[]);
        let refused = even * case.accept.iter().filter(|accept| !**accept).count() as f64;
        let law = |token: TokenId| (if case.accept[token as usize] { even } else { 0.0 }) + refused * p.prob(token);
        rows_close(
            &case.id,
            "pi",
            |token| target.prob(token),
            &(0..case.p.len()).map(|token| law(token as TokenId)).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn couplings() {
    for (index, case) in golden().gumbel_cases.into_iter().enumerate() {
        let (q, p) = (row(&case.q), row(&case.p));
        let pair = plain(&q, &p);
        close(&case.id, "optimal coupling", 1.0 - Target::exact(&pair).rejection(&q), case.optimal_coupling);
        let target = Rule::TokenV3 { alpha: 0.3 }.target(&pair, &[]);
        rows_close(&case.id, "pi", |token| target.prob(token), &case.pi_token_v3_alpha03);
        close(&case.id, "optimal coupling of pi", 1.0 - target.rejection(&q), case.optimal_coupling_pi);
        // Shared noise: how often the two argmaxes meet.
        let chance = Chance::new(index as u64, 0);
        let draws = 40_000u64;
        let meet = (0..draws)
            .filter(|&position| q.draw(&chance, position, Stream::Draft) == p.draw(&chance, position, Stream::Draft))
            .count();
        let share = meet as f64 / draws as f64;
        assert!((share - case.gumbel_collision).abs() < 0.01, "{}: {share}", case.id);
    }
}

#[test]
fn keyed_noise() {
    for point in golden().rng.points {
        let stream = [Stream::Draft, Stream::Accept, Stream::Residual][point.stream as usize - 1];
        let chance = Chance::new(point.seed, 0);
        assert_eq!(chance.uniform(point.position, point.token, stream), point.u);
        close("rng", "Gumbel number", chance.gumbel(point.position, point.token, stream), point.gumbel);
    }
}

#[test]
fn traces() {
    let golden = golden();
    for trace in &golden.trace_cases {
        let chance = Chance::new(trace.seed, 0);
        for step in &trace.steps {
            let scenario = &golden.scenarios[&step.scenario];
            let (q, p) = (row(&scenario.q), row(&scenario.p));
            let target = target(rule(&trace.rule, trace.alpha), &plain(&q, &p));
            let draft = q.draw(&chance, step.position, Stream::Draft);
            assert_eq!(draft, step.draft, "{}", trace.id);
            let coin = chance.uniform(step.position, 0, Stream::Accept);
            assert_eq!(coin, step.u, "{}", trace.id);
            let accept = (target.prob(draft) / q.prob(draft)).min(1.0);
            close(&trace.id, "acceptance", accept, step.accept_prob);
            assert_eq!(coin < accept, step.accepted, "{}", trace.id);
            let emitted = if coin < accept {
                draft
            } else {
                chance.race(step.position, Stream::Residual, target.residual(&q)).expect("something is left")
            };
            assert_eq!(emitted, step.emitted, "{}", trace.id);
        }
    }
}

#[test]
fn block_rejection() {
    let golden = golden();
    for case in &golden.block_rejection {
        let (mut survival, mut accepted) = (1.0, 0.0);
        for (index, name) in case.scenarios.iter().enumerate() {
            let scenario = &golden.scenarios[name];
            let (q, p) = (row(&scenario.q), row(&scenario.p));
            let rejection = target(rule(&case.rule, case.alpha), &plain(&q, &p)).rejection(&q);
            close(&case.rule, "rejection", rejection, case.per_position_reject[index]);
            survival *= 1.0 - rejection;
            accepted += survival;
            close(&case.rule, "survival", survival, case.survival[index]);
        }
        close(&case.rule, "expected accepted", accepted, case.expected_accepted);
        close(&case.rule, "block rejection", 1.0 - survival, case.block_reject_prob);
    }
}

#[test]
fn raw_rows_of_a_distribution_are_its_own() {
    let row = row(&[0.25, 0.75]);
    let raw: &dyn RawRow = &row;
    assert_eq!((raw.max(), raw.argmax(), raw.prob(0)), (0.75, 1, 0.25));
    assert_eq!(raw.entropy(), row.entropy());
}
