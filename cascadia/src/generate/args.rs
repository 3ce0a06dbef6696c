//! What a request may ask, as flags.

use cascadia_proto::v1;
use cascadia_proto::v1::prompt::Kind;
use clap::{Args, ValueEnum};

use crate::client::DEFAULT_ADDRESS;

/// Arguments of `generate`. What is not given is left to the router's defaults.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// What to say to the model; - reads it from standard input.
    pub prompt: String,

    /// The router's address.
    #[arg(long, value_name = "ADDR", env = "CASCADIA_SERVER", default_value = DEFAULT_ADDRESS)]
    pub server: String,

    /// The served model's name; needed where the cluster serves several.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub model: String,

    /// Send the prompt as plain text, not as a user's message through the model's chat template.
    #[arg(long)]
    pub raw: bool,

    /// Print one JSON object at the end instead of streaming the text.
    #[arg(long)]
    pub json: bool,

    /// Who answers: expert, drafter, cascade_query, cascade_token, speculative or speculative_cascade.
    #[arg(long, value_name = "NAME", help_heading = "Decoding")]
    pub strategy: Option<String>,

    /// Deferral rule, for example token_v3; alone it means --strategy speculative_cascade.
    #[arg(long, value_name = "NAME", help_heading = "Decoding")]
    pub rule: Option<String>,

    /// The rule's or the cascade's threshold.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Decoding")]
    pub alpha: Option<f64>,

    /// How draft and answer share chance in `speculative`: gumbel (the expert's own text) or maximal.
    #[arg(long, value_name = "NAME", help_heading = "Decoding")]
    pub coupling: Option<String>,

    /// bild: below this max q the expert decides.
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        requires = "bild_rollback",
        help_heading = "Decoding"
    )]
    pub bild_fallback: Option<f64>,

    /// bild: above this -ln p the draft is taken back.
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        requires = "bild_fallback",
        help_heading = "Decoding"
    )]
    pub bild_rollback: Option<f64>,

    /// typical: the absolute threshold.
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        requires = "typical_delta",
        help_heading = "Decoding"
    )]
    pub typical_epsilon: Option<f64>,

    /// typical: the threshold's share of exp(-entropy).
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        requires = "typical_epsilon",
        help_heading = "Decoding"
    )]
    pub typical_delta: Option<f64>,

    /// Tokens in a draft block.
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    pub draft_length: Option<u32>,

    /// Decode the first N tokens exactly as the expert would.
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    pub strict_first_tokens: Option<u32>,

    /// Cut a draft block's rows to N tokens before they are drawn from.
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    pub wire_top_k: Option<u32>,

    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "T", allow_negative_numbers = true, help_heading = "Sampling")]
    pub temperature: Option<f64>,

    /// Keep the K likeliest tokens.
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub top_k: Option<u32>,

    /// Keep the likeliest tokens that hold this share of the probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling")]
    pub top_p: Option<f64>,

    /// Drop tokens below this share of the likeliest one's probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling")]
    pub min_p: Option<f64>,

    /// Divide the logits of tokens that occurred, in the prompt too.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub repetition_penalty: Option<f64>,

    /// Lower the logits of tokens that occurred in the answer.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub presence_penalty: Option<f64>,

    /// Lower them by how often they occurred.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub frequency_penalty: Option<f64>,

    /// Add BIAS to a token's logit; may be repeated.
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, help_heading = "Sampling")]
    pub logit_bias: Vec<v1::LogitBias>,

    /// Never write this token; may be repeated.
    #[arg(long, value_name = "ID", help_heading = "Sampling")]
    pub ban: Vec<u32>,

    /// The same seed gives the same text [default: derived from the request id].
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<u64>,

    /// Tokens at most.
    #[arg(long, value_name = "N", help_heading = "Stopping")]
    pub max_tokens: Option<u32>,

    /// End before this text; may be repeated.
    #[arg(long, value_name = "TEXT", help_heading = "Stopping")]
    pub stop: Vec<String>,

    /// End at this token; may be repeated.
    #[arg(long, value_name = "ID", help_heading = "Stopping")]
    pub stop_token_id: Vec<u32>,

    /// Go on behind the model's end of text.
    #[arg(long, help_heading = "Stopping")]
    pub ignore_eos: bool,

    /// Report each token's log-probability, with N alternatives (seen with --json).
    #[arg(long, value_name = "N", help_heading = "Request")]
    pub logprobs: Option<u32>,

    /// What to do when the last expert is lost [default: wait].
    #[arg(long, value_name = "WHAT", help_heading = "Request")]
    pub on_expert_loss: Option<OnExpertLoss>,

    /// What to do when the last drafter is lost [default: expert].
    #[arg(long, value_name = "WHAT", help_heading = "Request")]
    pub on_drafter_loss: Option<OnDrafterLoss>,

    /// Give up after this many seconds [default: 600].
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = "Request")]
    pub timeout: Option<u64>,

    /// A label for logs and retries.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true, help_heading = "Request")]
    pub request_id: String,

    /// On whose behalf.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = "Request")]
    pub tenant: String,

    /// Requests of one conversation prefer one node, for its prefix cache.
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true, help_heading = "Request")]
    pub conversation: String,

    /// Higher goes first.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true,
        hide_default_value = true,
        help_heading = "Request"
    )]
    pub priority: i32,

    /// Which of the seed's texts: choice I of a request for several is what --choice I gives.
    #[arg(long, value_name = "I", default_value_t = 0, hide_default_value = true, help_heading = "Request")]
    pub choice: u32,

    /// Part of the prefix cache's key [default: the tenant].
    #[arg(long, value_name = "SALT", help_heading = "Request")]
    pub cache_salt: Option<String>,
}

/// What to do when the last expert is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnExpertLoss {
    /// Wait for another until the deadline.
    Wait,
    /// The drafter goes on alone, and the answer says so.
    Drafter,
}

/// What to do when the last drafter is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDrafterLoss {
    /// The expert goes on alone.
    Expert,
    /// Wait for another until the deadline.
    Wait,
}

fn parse_bias(text: &str) -> Result<v1::LogitBias, String> {
    let (token, bias) = text.split_once('=').ok_or("write it as ID=BIAS, for example 42=-1.5")?;
    let token = token.trim().parse().map_err(|_| format!("{token:?} is not a token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("{bias:?} is not a number"))?;
    Ok(v1::LogitBias { token, bias })
}

/// Milliseconds of a positive number of seconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 && seconds < 1e9 => Ok((seconds * 1000.0).ceil() as u64),
        _ => Err("write a number of seconds above 0".into()),
    }
}

impl GenerateArgs {
    /// The request as the router gets it; `prompt` is what is really said.
    #[must_use]
    pub fn request(&self, prompt: String) -> v1::GenerateRequest {
        let kind = if self.raw {
            Kind::Text(prompt)
        } else {
            Kind::Messages(v1::Messages { messages: vec![v1::Message { role: "user".into(), content: prompt }] })
        };
        v1::GenerateRequest {
            model: self.model.clone(),
            prompt: Some(v1::Prompt { kind: Some(kind) }),
            parameters: Some(self.parameters()),
            request_id: self.request_id.clone(),
            tenant: self.tenant.clone(),
            conversation: self.conversation.clone(),
            priority: self.priority,
            timeout_ms: self.timeout,
            cache_salt: self.cache_salt.clone(),
            choice: self.choice,
        }
    }

    fn parameters(&self) -> v1::Parameters {
        let implied = if self.rule.is_some() { "speculative_cascade" } else { "" };
        v1::Parameters {
            strategy: self.strategy.clone().unwrap_or_else(|| implied.into()),
            rule: self.rule.clone().unwrap_or_default(),
            alpha: self.alpha,
            coupling: self.coupling.clone().unwrap_or_default(),
            bild: self
                .bild_fallback
                .zip(self.bild_rollback)
                .map(|(fallback, rollback)| v1::BildParameters { fallback, rollback }),
            typical: self
                .typical_epsilon
                .zip(self.typical_delta)
                .map(|(epsilon, delta)| v1::TypicalParameters { epsilon, delta }),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            banned: self.ban.clone(),
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_id.clone(),
            ignore_eos: self.ignore_eos,
            draft_length: self.draft_length,
            strict_first_tokens: self.strict_first_tokens,
            logprobs: self.logprobs,
            wire_top_k: self.wire_top_k,
            on_expert_loss: match self.on_expert_loss {
                None => v1::OnExpertLoss::Unspecified,
                Some(OnExpertLoss::Wait) => v1::OnExpertLoss::Wait,
                Some(OnExpertLoss::Drafter) => v1::OnExpertLoss::Drafter,
            }
            .into(),
            on_drafter_loss: match self.on_drafter_loss {
                None => v1::OnDrafterLoss::Unspecified,
                Some(OnDrafterLoss::Expert) => v1::OnDrafterLoss::Expert,
                Some(OnDrafterLoss::Wait) => v1::OnDrafterLoss::Wait,
            }
            .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn args(words: &[&str]) -> GenerateArgs {
        let command = GenerateArgs::augment_args(Command::new("generate").no_binary_name(true));
        let matches = command.try_get_matches_from(words).expect("a proper command line");
        GenerateArgs::from_arg_matches(&matches).expect("what was parsed is of its type")
    }

    #[test]
    fn every_parameter_reaches_the_request() {
        let args = args(&[
            "--strategy",
            "speculative_cascade",
            "--rule",
            "token_v3",
            "--alpha",
            "0.5",
            "--coupling",
            "maximal",
            "--temperature",
            "0.7",
            "--top-k",
            "40",
            "--top-p",
            "0.9",
            "--min-p",
            "0.05",
            "--repetition-penalty",
            "1.1",
            "--presence-penalty",
            "-0.5",
            "--frequency-penalty",
            "0.25",
            "--logit-bias",
            "5=-1.5",
            "--logit-bias",
            "6=2",
            "--ban",
            "9",
            "--seed",
            "7",
            "--max-tokens",
            "32",
            "--draft-length",
            "4",
            "--strict-first-tokens",
            "3",
            "--stop",
            "\n",
            "--stop-token-id",
            "2",
            "--logprobs",
            "2",
            "--model",
            "m",
            "--timeout",
            "1.5",
            "--on-expert-loss",
            "drafter",
            "--priority",
            "-1",
            "say hello",
        ]);
        let request = args.request(args.prompt.clone());
        let p = request.parameters.expect("parameters");
        assert_eq!(
            (p.strategy.as_str(), p.rule.as_str(), p.coupling.as_str()),
            ("speculative_cascade", "token_v3", "maximal")
        );
        assert_eq!(
            (p.alpha, p.temperature, p.top_k, p.top_p, p.min_p),
            (Some(0.5), Some(0.7), Some(40), Some(0.9), Some(0.05))
        );
        assert_eq!(
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty),
            (Some(1.1), Some(-0.5), Some(0.25))
        );
        assert_eq!(p.logit_bias, [v1::LogitBias { token: 5, bias: -1.5 }, v1::LogitBias { token: 6, bias: 2.0 }]);
        assert_eq!(
            (p.seed, p.max_tokens, p.draft_length, p.strict_first_tokens),
            (Some(7), Some(32), Some(4), Some(3))
        );
        assert_eq!(
            (p.stop, p.stop_token_ids, p.banned, p.logprobs),
            (vec!["\n".to_owned()], vec![2], vec![9], Some(2))
        );
        assert_eq!(p.on_expert_loss, i32::from(v1::OnExpertLoss::Drafter));
        assert_eq!((request.model.as_str(), request.timeout_ms, request.priority), ("m", Some(1500), -1));
        let Some(Kind::Messages(messages)) = request.prompt.and_then(|p| p.kind) else { panic!("no messages") };
        assert_eq!(messages.messages, [v1::Message { role: "user".into(), content: "say hello".into() }]);
    }

    #[test]
    fn what_is_not_given_is_left_to_the_router() {
        let args = args(&["hello"]);
        assert_eq!(args.request("hello".into()).parameters, Some(v1::Parameters::default()));
    }

    #[test]
    fn raw_is_plain_text_and_a_rule_implies_its_strategy() {
        let request = args(&["--raw", "--rule", "diff", "x"]).request("x".into());
        assert_eq!(request.prompt.and_then(|p| p.kind), Some(Kind::Text("x".into())));
        assert_eq!(request.parameters.expect("parameters").strategy, "speculative_cascade");
    }

    #[test]
    fn biases_and_seconds() {
        assert!(parse_bias("5").is_err() && parse_bias("x=1").is_err() && parse_bias("5=x").is_err());
        assert!(parse_seconds("0").is_err() && parse_seconds("nan").is_err() && parse_seconds("-1").is_err());
        assert_eq!(parse_seconds("0.0001"), Ok(1));
    }
}
