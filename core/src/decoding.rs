//! What a request asks of the models: strategy, sampling, stopping. Fixed at admission.

use crate::ids::TokenId;
use crate::limits;
use crate::rule::Rule;

/// How the two models share the work (DESIGN section 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strategy {
    /// The expert alone.
    Expert,
    /// The drafter alone.
    Drafter,
    /// The drafter answers whole; a mean log-probability below `alpha` hands over to the expert.
    CascadeQuery {
        /// Threshold on the mean `ln q` of the drafter's tokens, at most 0.
        alpha: f64,
    },
    /// Sequential: Chow's rule on q decides token by token whether the expert is asked.
    CascadeToken {
        /// Chow's alpha, in `[0, 1]`.
        alpha: f64,
    },
    /// Draft and verify with `pi = p`: exact.
    Speculative {
        /// How draft and emitted token share chance.
        coupling: Coupling,
    },
    /// Draft and verify with a deferral rule, keyed maximal coupling.
    SpeculativeCascade {
        /// The rule.
        rule: Rule,
    },
}

/// How the draft and the emitted token of `speculative` share chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coupling {
    /// One Gumbel noise for both argmaxes: the text of `expert`, with any drafter.
    #[default]
    Gumbel,
    /// The probabilistic match: more accepted, text depends on the drafter.
    Maximal,
}

/// Shaping of both models' rows, in the order of DESIGN section 3.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Added to logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Never emitted.
    pub banned: Vec<TokenId>,
    /// Over prompt and output, > 0; 1 is off.
    pub repetition_penalty: f64,
    /// Over output; 0 is off.
    pub presence_penalty: f64,
    /// Over output; 0 is off.
    pub frequency_penalty: f64,
    /// 0 is greedy.
    pub temperature: f64,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f64,
    /// 0 is off.
    pub min_p: f64,
    /// A draft block's rows are cut to this many tokens before they are drawn from.
    pub wire_top_k: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            logit_bias: Vec::new(),
            banned: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            wire_top_k: limits::WIRE_TOP_K,
        }
    }
}

impl Sampling {
    /// Whether any penalty reads the history.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Everything that fixes a session's text besides the models and the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Who decides what.
    pub strategy: Strategy,
    /// Shaping of both rows.
    pub sampling: Sampling,
    /// Key of all chance.
    pub seed: u64,
    /// Which of the request's choices this is; its chance is independent of the others'.
    pub choice: u32,
    /// Tokens a block, at least 1.
    pub draft_length: usize,
    /// `pi = p` for the first so many output tokens.
    pub strict_first_tokens: usize,
    /// EOS and stop ids, ascending: what only the expert may emit under a lossy rule.
    pub stop_ids: Vec<TokenId>,
    /// Output tokens at most, at least 1.
    pub max_tokens: usize,
    /// Alternatives to report a position; `None` asks for no logprobs.
    pub logprobs: Option<usize>,
    /// Length of the prompt in tokens; output positions start here.
    pub prompt_length: usize,
}

impl Decoding {
    /// Whether the position belongs to the exact beginning.
    #[must_use]
    pub fn is_strict(&self, position: usize) -> bool {
        position < self.prompt_length + self.strict_first_tokens
    }

    /// Whether the token ends the text.
    #[must_use]
    pub fn is_stop(&self, token: TokenId) -> bool {
        self.stop_ids.binary_search(&token).is_ok()
    }

    /// The position after the last that may be written.
    #[must_use]
    pub fn end(&self) -> usize {
        self.prompt_length + self.max_tokens
    }
}
