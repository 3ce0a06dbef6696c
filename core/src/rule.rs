//! A deferral rule is a function `(q, p) -> pi`: from the drafter's row and the expert's to the law that the emitted
//! token follows.
//!
//! `pi` may depend on nothing else, above all not on the token that was drafted (`algorithms.md` pitfall 9); one walk
//! ([`crate::verify`]) then serves every rule. Plain speculative decoding is `pi = p`. Formulas, sources and the
//! reasons for each `<` are in `algorithms.md` sections 1.4, 2.2 and 4.3.

use crate::distribution::{Distribution, EMPTY};
use crate::ids::TokenId;

/// Who decides a position, and by what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Defers where the drafter is unsure: `max q < 1 - alpha`.
    Chow {
        /// 0 defers (nearly) always, 1 never.
        alpha: f64,
    },
    /// Defers where the drafter is less sure than the expert: `max q < max p - alpha`.
    Diff {
        /// -1 defers always, 1 never.
        alpha: f64,
    },
    /// `Diff` at the price of a rejection: `max q < max p - alpha D_TV(p, q)`.
    Opt {
        /// -inf defers always, +inf never.
        alpha: f64,
    },
    /// Chow for the log loss: `H(q) > alpha`, nats.
    ChowLog {
        /// Below 0 defers always.
        alpha: f64,
    },
    /// Diff for the log loss: `H(q) > H(p) + alpha`.
    DiffLog {
        /// -inf defers always, +inf never.
        alpha: f64,
    },
    /// Opt for the log loss: `H(q) > H(p) + alpha D_TV(p, q)`.
    OptLog {
        /// -inf defers always, +inf never.
        alpha: f64,
    },
    /// Replaces the drafter's tokens with `q(v) < max p - alpha`.
    TokenV1 {
        /// -1 replaces all, 1 none.
        alpha: f64,
    },
    /// Replaces the drafter's tokens with `p(v) < max p - alpha`.
    TokenV2 {
        /// Below 0 replaces all, 1 none.
        alpha: f64,
    },
    /// Replaces the drafter's tokens with `p(v) < (1 - alpha) max p`.
    TokenV3 {
        /// Below 0 replaces all (lossless), 1 none. 0 is *not* lossless at a positive temperature.
        alpha: f64,
    },
    /// Accepts with `p / ((1 - alpha) q)`, residual `p - q`. On the one-hot rows of temperature 0 it is exact.
    Lenience {
        /// 0 is lossless, towards 1 the drafter alone.
        alpha: f64,
    },
    /// Accepts as lenience does, residual `p / beta - q` (Tran-Thien).
    Mentored {
        /// 0 is lossless, towards 1 the drafter alone.
        alpha: f64,
    },
    /// Medusa's typical acceptance: keeps the drafter's tokens with `p(v) > min(epsilon, delta exp(-H(p)))`.
    Typical {
        /// Probability that is always enough.
        epsilon: f64,
        /// Scale of the entropy-dependent threshold.
        delta: f64,
    },
    /// BiLD: a greedy drafter, taken back where it is unsure or the expert finds its token unlikely.
    Bild {
        /// Defers where `max q` is below.
        fallback: f64,
        /// Defers where the expert prefers another token and `-ln p(argmax q)` is above.
        rollback: f64,
    },
}

/// Why a name and parameters are no rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// The parameter at fault; none where the name is.
    pub parameter: Option<&'static str>,
    /// One sentence that names the valid rules, or the parameter and what it may be.
    pub sentence: String,
}

/// A rule's parameters by name, as they come from a request and go into a response.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Of every rule but `typical` and `bild`.
    pub alpha: Option<f64>,
    /// Of `typical`; 0.09 if absent.
    pub epsilon: Option<f64>,
    /// Of `typical`; 0.3 if absent.
    pub delta: Option<f64>,
    /// Of `bild`.
    pub fallback: Option<f64>,
    /// Of `bild`.
    pub rollback: Option<f64>,
}

/// What a rule reads of a draft, so what the wire must carry at a positive temperature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The maximum of the drafter's raw row.
    pub max_q: bool,
    /// The entropy of the drafter's raw row.
    pub entropy_q: bool,
    /// The row the draft was drawn from.
    pub support: bool,
    /// The drafter decides alone and sends the decision as one bit (`kept`).
    pub decided_by_drafter: bool,
}

/// What rules and tests read of a raw row: temperature 1, untruncated.
pub trait RawRow {
    /// The largest probability.
    fn max(&self) -> f64;
    /// Its token, lowest id on ties.
    fn argmax(&self) -> TokenId;
    /// Entropy, nats.
    fn entropy(&self) -> f64;
    /// Probability of a token.
    fn prob(&self, token: TokenId) -> f64;
    /// Probability of a token as a share of the largest. A row of logits knows it without its normaliser.
    fn share_of_max(&self, token: TokenId) -> f64 {
        self.prob(token) / self.max()
    }
}

impl RawRow for Distribution {
    fn max(&self) -> f64 {
        Self::max(self)
    }

    fn argmax(&self) -> TokenId {
        Self::argmax(self)
    }

    fn entropy(&self) -> f64 {
        Self::entropy(self)
    }

    fn prob(&self, token: TokenId) -> f64 {
        Self::prob(self, token)
    }
}

/// Both models' rows at one position.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// The row the draft was drawn from.
    pub q: &'a Distribution,
    /// The expert's row to sample from.
    pub p: &'a Distribution,
    /// Maximum of the drafter's raw row.
    pub max_q: f64,
    /// Entropy of the drafter's raw row.
    pub entropy_q: f64,
    /// The expert's raw row.
    pub raw_p: &'a dyn RawRow,
    /// The temperature `q` and `p` were shaped with.
    pub temperature: f64,
}

impl Rule {
    /// Every rule's name.
    pub const NAMES: [&'static str; 13] = [
        "chow", "diff", "opt", "chow_log", "diff_log", "opt_log", "token_v1", "token_v2", "token_v3", "lenience",
        "mentored", "typical", "bild",
    ];

    /// The rule's name in requests, responses and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chow { .. } => "chow",
            Self::Diff { .. } => "diff",
            Self::Opt { .. } => "opt",
            Self::ChowLog { .. } => "chow_log",
            Self::DiffLog { .. } => "diff_log",
            Self::OptLog { .. } => "opt_log",
            Self::TokenV1 { .. } => "token_v1",
            Self::TokenV2 { .. } => "token_v2",
            Self::TokenV3 { .. } => "token_v3",
            Self::Lenience { .. } => "lenience",
            Self::Mentored { .. } => "mentored",
            Self::Typical { .. } => "typical",
            Self::Bild { .. } => "bild",
        }
    }

    /// The parameters the rule really uses.
    #[must_use]
    pub fn parameters(self) -> Parameters {
        let none = Parameters::default();
        match self {
            Self::Chow { alpha }
            | Self::Diff { alpha }
            | Self::Opt { alpha }
            | Self::ChowLog { alpha }
            | Self::DiffLog { alpha }
            | Self::OptLog { alpha }
            | Self::TokenV1 { alpha }
            | Self::TokenV2 { alpha }
            | Self::TokenV3 { alpha }
            | Self::Lenience { alpha }
            | Self::Mentored { alpha } => Parameters { alpha: Some(alpha), ..none },
            Self::Typical { epsilon, delta } => Parameters { epsilon: Some(epsilon), delta: Some(delta), ..none },
            Self::Bild { fallback, rollback } => {
                Parameters { fallback: Some(fallback), rollback: Some(rollback), ..none }
            }
        }
    }

    /// The rule of that name with those parameters.
    ///
    /// # Errors
    /// What is at fault.
    pub fn parse(name: &str, parameters: Parameters) -> Result<Self, RuleError> {
        let alpha = parameters.alpha;
        let wrong = |parameter, sentence| RuleError { parameter, sentence };
        let need = |parameter: &'static str, value: Option<f64>, valid: fn(f64) -> bool, interval: &str| match value {
            Some(value) if valid(value) => Ok(value),
            Some(value) => {
                Err(wrong(Some(parameter), format!("{parameter} of rule {name} must be {interval}, not {value}")))
            }
            None => Err(wrong(Some(parameter), format!("rule {name} needs {parameter}, {interval}"))),
        };
        let signed = |value| need("alpha", value, |x| (-1.0..=1.0).contains(&x), "in [-1, 1]");
        let any = |value| need("alpha", value, |x| !x.is_nan(), "a number or an infinity");
        let below_one = |value| need("alpha", value, |x| (0.0..1.0).contains(&x), "in [0, 1)");
        let positive = |name, value| need(name, value, |x| x > 0.0 && x.is_finite(), "greater than 0 and finite");
        let rule = match name {
            "chow" => Self::Chow { alpha: need("alpha", alpha, |x| (0.0..=1.0).contains(&x), "in [0, 1]")? },
            "diff" => Self::Diff { alpha: signed(alpha)? },
            "opt" => Self::Opt { alpha: any(alpha)? },
            "chow_log" => Self::ChowLog { alpha: any(alpha)? },
            "diff_log" => Self::DiffLog { alpha: any(alpha)? },
            "opt_log" => Self::OptLog { alpha: any(alpha)? },
            "token_v1" => Self::TokenV1 { alpha: signed(alpha)? },
            "token_v2" => Self::TokenV2 { alpha: signed(alpha)? },
            "token_v3" => Self::TokenV3 { alpha: need("alpha", alpha, |x| x <= 1.0, "at most 1")? },
            "lenience" => Self::Lenience { alpha: below_one(alpha)? },
            "mentored" => Self::Mentored { alpha: below_one(alpha)? },
            "typical" => Self::Typical {
                epsilon: need("epsilon", parameters.epsilon.or(Some(0.09)), |x| x > 0.0 && x <= 1.0, "in (0, 1]")?,
                delta: positive("delta", parameters.delta.or(Some(0.3)))?,
            },
            "bild" => Self::Bild {
                fallback: need("fallback", parameters.fallback, |x| (0.0..=1.0).contains(&x), "in [0, 1]")?,
                rollback: need("rollback", parameters.rollback, |x| x >= 0.0, "at least 0")?,
            },
            _ => return Err(wrong(None, format!("unknown rule {name:?}; the rules are {}", Self::NAMES.join(", ")))),
        };
        let (given, used) = (parameters.by_name(), rule.parameters().by_name());
        match given.iter().zip(used).find(|(given, used)| given.1.is_some() && used.1.is_none()) {
            Some((unread, _)) => Err(wrong(Some(unread.0), format!("rule {name} does not read {}", unread.0))),
            None => Ok(rule),
        }
    }

    /// What the rule reads of a draft.
    #[must_use]
    pub fn reads(self) -> Reads {
        let support = Reads { support: true, ..Reads::default() };
        match self {
            Self::Chow { .. } | Self::ChowLog { .. } => Reads { decided_by_drafter: true, ..support },
            Self::Diff { .. } | Self::Opt { .. } | Self::TokenV1 { .. } => Reads { max_q: true, ..support },
            Self::DiffLog { .. } | Self::OptLog { .. } => Reads { entropy_q: true, ..support },
            Self::TokenV2 { .. }
            | Self::TokenV3 { .. }
            | Self::Lenience { .. }
            | Self::Mentored { .. }
            | Self::Typical { .. } => support,
            // Its drafter is greedy: the row is the point mass at the draft.
            Self::Bild { .. } => Reads { max_q: true, support: false, ..support },
        }
    }

    /// For the rules that the drafter decides alone, whether the position keeps the drafter's row, `argmax` being its
    /// likeliest token. A stop is the expert's to write, so where that is the likeliest the position is deferred.
    #[must_use]
    pub fn keeps(self, max_q: f64, entropy_q: f64, argmax: TokenId, stop_ids: &[TokenId]) -> Option<bool> {
        let keeps = match self {
            Self::Chow { alpha } => max_q >= 1.0 - alpha,
            Self::ChowLog { alpha } => entropy_q <= alpha,
            _ => return None,
        };
        Some(keeps && stop_ids.binary_search(&argmax).is_err())
    }

    /// The law of the emitted token. `stop_ids` (ascending) are what only the expert may emit.
    #[must_use]
    pub fn target<'a>(self, pair: &Pair<'a>, stop_ids: &[TokenId]) -> Target<'a> {
        if let Some(keeps) = self.keeps(pair.max_q, pair.entropy_q, pair.q.argmax(), stop_ids) {
            // The drafter took the stops out of its row before it drew.
            return if keeps {
                Target::drafter(pair.p, &pair.q.clone().without(stop_ids))
            } else {
                Target::exact(pair)
            };
        }
        let kept = |keeps: bool| if keeps { Target::drafter(pair.p, pair.q) } else { Target::exact(pair) };
        let target = match self {
            Self::Diff { alpha } => kept(pair.max_q >= pair.raw_p.max() - alpha),
            Self::Opt { alpha } => kept(pair.max_q >= pair.raw_p.max() - pair.price(alpha)),
            Self::DiffLog { alpha } => kept(pair.entropy_q <= pair.raw_p.entropy() + alpha),
            Self::OptLog { alpha } => kept(pair.entropy_q <= pair.raw_p.entropy() + pair.price(alpha)),
            Self::TokenV1 { alpha } => {
                let (least, max) = (pair.raw_p.max() - alpha, pair.q.max());
                // The raw value of a tempered, truncated row's token, from the one raw number on the wire.
                Target::tokens(pair, |_, q| pair.max_q * libm::pow(q / max, pair.temperature) >= least)
            }
            Self::TokenV2 { alpha } => {
                let least = pair.raw_p.max() - alpha;
                Target::tokens(pair, |token, _| pair.raw_p.prob(token) >= least)
            }
            Self::TokenV3 { alpha } => Target::tokens(pair, |token, _| pair.raw_p.share_of_max(token) >= 1.0 - alpha),
            Self::Typical { epsilon, delta } => {
                let floor = epsilon.min(delta * libm::exp(-pair.raw_p.entropy()));
                Target::tokens(pair, |token, _| pair.raw_p.prob(token) > floor)
            }
            Self::Lenience { alpha } => Target::lenient(pair, alpha),
            Self::Mentored { alpha } => Target::mentored(pair, alpha),
            Self::Bild { fallback, rollback } => {
                let token = pair.q.argmax();
                let unlikely = || -libm::log(pair.raw_p.prob(token)) > rollback;
                kept(pair.max_q >= fallback && (token == pair.raw_p.argmax() || !unlikely()))
            }
            Self::Chow { .. } | Self::ChowLog { .. } => unreachable!("decided above"),
        };
        target.with_stops(stop_ids)
    }
}

impl Parameters {
    fn by_name(self) -> [(&'static str, Option<f64>); 5] {
        let Self { alpha, epsilon, delta, fallback, rollback } = self;
        [("alpha", alpha), ("epsilon", epsilon), ("delta", delta), ("fallback", fallback), ("rollback", rollback)]
    }
}

impl Pair<'_> {
    /// What deferring costs: a share of the rejection probability. Infinities are decided before `inf * 0`.
    fn price(&self, alpha: f64) -> f64 {
        if alpha.is_infinite() { alpha } else { alpha * self.q.total_variation(self.p) }
    }
}

/// The law of the emitted token: `listed` where a token is listed, `scale * p` elsewhere.
///
/// Every rule has this form, so accepting costs the few tokens of `q`'s support and only a rejection walks the
/// vocabulary. All of `q`'s support is listed.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    p: &'a Distribution,
    scale: f64,
    listed: Vec<(TokenId, f64)>,
}

impl<'a> Target<'a> {
    /// `pi = p`: speculative decoding, and every deferred position.
    #[must_use]
    pub fn exact(pair: &Pair<'a>) -> Self {
        let listed = pair.q.iter().map(|(token, _)| (token, pair.p.prob(token))).collect();
        Self { p: pair.p, scale: 1.0, listed }
    }

    /// The probability of a token.
    #[must_use]
    pub fn prob(&self, token: TokenId) -> f64 {
        match self.listed.binary_search_by_key(&token, |entry| entry.0) {
            Ok(index) => self.listed[index].1,
            Err(_) => self.scale * self.p.prob(token),
        }
    }

    /// Tokens with positive probability, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, f64)> + '_ {
        self.listed.iter().copied().filter(|entry| entry.1 > 0.0).chain(self.unlisted())
    }

    /// The probability that a draft from `q` is rejected: `D_TV(q, pi)`.
    #[must_use]
    pub fn rejection(&self, q: &Distribution) -> f64 {
        q.iter().fold(0.0, |sum, (token, weight)| sum + (weight - self.prob(token)).max(0.0))
    }

    /// `max(0, pi - q)`, not normalised, in no particular order. `q` is the row the target was made of.
    pub fn residual<'b>(&'b self, q: &'b Distribution) -> impl Iterator<Item = (TokenId, f64)> + 'b {
        let listed = self.listed.iter().map(|&(token, weight)| (token, weight - q.prob(token)));
        listed.filter(|entry| entry.1 > 0.0).chain(self.unlisted())
    }

    fn unlisted(&self) -> impl Iterator<Item = (TokenId, f64)> + '_ {
        // A row that keeps nothing of p must not be walked for zeros.
        let p = (self.scale > 0.0).then(|| self.p.iter()).into_iter().flatten();
        let mut listed = self.listed.iter().peekable();
        p.filter(move |entry| {
            while listed.next_if(|other| other.0 < entry.0).is_some() {}
            listed.peek().is_none_or(|other| other.0 != entry.0)
        })
        .map(|(token, weight)| (token, self.scale * weight))
    }

    fn drafter(p: &'a Distribution, q: &Distribution) -> Self {
        Self { p, scale: 0.0, listed: q.iter().collect() }
    }

    /// `q` where `keeps`, and the rest of `q`'s mass given to `p`.
    fn tokens(pair: &Pair<'a>, keeps: impl Fn(TokenId, f64) -> bool) -> Self {
        let kept = |token, weight| if keeps(token, weight) { weight } else { 0.0 };
        let mut listed: Vec<_> = pair.q.iter().map(|(token, weight)| (token, kept(token, weight))).collect();
        let replaced = pair.q.iter().zip(&listed).filter(|(_, kept)| kept.1 == 0.0);
        let eta = replaced.fold(0.0, |sum, (entry, _)| sum + entry.1);
        for (token, weight) in &mut listed {
            *weight += eta * pair.p.prob(*token);
        }
        Self { p: pair.p, scale: eta, listed }
    }

    /// `min(q, p / (1 - alpha))`, and what is rejected spread over `max(0, p - q)`.
    fn lenient(pair: &Pair<'a>, alpha: f64) -> Self {
        let rows = || pair.q.iter().map(|(token, q)| (token, q, pair.p.prob(token)));
        let rejected = rows().fold(0.0, |sum, (_, q, p)| sum + (q - p / (1.0 - alpha)).max(0.0));
        let differ = pair.q.total_variation(pair.p);
        let share = if differ > EMPTY { rejected / differ } else { 0.0 };
        let law = |q: f64, p: f64| q.min(p / (1.0 - alpha)) + share * (p - q).max(0.0);
        Self { p: pair.p, scale: share, listed: rows().map(|(token, q, p)| (token, law(q, p))).collect() }
    }

    /// `max(min(q, p / (1 - alpha)), s p)` with the `s = 1 / beta` at which it sums to one.
    fn mentored(pair: &Pair<'a>, alpha: f64) -> Self {
        let rows = || {
            pair.q.iter().map(|(token, q)| {
                let p = pair.p.prob(token);
                (token, q.min(p / (1.0 - alpha)), p)
            })
        };
        let mut floor = rows().fold(0.0, |sum, (_, least, _)| sum + least);
        if floor >= 1.0 - EMPTY {
            // Nothing is ever rejected.
            return Self::drafter(pair.p, pair.q);
        }
        // The sum is linear in s between the ratios at which a token leaves its floor: no bisection is needed.
        let mut leaving: Vec<_> = rows().filter(|row| row.2 > 0.0).map(|(_, least, p)| (least / p, least, p)).collect();
        leaving.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut slope = (1.0 - rows().fold(0.0, |sum, (_, _, p)| sum + p)).max(0.0);
        let mut s = (1.0 - floor) / slope;
        for (ratio, least, p) in leaving {
            if s <= ratio {
                break;
            }
            floor -= least;
            slope += p;
            s = (1.0 - floor) / slope;
        }
        let listed = rows().map(|(token, least, p)| (token, least.max(s * p))).collect();
        Self { p: pair.p, scale: s, listed }
    }

    /// Stopping is the expert's: `pi = p` on the stop set, everything else rescaled.
    fn with_stops(mut self, stop_ids: &[TokenId]) -> Self {
        if stop_ids.is_empty() {
            return self;
        }
        let p = self.p;
        let rest = 1.0 - stop_ids.iter().fold(0.0, |sum, &token| sum + self.prob(token));
        if rest > EMPTY {
            let factor = (1.0 - p.mass(stop_ids)).max(0.0) / rest;
            self.scale *= factor;
            self.listed.iter_mut().for_each(|entry| entry.1 *= factor);
        } else {
            // Nothing to rescale: pi = p.
            self.scale = 1.0;
            self.listed.iter_mut().for_each(|entry| entry.1 = p.prob(entry.0));
        }
        for &token in stop_ids {
            let own = (token, p.prob(token));
            match self.listed.binary_search_by_key(&token, |entry| entry.0) {
                Ok(index) => self.listed[index] = own,
                Err(index) => self.listed.insert(index, own),
            }
        }
        self
    }
}
