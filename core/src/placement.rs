//! Which drafter and which expert serve a session: a pure function of a membership snapshot and loads (DESIGN section 7).
//!
//! With a key, the choice is the highest random weight among the eligible nodes whose load stays within a bound, so that
//! equal prompts meet their pages again without piling up. Without one it is the less loaded of two drawn nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::history::{hash_bytes, splitmix64};
use crate::ids::NodeId;
use crate::limits::{PLACEMENT_KEY_BYTES, PLACEMENT_LOAD_FACTOR};

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Client-facing.
    Router,
    /// Owns sessions and drafts.
    Drafter,
    /// Verifies, or decodes alone.
    Expert,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Router, Self::Drafter, Self::Expert];

    /// Its word in membership, metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Drafter => "drafter",
            Self::Expert => "expert",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord { word: word.to_owned(), known: Self::ALL.map(Self::name) };
        Self::ALL.into_iter().find(|role| role.name() == word).ok_or_else(unknown)
    }
}

/// A word that names no role, or no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    /// The word.
    pub word: String,
    /// Those there are.
    pub known: [&'static str; 3],
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is none of {}", self.word, self.known.join(", "))
    }
}

impl std::error::Error for UnknownWord {}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeState {
    /// Loading or warming up.
    Starting,
    /// Takes sessions.
    Ready,
    /// Takes none.
    Draining,
}

impl NodeState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 3] = [Self::Starting, Self::Ready, Self::Draining];

    /// Its word in membership, metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NodeState {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        let unknown = || UnknownWord { word: word.to_owned(), known: Self::ALL.map(Self::name) };
        Self::ALL.into_iter().find(|state| state.name() == word).ok_or_else(unknown)
    }
}

/// One model under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedModel {
    /// The name clients ask for; a drafter declares the names it drafts for. Empty at a drafter: every name whose
    /// expert has its tokenizer.
    pub name: String,
    /// Hash of weights, dtype and arithmetic.
    pub fingerprint: String,
    /// Hash of the tokenizer.
    pub tokenizer_fingerprint: String,
    /// Whether the fingerprint's arithmetic is row-exact (DESIGN section 5).
    pub row_exact: bool,
}

/// What membership knows of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// One start of it, drawn at random.
    pub instance: u64,
    /// What it does.
    pub role: Role,
    /// Where it serves.
    pub address: String,
    /// Where its admin listener is.
    pub admin_address: String,
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// Sessions it can hold.
    pub capacity: u32,
    /// Lowest and highest protocol it speaks.
    pub protocol: (u32, u32),
    /// Where it is in its life.
    pub state: NodeState,
}

/// Membership at a revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Grows with every change.
    pub revision: u64,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
}

/// What the chooser knows of a node's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tokens waiting for a batch, as last reported.
    pub queued_tokens: u64,
    /// Tokens in the running batch, as last reported.
    pub running_tokens: u64,
    /// Tokens this chooser has placed there since that report.
    pub placed_tokens: u64,
    /// Hung or cut off: takes no sessions, and those it has are lost.
    pub quarantined: bool,
    /// Failed one session after another ([`crate::quarantine`]): takes no new ones.
    pub failing: bool,
}

impl Load {
    /// All tokens it has to answer for.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.queued_tokens.saturating_add(self.running_tokens).saturating_add(self.placed_tokens)
    }
}

/// Loads by node; a node without one has none.
pub type Loads = BTreeMap<NodeId, Load>;

/// What is to be placed.
#[derive(Clone, Debug, Default)]
pub struct Wish<'a> {
    /// The served name asked for.
    pub model: &'a str,
    /// Sessions of equal key meet again ([`placement_key`]).
    pub key: Option<u64>,
    /// 64 random bits for the keyless choice, e.g. of the session id.
    pub chance: u64,
    /// Tokens the session brings.
    pub session_tokens: u64,
    /// The expert's fingerprint; a continuation keeps it.
    pub expert_fingerprint: Option<&'a str>,
    /// The drafter's fingerprint; a continuation keeps it.
    pub drafter_fingerprint: Option<&'a str>,
    /// The tokenizer's fingerprint; a continuation knows it when no expert is left to tell.
    pub tokenizer_fingerprint: Option<&'a str>,
    /// Nodes not to be chosen: those that just failed.
    pub exclude: BTreeSet<NodeId>,
}

/// A drafter and an expert of one tokenizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair<'a> {
    /// Owns the session.
    pub drafter: &'a NodeRecord,
    /// Verifies.
    pub expert: &'a NodeRecord,
}

/// Why nothing was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// No expert declares the name.
    UnknownModel {
        /// The name.
        asked: String,
        /// The names there are.
        served: Vec<String>,
    },
    /// No expert of the model takes sessions now.
    NoExpert {
        /// The model.
        model: String,
        /// The fingerprint it had to have.
        fingerprint: Option<String>,
    },
    /// No drafter for the model takes sessions now.
    NoDrafter {
        /// The model.
        model: String,
        /// The fingerprint it had to have.
        fingerprint: Option<String>,
    },
    /// The model's drafters and experts have different tokenizers.
    TokenizerMismatch {
        /// The model.
        model: String,
        /// A drafter that declares the model.
        drafter: NodeId,
        /// Its tokenizer.
        drafter_tokenizer: String,
        /// An expert that serves the model.
        expert: NodeId,
        /// Its tokenizer.
        expert_tokenizer: String,
    },
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |fingerprint: &Option<String>| {
            fingerprint.as_ref().map_or(String::new(), |fingerprint| format!(" of fingerprint {fingerprint}"))
        };
        match self {
            Self::UnknownModel { asked, served } if served.is_empty() => {
                write!(f, "model \"{asked}\" is not served; no expert is known")
            }
            Self::UnknownModel { asked, served } => {
                write!(f, "model \"{asked}\" is not served; served are {}", served.join(", "))
            }
            Self::NoExpert { model, fingerprint } => {
                write!(f, "no expert{} takes sessions for model \"{model}\"", of(fingerprint))
            }
            Self::NoDrafter { model, fingerprint } => {
                write!(f, "no drafter{} takes sessions for model \"{model}\"", of(fingerprint))
            }
            Self::TokenizerMismatch { model, drafter, drafter_tokenizer, expert, expert_tokenizer } => write!(
                f,
                "drafter {drafter} and expert {expert} of model \"{model}\" have different tokenizers: \
                 {drafter_tokenizer} and {expert_tokenizer}"
            ),
        }
    }
}

impl std::error::Error for PlacementError {}

/// The key of a session: its conversation, else the beginning of its prompt; a short prompt has none.
#[must_use]
pub fn placement_key(tenant: &str, conversation: Option<&str>, prompt: &[u8]) -> Option<u64> {
    let tenant = hash_bytes(0, tenant.as_bytes());
    match conversation {
        Some(conversation) => Some(hash_bytes(tenant, conversation.as_bytes())),
        None => Some(hash_bytes(!tenant, prompt.get(..PLACEMENT_KEY_BYTES)?)),
    }
}

/// The names experts declare, sorted.
#[must_use]
pub fn served_models(snapshot: &Snapshot) -> Vec<String> {
    let experts = snapshot.nodes.values().filter(|node| node.role == Role::Expert);
    let names: BTreeSet<&String> = experts.flat_map(|node| &node.models).map(|model| &model.name).collect();
    names.into_iter().cloned().collect()
}

/// Chooses a drafter and an expert of one tokenizer.
///
/// # Errors
/// Which of the two there is not.
pub fn place<'a>(snapshot: &'a Snapshot, loads: &Loads, wish: &Wish<'_>) -> Result<Pair<'a>, PlacementError> {
    let chooser = Chooser { snapshot, loads, wish };
    let experts = chooser.experts()?;
    let tokenizers = experts.iter().map(|(_, model)| model.tokenizer_fingerprint.as_str()).collect();
    let drafters = chooser.drafters(&tokenizers)?;
    let agrees = |a: &Candidate<'_>, b: &Candidate<'_>| a.1.tokenizer_fingerprint == b.1.tokenizer_fingerprint;
    let mut experts = experts;
    experts.retain(|expert| drafters.iter().any(|drafter| agrees(drafter, expert)));
    let expert = chooser.choose(&experts);
    let mut drafters = drafters;
    drafters.retain(|drafter| agrees(drafter, &expert));
    Ok(Pair { drafter: chooser.choose(&drafters).0, expert: expert.0 })
}

/// Chooses an expert alone: for strategy `expert`, or for an owner whose expert is lost.
///
/// # Errors
/// When there is none.
pub fn pick_expert<'a>(
    snapshot: &'a Snapshot,
    loads: &Loads,
    wish: &Wish<'_>,
) -> Result<&'a NodeRecord, PlacementError> {
    let chooser = Chooser { snapshot, loads, wish };
    Ok(chooser.choose(&chooser.experts()?).0)
}

/// Chooses a drafter alone: for strategy `drafter`, or while no expert lives. The tokenizer is that of the model's
/// experts in any state; where none is known, that of drafters that declare the name, and of the session that goes on.
///
/// # Errors
/// When there is none.
pub fn pick_drafter<'a>(
    snapshot: &'a Snapshot,
    loads: &Loads,
    wish: &Wish<'_>,
) -> Result<&'a NodeRecord, PlacementError> {
    let chooser = Chooser { snapshot, loads, wish };
    let experts = chooser.serving(Role::Expert).filter(|(_, model)| model.name == wish.model);
    let pinned = experts.filter(|(_, model)| matches(wish.expert_fingerprint, model));
    let mut tokenizers: BTreeSet<&str> = pinned.map(|(_, model)| model.tokenizer_fingerprint.as_str()).collect();
    if tokenizers.is_empty() {
        let declared = chooser.serving(Role::Drafter).filter(|(_, model)| model.name == wish.model);
        let declared = declared.map(|(_, model)| model.tokenizer_fingerprint.as_str());
        tokenizers = declared.chain(wish.tokenizer_fingerprint).collect();
        if tokenizers.is_empty() && wish.expert_fingerprint.is_none() {
            return Err(chooser.unknown());
        }
    }
    Ok(chooser.choose(&chooser.drafters(&tokenizers)?).0)
}

/// Why a drafter can draft for nobody: experts serve its models, and none of them has its tokenizer. Where no expert is
/// known yet, nothing is wrong with it.
#[must_use]
pub fn mismatch(drafter: &NodeRecord, snapshot: &Snapshot) -> Option<PlacementError> {
    let experts = snapshot.nodes.values().filter(|node| node.role == Role::Expert);
    let mut refused = None;
    for expert in experts {
        for served in &expert.models {
            for drafts in drafter.models.iter().filter(|drafts| drafts.name.is_empty() || drafts.name == served.name) {
                if drafts.tokenizer_fingerprint == served.tokenizer_fingerprint {
                    return None;
                }
                refused.get_or_insert_with(|| PlacementError::TokenizerMismatch {
                    model: served.name.clone(),
                    drafter: drafter.id.clone(),
                    drafter_tokenizer: drafts.tokenizer_fingerprint.clone(),
                    expert: expert.id.clone(),
                    expert_tokenizer: served.tokenizer_fingerprint.clone(),
                });
            }
        }
    }
    refused
}

/// A node and the model of it that would serve.
type Candidate<'a> = (&'a NodeRecord, &'a ServedModel);

fn matches(fingerprint: Option<&str>, model: &ServedModel) -> bool {
    fingerprint.is_none_or(|fingerprint| fingerprint == model.fingerprint)
}

struct Chooser<'a, 'b> {
    snapshot: &'a Snapshot,
    loads: &'b Loads,
    wish: &'b Wish<'b>,
}

impl<'a> Chooser<'a, '_> {
    fn serving(&self, role: Role) -> impl Iterator<Item = Candidate<'a>> + use<'a> {
        let nodes = self.snapshot.nodes.values().filter(move |node| node.role == role);
        nodes.flat_map(|node| node.models.iter().map(move |model| (node, model)))
    }

    fn is_open(&self, node: &NodeRecord) -> bool {
        node.state == NodeState::Ready
            && !self.loads.get(&node.id).is_some_and(|load| load.quarantined || load.failing)
            && !self.wish.exclude.contains(&node.id)
    }

    fn unknown(&self) -> PlacementError {
        PlacementError::UnknownModel { asked: self.wish.model.to_owned(), served: served_models(self.snapshot) }
    }

    /// Experts that may be chosen, at least one, by name.
    fn experts(&self) -> Result<Vec<Candidate<'a>>, PlacementError> {
        let model = self.wish.model;
        let declared: Vec<_> = self.serving(Role::Expert).filter(|(_, served)| served.name == model).collect();
        // A continuation knows its model, also when the last expert has vanished from membership.
        if declared.is_empty() && self.wish.expert_fingerprint.is_none() {
            return Err(self.unknown());
        }
        let fingerprint = self.wish.expert_fingerprint;
        let open =
            one_each(declared.into_iter().filter(|(node, served)| self.is_open(node) && matches(fingerprint, served)));
        if open.is_empty() {
            let fingerprint = fingerprint.map(str::to_owned);
            return Err(PlacementError::NoExpert { model: model.to_owned(), fingerprint });
        }
        Ok(open)
    }

    /// Drafters of these tokenizers that may be chosen, at least one, by name.
    fn drafters(&self, tokenizers: &BTreeSet<&str>) -> Result<Vec<Candidate<'a>>, PlacementError> {
        let model = self.wish.model;
        let fingerprint = self.wish.drafter_fingerprint;
        let open: Vec<_> = self
            .serving(Role::Drafter)
            .filter(|(node, served)| self.is_open(node) && matches(fingerprint, served))
            .collect();
        let agreeing = one_each(open.iter().copied().filter(|(_, served)| {
            let is_named = served.name == model || served.name.is_empty();
            is_named && tokenizers.contains(served.tokenizer_fingerprint.as_str())
        }));
        if !agreeing.is_empty() {
            return Ok(agreeing);
        }
        let drafter = open.into_iter().find(|(_, served)| served.name == model);
        let expert = self.serving(Role::Expert).find(|(_, served)| served.name == model);
        Err(match (drafter, expert) {
            (Some((drafter, drafts)), Some((expert, served))) => PlacementError::TokenizerMismatch {
                model: model.to_owned(),
                drafter: drafter.id.clone(),
                drafter_tokenizer: drafts.tokenizer_fingerprint.clone(),
                expert: expert.id.clone(),
                expert_tokenizer: served.tokenizer_fingerprint.clone(),
            },
            _ => PlacementError::NoDrafter { model: model.to_owned(), fingerprint: fingerprint.map(str::to_owned) },
        })
    }

    fn load(&self, candidate: &Candidate<'_>) -> u64 {
        self.loads.get(&candidate.0.id).map_or(0, Load::tokens)
    }

    fn choose(&self, candidates: &[Candidate<'a>]) -> Candidate<'a> {
        assert!(!candidates.is_empty(), "a choice has candidates");
        match self.wish.key {
            Some(key) => self.keyed(candidates, key),
            None => self.keyless(candidates),
        }
    }

    fn keyed(&self, candidates: &[Candidate<'a>], key: u64) -> Candidate<'a> {
        let session = self.wish.session_tokens;
        let loads = candidates.iter().map(|candidate| self.load(candidate));
        let total = loads.clone().fold(session, u64::saturating_add);
        let least = loads.min().unwrap_or(0);
        let mean = total as f64 / candidates.len() as f64;
        let bound = ((mean * PLACEMENT_LOAD_FACTOR) as u64).max(least.saturating_add(session.saturating_mul(2)));
        let within = candidates.iter().filter(|candidate| self.load(candidate).saturating_add(session) <= bound);
        let weight = |candidate: &&Candidate<'_>| splitmix64(key ^ hash_bytes(0, candidate.0.id.0.as_bytes()));
        *within.max_by_key(weight).expect("the least loaded node is within the bound")
    }

    fn keyless(&self, candidates: &[Candidate<'a>]) -> Candidate<'a> {
        let count = candidates.len() as u64;
        if count == 1 {
            return candidates[0];
        }
        let chance = splitmix64(self.wish.chance);
        let first = chance % count;
        // One of the others, each as likely.
        let second = (first + 1 + splitmix64(chance) % (count - 1)) % count;
        let (first, second) = (candidates[first as usize], candidates[second as usize]);
        if self.load(&second) < self.load(&first) { second } else { first }
    }
}

/// The first candidate of each node; they come node by node.
fn one_each<'a>(candidates: impl Iterator<Item = Candidate<'a>>) -> Vec<Candidate<'a>> {
    let mut kept: Vec<Candidate<'a>> = candidates.collect();
    kept.dedup_by(|a, b| a.0.id == b.0.id);
    kept
}
