//! From what a request asks to what is meant, once, at admission.
//!
//! [`resolve`] fills in the operator's defaults and refuses what cannot be meant, with the cure. After it every field
//! that is read is there, and the answer to the client states it. [`decoding`] turns that into the core's type; it
//! validates again, since what it reads came over the wire.

mod allow;
mod check;
#[cfg(test)]
mod tests;

use cascadia_core::decoding::{Coupling, Decoding, Sampling, Strategy};
use cascadia_core::history::{hash_bytes, splitmix64};
use cascadia_core::ids::TokenId;
use cascadia_core::limits;
use cascadia_core::rule::{self, Rule};

use crate::v1;
pub use allow::Allowed;
use check::{between, count};

/// Every strategy's name.
pub const STRATEGIES: [&str; 6] =
    ["expert", "drafter", "cascade_query", "cascade_token", "speculative", "speculative_cascade"];

/// The couplings of `speculative`.
pub const COUPLINGS: [&str; 2] = ["gumbel", "maximal"];

/// Alpha of `token_v3` where none is given: tokens with less than 0.7 of the expert's largest probability are replaced.
pub const DEFAULT_TOKEN_V3_ALPHA: f64 = 0.3;

/// Alpha of `cascade_query` where none is given: an answer of which a token is on average less likely than `e^-0.7`,
/// about one half, is handed over.
pub const DEFAULT_CASCADE_QUERY_ALPHA: f64 = -0.7;

/// Alpha of `cascade_token` where none is given: the expert is asked where the drafter is less than 0.7 sure.
pub const DEFAULT_CASCADE_TOKEN_ALPHA: f64 = 0.3;

/// Temperatures above 0 and below this are taken as this, as vLLM does: logits divided by less overflow.
pub const LEAST_TEMPERATURE: f64 = 0.01;

/// The highest temperature; rows are flat long before.
pub const MOST_TEMPERATURE: f64 = 100.0;

/// Pairs of a row that may travel with a draft: a block of the greatest length stays within `limits::BLOCK_BYTES`.
pub const MOST_WIRE_TOP_K: u32 = 256;

/// Entries of `logit_bias`, `banned` and `stop_token_ids`, each.
pub const MOST_IDS: usize = 1_024;

/// What the operator makes of fields that a request leaves open, and what it allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Strategy of a request that names none.
    pub strategy: String,
    /// Rule of `speculative_cascade` where none is named.
    pub rule: String,
    /// That rule's alpha where none is given.
    pub alpha: Option<f64>,
    /// Temperature where none is given: 1, as OpenAI's and vLLM's.
    pub temperature: f64,
    /// Output tokens at most where the request does not say.
    pub max_tokens: u32,
    /// The most a request may ask for.
    pub most_tokens: u32,
    /// Draft length where none is given.
    pub draft_length: u32,
    /// The strategies that may be asked for.
    pub strategies: Vec<String>,
    /// Intervals of parameters; all of them hold.
    pub allowed: Vec<Allowed>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            strategy: "speculative".into(),
            rule: "token_v3".into(),
            alpha: None,
            temperature: 1.0,
            max_tokens: 256,
            most_tokens: 1 << 20,
            draft_length: limits::DEFAULT_DRAFT_LENGTH as u32,
            strategies: STRATEGIES.map(str::to_owned).to_vec(),
            allowed: Vec::new(),
        }
    }
}

/// A parameter that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterError {
    /// The field, as in the `.proto`.
    pub field: &'static str,
    /// One sentence with the cure.
    pub sentence: String,
}

impl std::fmt::Display for ParameterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for ParameterError {}

fn refuse<T>(field: &'static str, sentence: impl Into<String>) -> Result<T, ParameterError> {
    Err(ParameterError { field, sentence: sentence.into() })
}

/// The request's parameters with every field that is read filled in. A seed that is not given stays open.
///
/// # Errors
/// The field that cannot be meant, and the cure.
pub fn resolve(asked: &v1::Parameters, defaults: &Defaults) -> Result<v1::Parameters, ParameterError> {
    let strategy = strategy_name(asked, defaults)?;
    let mut resolved = v1::Parameters { strategy: strategy.to_owned(), ..asked.clone() };
    resolve_strategy(&mut resolved, defaults)?;
    resolve_sampling(&mut resolved, defaults)?;
    resolve_stopping(&mut resolved, defaults)?;
    let draft_length = resolved.draft_length.unwrap_or(defaults.draft_length);
    resolved.draft_length = Some(count("draft_length", draft_length, 1, limits::MAX_DRAFT_LENGTH as u32)?);
    resolved.strict_first_tokens.get_or_insert(0);
    let wire_top_k = resolved.wire_top_k.unwrap_or(limits::WIRE_TOP_K as u32);
    resolved.wire_top_k = Some(count("wire_top_k", wire_top_k, 1, MOST_WIRE_TOP_K)?);
    if let Some(logprobs) = resolved.logprobs {
        count("logprobs", logprobs, 0, limits::MAX_TOP_LOGPROBS as u32)?;
    }
    resolve_losses(&mut resolved)?;
    defaults.allowed.iter().try_for_each(|allowed| allowed.check(&resolved, asked))?;
    Ok(resolved)
}

fn strategy_name<'a>(asked: &'a v1::Parameters, defaults: &'a Defaults) -> Result<&'a str, ParameterError> {
    let name = if asked.strategy.is_empty() { &defaults.strategy } else { &asked.strategy };
    if !STRATEGIES.contains(&name.as_str()) {
        let known = STRATEGIES.join(", ");
        return refuse("strategy", format!("strategy {name:?} is unknown; the strategies are {known}"));
    }
    // The operator's own choice needs no permission.
    if !asked.strategy.is_empty() && *name != defaults.strategy && !defaults.strategies.contains(name) {
        let allowed = defaults.strategies.join(", ");
        return refuse("strategy", format!("strategy {name} is not allowed here; allowed are {allowed}"));
    }
    Ok(name)
}

fn resolve_strategy(resolved: &mut v1::Parameters, defaults: &Defaults) -> Result<(), ParameterError> {
    let strategy = resolved.strategy.as_str();
    if strategy != "speculative_cascade" {
        if !resolved.rule.is_empty() {
            return refuse(
                "rule",
                format!(
                    "rule {:?} is read by strategy speculative_cascade only, not by {strategy}; set strategy to \
                     speculative_cascade or leave rule out",
                    resolved.rule
                ),
            );
        }
        for (field, given) in [("bild", resolved.bild.is_some()), ("typical", resolved.typical.is_some())] {
            if given {
                return refuse(
                    field,
                    format!("{field} is read by strategy speculative_cascade with rule {field} only; leave it out"),
                );
            }
        }
    }
    if strategy != "speculative" && !resolved.coupling.is_empty() {
        return refuse(
            "coupling",
            format!("coupling is read by strategy speculative only, not by {strategy}; leave it out"),
        );
    }
    match strategy {
        "cascade_query" => {
            let alpha = resolved.alpha.unwrap_or(DEFAULT_CASCADE_QUERY_ALPHA);
            if !(alpha.is_finite() && alpha <= 0.0) {
                let sentence = format!(
                    "alpha of cascade_query is a mean log-probability, at most 0 and finite, not {alpha}; try \
                     {DEFAULT_CASCADE_QUERY_ALPHA}"
                );
                return refuse("alpha", sentence);
            }
            resolved.alpha = Some(alpha);
        }
        "cascade_token" => {
            let alpha = resolved.alpha.unwrap_or(DEFAULT_CASCADE_TOKEN_ALPHA);
            resolved.alpha = Some(between("alpha", alpha, 0.0, 1.0)?);
        }
        "speculative_cascade" => resolve_rule(resolved, defaults)?,
        _ if resolved.alpha.is_some() => {
            return refuse(
                "alpha",
                format!(
                    "alpha means nothing to strategy {strategy}; choose cascade_query, cascade_token or \
                     speculative_cascade, or leave alpha out"
                ),
            );
        }
        "speculative" => {
            if resolved.coupling.is_empty() {
                resolved.coupling = COUPLINGS[0].to_owned();
            }
            if !COUPLINGS.contains(&resolved.coupling.as_str()) {
                let known = COUPLINGS.join(" and ");
                return refuse("coupling", format!("coupling {:?} is unknown; there are {known}", resolved.coupling));
            }
        }
        _ => {}
    }
    Ok(())
}

fn resolve_rule(resolved: &mut v1::Parameters, defaults: &Defaults) -> Result<(), ParameterError> {
    if resolved.rule.is_empty() {
        resolved.rule.clone_from(&defaults.rule);
    }
    if resolved.alpha.is_none() && resolved.rule == defaults.rule {
        resolved.alpha = defaults.alpha;
    }
    if resolved.alpha.is_none() && resolved.rule == "token_v3" {
        resolved.alpha = Some(DEFAULT_TOKEN_V3_ALPHA);
    }
    let used = rule_of(resolved)?.parameters();
    resolved.alpha = used.alpha;
    resolved.bild =
        used.fallback.zip(used.rollback).map(|(fallback, rollback)| v1::BildParameters { fallback, rollback });
    resolved.typical = used.epsilon.zip(used.delta).map(|(epsilon, delta)| v1::TypicalParameters { epsilon, delta });
    Ok(())
}

fn rule_of(resolved: &v1::Parameters) -> Result<Rule, ParameterError> {
    let parameters = rule::Parameters {
        alpha: resolved.alpha,
        epsilon: resolved.typical.map(|typical| typical.epsilon),
        delta: resolved.typical.map(|typical| typical.delta),
        fallback: resolved.bild.map(|bild| bild.fallback),
        rollback: resolved.bild.map(|bild| bild.rollback),
    };
    Rule::parse(&resolved.rule, parameters).or_else(|error| {
        let field = match error.parameter {
            None => "rule",
            Some("epsilon" | "delta") => "typical",
            Some("fallback" | "rollback") => "bild",
            Some(parameter) => parameter,
        };
        refuse(field, error.sentence)
    })
}

fn resolve_sampling(resolved: &mut v1::Parameters, defaults: &Defaults) -> Result<(), ParameterError> {
    let temperature =
        between("temperature", resolved.temperature.unwrap_or(defaults.temperature), 0.0, MOST_TEMPERATURE)?;
    let is_tiny = temperature > 0.0 && temperature < LEAST_TEMPERATURE;
    // Minus zero is zero.
    resolved.temperature = Some(if is_tiny { LEAST_TEMPERATURE } else { temperature.abs() });
    resolved.top_k.get_or_insert(0);
    let top_p = between("top_p", resolved.top_p.unwrap_or(1.0), 0.0, 1.0)?;
    if top_p == 0.0 {
        return refuse(
            "top_p",
            "top_p must be greater than 0 and at most 1; set temperature to 0 for the likeliest token",
        );
    }
    resolved.top_p = Some(top_p);
    resolved.min_p = Some(between("min_p", resolved.min_p.unwrap_or(0.0), 0.0, 1.0)?);
    let repetition = resolved.repetition_penalty.unwrap_or(1.0);
    if !(repetition > 0.0 && repetition.is_finite()) {
        let sentence = format!("repetition_penalty must be greater than 0 and finite, not {repetition}; 1 is off");
        return refuse("repetition_penalty", sentence);
    }
    resolved.repetition_penalty = Some(repetition);
    let presence = resolved.presence_penalty.unwrap_or(0.0);
    resolved.presence_penalty = Some(between("presence_penalty", presence, -2.0, 2.0)?);
    let frequency = resolved.frequency_penalty.unwrap_or(0.0);
    resolved.frequency_penalty = Some(between("frequency_penalty", frequency, -2.0, 2.0)?);
    check::biases(&mut resolved.logit_bias)?;
    check::ids("banned", &mut resolved.banned)
}

fn resolve_stopping(resolved: &mut v1::Parameters, defaults: &Defaults) -> Result<(), ParameterError> {
    let max_tokens = resolved.max_tokens.unwrap_or(defaults.max_tokens.min(defaults.most_tokens));
    resolved.max_tokens = Some(count("max_tokens", max_tokens, 1, defaults.most_tokens)?);
    check::stop_strings(&resolved.stop)?;
    check::ids("stop_token_ids", &mut resolved.stop_token_ids)
}

fn resolve_losses(resolved: &mut v1::Parameters) -> Result<(), ParameterError> {
    let expert = match v1::OnExpertLoss::try_from(resolved.on_expert_loss) {
        Ok(v1::OnExpertLoss::Unspecified) => v1::OnExpertLoss::Wait,
        Ok(known) => known,
        Err(_) => return refuse("on_expert_loss", "on_expert_loss is unknown; there are wait and drafter"),
    };
    let drafter = match v1::OnDrafterLoss::try_from(resolved.on_drafter_loss) {
        Ok(v1::OnDrafterLoss::Unspecified) => v1::OnDrafterLoss::Expert,
        Ok(known) => known,
        Err(_) => return refuse("on_drafter_loss", "on_drafter_loss is unknown; there are expert and wait"),
    };
    resolved.set_on_expert_loss(expert);
    resolved.set_on_drafter_loss(drafter);
    Ok(())
}

/// What fixes a session's text, for a prompt of so many tokens. `eos` joins the stop ids unless the request ignores it.
///
/// # Errors
/// The field that cannot be meant.
pub fn decoding(resolved: &v1::Resolved, prompt_length: usize, eos: &[TokenId]) -> Result<Decoding, ParameterError> {
    let Some(parameters) = &resolved.parameters else {
        return refuse("parameters", "resolved.parameters is missing; the router sends them with every session");
    };
    // Where this session was admitted it was allowed; and the owner's EOS come on top of the request's stop ids.
    let any = Defaults { most_tokens: u32::MAX, ..Defaults::default() };
    let mut stop_ids = parameters.stop_token_ids.clone();
    let parameters = resolve(&v1::Parameters { stop_token_ids: Vec::new(), ..parameters.clone() }, &any)?;
    if !parameters.ignore_eos {
        stop_ids.extend_from_slice(eos);
    }
    stop_ids.sort_unstable();
    stop_ids.dedup();
    let size = |value: Option<u32>| value.unwrap_or_default() as usize;
    let number = |value: Option<f64>| value.expect("resolve fills it in");
    Ok(Decoding {
        strategy: strategy(&parameters)?,
        sampling: Sampling {
            logit_bias: parameters.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
            banned: parameters.banned,
            repetition_penalty: number(parameters.repetition_penalty),
            presence_penalty: number(parameters.presence_penalty),
            frequency_penalty: number(parameters.frequency_penalty),
            temperature: number(parameters.temperature),
            top_k: size(parameters.top_k),
            top_p: number(parameters.top_p),
            min_p: number(parameters.min_p),
            wire_top_k: size(parameters.wire_top_k),
        },
        seed: resolved.seed,
        choice: resolved.choice,
        draft_length: size(parameters.draft_length),
        strict_first_tokens: size(parameters.strict_first_tokens),
        stop_ids,
        max_tokens: size(parameters.max_tokens),
        logprobs: parameters.logprobs.map(|top| top as usize),
        prompt_length,
    })
}

fn strategy(resolved: &v1::Parameters) -> Result<Strategy, ParameterError> {
    let alpha = resolved.alpha.unwrap_or_default();
    Ok(match resolved.strategy.as_str() {
        "expert" => Strategy::Expert,
        "drafter" => Strategy::Drafter,
        "cascade_query" => Strategy::CascadeQuery { alpha },
        "cascade_token" => Strategy::CascadeToken { alpha },
        "speculative_cascade" => Strategy::SpeculativeCascade { rule: rule_of(resolved)? },
        _ => Strategy::Speculative {
            coupling: if resolved.coupling == "maximal" { Coupling::Maximal } else { Coupling::Gumbel },
        },
    })
}

/// The seed of a request that gives none: the same for the same tenant and request id, on every machine and in every
/// release. Two tenants that choose the same id get different seeds; a request without a tenant has an empty one.
#[must_use]
pub fn seed_of(tenant: &str, request_id: &str) -> u64 {
    let tenant = if tenant.is_empty() { 0 } else { hash_bytes(0, tenant.as_bytes()) };
    splitmix64(hash_bytes(tenant, request_id.as_bytes()))
}
