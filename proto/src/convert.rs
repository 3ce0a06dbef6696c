//! Between messages and core types.
//!
//! From the wire, what a core type promises is checked here (positions fit, ids ascend, numbers are finite); what a
//! *request* makes of a number is checked where its decoding is known (`cascadia_core::verify::check`).

use cascadia_core::block::{Draft, DraftBlock, Provenance, Score, Stale, StaleReason, Verdict};
use cascadia_core::commit::{Message, Prompt};
use cascadia_core::ids::{Epoch, SessionId, SessionSecret, TokenId};
use cascadia_core::limits;
use cascadia_core::placement::{NodeState, Role};

use crate::v1;

/// A message that cannot mean anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertError {
    /// The field, as in the `.proto`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl std::fmt::Display for ConvertError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for ConvertError {}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> ConvertError {
    ConvertError { field: field.into(), problem: problem.into() }
}

fn index(field: &str, value: u64) -> Result<usize, ConvertError> {
    usize::try_from(value).map_err(|_| wrong(field, format!("{value} is no position")))
}

// ------------------------------------------------------------------ names

/// A session's name, epoch and secret, as they travel.
#[must_use]
pub fn session_key_message(session: SessionId, epoch: Epoch, secret: Option<&SessionSecret>) -> v1::SessionKey {
    v1::SessionKey {
        session: session.0.to_be_bytes().to_vec(),
        epoch: epoch.0,
        secret: secret.map(|secret| secret.bytes().to_vec()).unwrap_or_default(),
    }
}

/// A session's name and epoch.
///
/// # Errors
/// Where the name has not 16 bytes.
pub fn session_key(key: &v1::SessionKey) -> Result<(SessionId, Epoch), ConvertError> {
    let bytes = <[u8; 16]>::try_from(key.session.as_slice())
        .map_err(|_| wrong("key.session", format!("has {} bytes, a session id has 16", key.session.len())))?;
    Ok((SessionId(u128::from_be_bytes(bytes)), Epoch(key.epoch)))
}

/// The secret that a session is opened with; `None` where its router has none.
///
/// # Errors
/// Where it has neither 16 bytes nor none. The bytes are not in the error.
pub fn session_secret(key: &v1::SessionKey) -> Result<Option<SessionSecret>, ConvertError> {
    if key.secret.is_empty() {
        return Ok(None);
    }
    let bytes = <[u8; SessionSecret::BYTES]>::try_from(key.secret.as_slice())
        .map_err(|_| wrong("key.secret", format!("has {} bytes, a session's secret has 16", key.secret.len())))?;
    Ok(Some(SessionSecret::of_bytes(bytes)))
}

impl std::fmt::Debug for v1::SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("SessionKey");
        shown.field("session", &self.session).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Ids in the pieces they travel in.
#[must_use]
pub fn histories(ids: &[TokenId]) -> Vec<v1::History> {
    ids.chunks(limits::HISTORY_IDS).map(|piece| v1::History { ids: piece.to_vec() }).collect()
}

/// A prompt as it came.
///
/// # Errors
/// Where there is none.
pub fn prompt(prompt: Option<v1::Prompt>) -> Result<Prompt, ConvertError> {
    match prompt.and_then(|prompt| prompt.kind) {
        Some(v1::prompt::Kind::Text(text)) => Ok(Prompt::Text(text)),
        Some(v1::prompt::Kind::Messages(v1::Messages { messages })) => {
            let message = |message: v1::Message| Message { role: message.role, content: message.content };
            Ok(Prompt::Messages(messages.into_iter().map(message).collect()))
        }
        Some(v1::prompt::Kind::Ids(ids)) => Ok(Prompt::Ids(ids.ids)),
        None => Err(wrong("prompt", "is missing; give text, messages or ids")),
    }
}

// ------------------------------------------------------------------ blocks

/// A block, as it travels.
#[must_use]
pub fn block_message(block: &DraftBlock) -> v1::Block {
    v1::Block {
        epoch: block.epoch.0,
        given_from: block.given_from as u64,
        given: block.given.clone(),
        base: block.base as u64,
        tail: block.tail,
        drafts: block.drafts.iter().map(draft_message).collect(),
        score_given: block.score_given,
    }
}

fn draft_message(draft: &Draft) -> v1::Draft {
    v1::Draft {
        token: draft.token,
        q: draft.q,
        max_q: draft.max_q,
        entropy_q: draft.entropy_q,
        kept: draft.kept,
        support_ids: draft.support.iter().map(|&(id, _)| id).collect(),
        support_q: draft.support.iter().map(|&(_, q)| q).collect(),
    }
}

/// A block.
///
/// # Errors
/// The field that contradicts another, or cannot be what it says.
pub fn block(block: v1::Block) -> Result<DraftBlock, ConvertError> {
    let (given_from, base) = (index("block.given_from", block.given_from)?, index("block.base", block.base)?);
    if given_from.checked_add(block.given.len()) != Some(base) {
        let given = block.given.len();
        return Err(wrong("block.base", format!("is {base}, but {given} tokens are given from position {given_from}")));
    }
    if block.drafts.is_empty() && block.given.is_empty() {
        return Err(wrong("block.drafts", "may be empty only where tokens are given"));
    }
    let drafts = block.drafts.into_iter().enumerate().map(|(i, d)| draft(d, i)).collect::<Result<_, _>>()?;
    Ok(DraftBlock {
        epoch: Epoch(block.epoch),
        given_from,
        given: block.given,
        base,
        tail: block.tail,
        drafts,
        score_given: block.score_given,
    })
}

fn draft(draft: v1::Draft, i: usize) -> Result<Draft, ConvertError> {
    let field = |name: &str| format!("block.drafts[{i}].{name}");
    for (name, value) in [("q", draft.q), ("max_q", draft.max_q), ("entropy_q", draft.entropy_q)] {
        if !(value.is_finite() && value >= 0.0) {
            return Err(wrong(field(name), format!("{value} is not a finite number of at least 0")));
        }
    }
    let (ids, qs) = (draft.support_ids, draft.support_q);
    if ids.len() != qs.len() {
        return Err(wrong(field("support_q"), format!("has {} numbers for {} ids", qs.len(), ids.len())));
    }
    if ids.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(wrong(field("support_ids"), "do not ascend"));
    }
    if qs.iter().any(|q| !(q.is_finite() && *q >= 0.0)) {
        return Err(wrong(field("support_q"), "has a number that is no probability"));
    }
    Ok(Draft {
        token: draft.token,
        q: draft.q,
        max_q: draft.max_q,
        entropy_q: draft.entropy_q,
        kept: draft.kept,
        support: ids.into_iter().zip(qs).collect(),
    })
}

// ------------------------------------------------------------------ answers

/// A verdict, as it travels.
#[must_use]
pub fn verdict(verdict: &Verdict, load: Option<v1::LoadHint>) -> v1::Verdict {
    v1::Verdict {
        epoch: verdict.epoch.0,
        base: verdict.base as u64,
        accepted: u32::try_from(verdict.accepted).unwrap_or(u32::MAX),
        replacement: verdict.replacement,
        scores: verdict.scores.iter().map(score_message).collect(),
        load,
    }
}

fn score_message(score: &Score) -> v1::Score {
    v1::Score {
        relaxed: score.relaxed,
        expert_logprob: score.logprob,
        top: score.top.iter().map(|&(token, logprob)| v1::Alternative { token, logprob }).collect(),
    }
}

/// A verdict.
///
/// # Errors
/// The field that is wrong.
pub fn verdict_of(verdict: v1::Verdict) -> Result<Verdict, ConvertError> {
    Ok(Verdict {
        epoch: Epoch(verdict.epoch),
        base: index("verdict.base", verdict.base)?,
        accepted: index("verdict.accepted", verdict.accepted.into())?,
        replacement: verdict.replacement,
        scores: verdict.scores.into_iter().enumerate().map(|(i, s)| score_of(s, i)).collect::<Result<_, _>>()?,
    })
}

fn score_of(score: v1::Score, i: usize) -> Result<Score, ConvertError> {
    // Minus infinity is a banned token's.
    let has_nan = score.expert_logprob.into_iter().chain(score.top.iter().map(|t| t.logprob)).any(f32::is_nan);
    if has_nan {
        return Err(wrong(format!("verdict.scores[{i}]"), "has a log-probability that is no number"));
    }
    Ok(Score {
        relaxed: score.relaxed,
        logprob: score.expert_logprob,
        top: score.top.into_iter().map(|top| (top.token, top.logprob)).collect(),
    })
}

/// Checks what an expert says it holds of a session against what it was opened with.
///
/// # Errors
/// The field that contradicts the opening.
pub fn check_held(held: &v1::Held, open: &v1::VerifyOpen) -> Result<(), ConvertError> {
    let (history, pinned) = (u64::from(open.history_tokens), &open.pinned_fingerprint);
    if held.n > history {
        return Err(wrong("held.n", format!("is {}, and the session has {history} tokens", held.n)));
    }
    // An expert that does not say has room for whatever it took.
    if held.context != 0 && held.context < history {
        return Err(wrong("held.context", format!("is {}, and the session has {history} tokens", held.context)));
    }
    if held.fingerprint.is_empty() {
        return Err(wrong("held.fingerprint", "is missing"));
    }
    if !pinned.is_empty() && held.fingerprint != *pinned {
        return Err(wrong(
            "held.fingerprint",
            format!("is {}, and the session is pinned to {pinned}", held.fingerprint),
        ));
    }
    Ok(())
}

/// A refusal of a stale block, as it travels.
#[must_use]
pub fn stale(stale: &Stale) -> v1::Stale {
    let reason = match stale.reason {
        StaleReason::Epoch => v1::StaleReason::Epoch,
        StaleReason::Base => v1::StaleReason::Base,
        StaleReason::Tail => v1::StaleReason::Tail,
    };
    v1::Stale {
        epoch: stale.epoch.0,
        base: stale.base as u64,
        committed: stale.committed as u64,
        tail: stale.tail,
        reason: reason.into(),
    }
}

/// A refusal of a stale block.
///
/// # Errors
/// The field that is wrong.
pub fn stale_of(stale: v1::Stale) -> Result<Stale, ConvertError> {
    let reason = match stale.reason() {
        v1::StaleReason::Epoch => StaleReason::Epoch,
        v1::StaleReason::Base => StaleReason::Base,
        v1::StaleReason::Tail => StaleReason::Tail,
        v1::StaleReason::Unspecified => {
            return Err(wrong("stale.reason", format!("{} is none that is known", stale.reason)));
        }
    };
    Ok(Stale {
        epoch: Epoch(stale.epoch),
        base: index("stale.base", stale.base)?,
        committed: index("stale.committed", stale.committed)?,
        tail: stale.tail,
        reason,
    })
}

// ------------------------------------------------------------------ words

/// Who wrote a token, as it travels.
#[must_use]
pub fn provenance(provenance: Provenance) -> v1::Provenance {
    match provenance {
        Provenance::Accepted => v1::Provenance::Accepted,
        Provenance::Relaxed => v1::Provenance::Relaxed,
        Provenance::Deferred => v1::Provenance::Deferred,
    }
}

/// Who wrote a token; `None` where the message does not say.
#[must_use]
pub fn provenance_of(provenance: v1::Provenance) -> Option<Provenance> {
    match provenance {
        v1::Provenance::Accepted => Some(Provenance::Accepted),
        v1::Provenance::Relaxed => Some(Provenance::Relaxed),
        v1::Provenance::Deferred => Some(Provenance::Deferred),
        v1::Provenance::Unspecified => None,
    }
}

/// The words for who wrote a token, as in JSON and tables.
#[must_use]
pub fn provenance_name(provenance: v1::Provenance) -> &'static str {
    match provenance {
        v1::Provenance::Unspecified => "unspecified",
        v1::Provenance::Accepted => "accepted",
        v1::Provenance::Relaxed => "relaxed",
        v1::Provenance::Deferred => "deferred",
    }
}

/// Where a node is in its life, as it travels.
#[must_use]
pub fn node_state(state: NodeState) -> v1::NodeState {
    match state {
        NodeState::Starting => v1::NodeState::Starting,
        NodeState::Ready => v1::NodeState::Ready,
        NodeState::Draining => v1::NodeState::Draining,
    }
}

/// Where a node is in its life; `None` where the message does not say.
#[must_use]
pub fn node_state_of(state: v1::NodeState) -> Option<NodeState> {
    match state {
        v1::NodeState::Starting => Some(NodeState::Starting),
        v1::NodeState::Ready => Some(NodeState::Ready),
        v1::NodeState::Draining => Some(NodeState::Draining),
        v1::NodeState::Unspecified => None,
    }
}

/// The state's word in `ClusterStatus`, membership and logs.
#[must_use]
pub fn state_name(state: NodeState) -> &'static str {
    state.name()
}

/// The role's word in `ClusterStatus`, membership and logs.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    role.name()
}

#[cfg(test)]
mod tests;
