//! Who owns a session now: its strategy and its promises over `core::placement`. Pure.

use cascadia_core::ids::NodeId;
use cascadia_core::placement::{self, Loads, NodeRecord, PlacementError, Role, Snapshot, Wish};
use cascadia_proto::v1::{self, NodeRef, OnDrafterLoss, OnExpertLoss, Parameters};

/// What a session needs of its place.
#[derive(Clone, Debug)]
pub struct Constraints<'a> {
    /// The parameters in force.
    pub parameters: &'a Parameters,
    /// `cascade_query` has handed over: only an expert will do.
    pub handed_over: bool,
    /// Whether the session has begun: then a misconfigured pair is a lost node, not an error.
    pub begun: bool,
    /// Whether others may step in for a kind of node that is missing; not where nodes are only busy.
    pub step_in: bool,
    /// Whether they may although a retry might then get another text; not while the missing may only be restarting.
    pub break_promise: bool,
    /// Model, key, pins, and nodes to avoid.
    pub wish: Wish<'a>,
}

/// A place: the owner and the expert it shall use.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Holds the session.
    pub owner: NodeRecord,
    /// Verifies for it; absent where the owner is an expert itself, or goes alone.
    pub expert: Option<NodeRecord>,
}

impl Placement {
    /// Whether an expert decodes alone.
    #[must_use]
    pub fn is_expert(&self) -> bool {
        self.owner.role == Role::Expert
    }

    /// The drafter's name, as the client is told.
    #[must_use]
    pub fn drafter_name(&self) -> &str {
        if self.is_expert() { "" } else { &self.owner.id.0 }
    }

    /// The expert's name, as the client is told.
    #[must_use]
    pub fn expert_name(&self) -> &str {
        if self.is_expert() { &self.owner.id.0 } else { self.expert.as_ref().map_or("", |expert| &expert.id.0) }
    }

    /// The nodes that will work for the session.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        std::iter::once(&self.owner).chain(&self.expert).map(|node| &node.id)
    }

    /// Where the owner opens its `Verify` stream.
    #[must_use]
    pub fn expert_ref(&self, model: &str, pinned: &str) -> Option<NodeRef> {
        let expert = self.expert.as_ref()?;
        let mut served = expert.models.iter().filter(|served| served.name == model);
        let served = served.find(|served| pinned.is_empty() || served.fingerprint == pinned)?;
        Some(NodeRef {
            id: expert.id.0.clone(),
            address: expert.address.clone(),
            fingerprint: served.fingerprint.clone(),
        })
    }
}

/// Why there is no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlacement {
    /// None now; one may come.
    Now(PlacementError),
    /// None as the cluster is configured.
    Ever(PlacementError),
}

/// Chooses a place.
///
/// # Errors
/// When there is none now, or none to be expected.
pub fn place_session(
    snapshot: &Snapshot,
    loads: &Loads,
    constraints: &Constraints<'_>,
) -> Result<Placement, NoPlacement> {
    let expert_alone = || placement::pick_expert(snapshot, loads, &constraints.wish).map(alone);
    let drafter_alone = || placement::pick_drafter(snapshot, loads, &constraints.wish).map(alone);
    if constraints.handed_over || is_experts_alone(constraints.parameters) {
        return expert_alone().map_err(NoPlacement::Now);
    }
    let asks_expert = constraints.parameters.strategy != "drafter";
    let wanted = if asks_expert {
        let pair = placement::place(snapshot, loads, &constraints.wish);
        pair.map(|pair| Placement { owner: pair.drafter.clone(), expert: Some(pair.expert.clone()) })
    } else {
        drafter_alone()
    };
    let error = match wanted {
        Ok(placed) => return Ok(placed),
        Err(error) => error,
    };
    if matches!(error, PlacementError::TokenizerMismatch { .. }) && !constraints.begun {
        return Err(NoPlacement::Ever(error));
    }
    let no_expert = matches!(error, PlacementError::NoExpert { .. } | PlacementError::UnknownModel { .. });
    let instead = if asks_expert && no_expert {
        (constraints.step_in && constraints.parameters.on_expert_loss() == OnExpertLoss::Drafter).then(drafter_alone)
    } else {
        (constraints.step_in && constraints.parameters.on_drafter_loss() != OnDrafterLoss::Wait).then(expert_alone)
    };
    match instead {
        Some(Ok(placed))
            if constraints.break_promise || keeps_promise(constraints.parameters, constraints.handed_over, &placed) =>
        {
            Ok(placed)
        }
        _ => Err(NoPlacement::Now(error)),
    }
}

fn alone(node: &NodeRecord) -> Placement {
    Placement { owner: node.clone(), expert: None }
}

/// Whether the strategy asks no drafter.
#[must_use]
pub fn is_experts_alone(parameters: &Parameters) -> bool {
    parameters.strategy == "expert"
}

/// Whether the text is the expert's own whatever the drafter, so that an expert can go on alone unnoticed (DESIGN, idea 5).
#[must_use]
pub fn is_experts_text(parameters: &Parameters) -> bool {
    match parameters.strategy.as_str() {
        "expert" => true,
        "speculative" => parameters.coupling != "maximal" || parameters.temperature == Some(0.0),
        _ => false,
    }
}

/// Whether a session of these parameters, placed so, writes what a retry would write.
#[must_use]
pub fn keeps_promise(parameters: &Parameters, handed_over: bool, placed: &Placement) -> bool {
    let without_drafter = placed.is_expert() && !handed_over;
    let without_expert = placed.expert.is_none() && !placed.is_expert() && parameters.strategy != "drafter";
    !(without_drafter && !is_experts_text(parameters) || without_expert)
}

/// The same request, decoded by an expert alone.
#[must_use]
pub fn for_expert(parameters: &Parameters) -> Parameters {
    Parameters {
        strategy: "expert".to_owned(),
        rule: String::new(),
        alpha: None,
        coupling: String::new(),
        bild: None,
        typical: None,
        ..parameters.clone()
    }
}

/// The fingerprint as a wish names it.
#[must_use]
pub fn pin(fingerprint: &str) -> Option<&str> {
    (!fingerprint.is_empty()).then_some(fingerprint)
}

/// Compares what an owner says of its models with what membership says of them, where it says anything.
///
/// # Errors
/// The model that is another.
pub fn is_listed(placed: &Placement, owner: &v1::Fingerprints) -> Result<(), crate::transcript::Breach> {
    let of = |node: &NodeRecord| node.models.iter().map(|model| model.fingerprint.clone()).collect();
    let (drafter, expert): (Vec<String>, Vec<String>) = match &placed.expert {
        _ if placed.is_expert() => (Vec::new(), of(&placed.owner)),
        expert => (of(&placed.owner), expert.as_ref().map(of).unwrap_or_default()),
    };
    let tokenizers = placed.owner.models.iter().map(|model| model.tokenizer_fingerprint.clone()).collect();
    let each = [
        ("drafter", drafter, &owner.drafter),
        ("expert", expert, &owner.expert),
        ("tokenizer", tokenizers, &owner.tokenizer),
    ];
    for (model, mut listed, got) in each {
        listed.retain(|print| !print.is_empty());
        if !got.is_empty() && !listed.is_empty() && !listed.contains(got) {
            return Err(crate::transcript::Breach::Listed { model, listed: listed.join(" or "), got: got.clone() });
        }
    }
    Ok(())
}

/// Adds what an owner says of its models to what the session is pinned to.
///
/// # Errors
/// When it has other models.
pub fn agree(pinned: &mut v1::Fingerprints, owner: &v1::Fingerprints) -> Result<(), crate::transcript::Breach> {
    let each = [
        ("drafter", &mut pinned.drafter, &owner.drafter),
        ("expert", &mut pinned.expert, &owner.expert),
        ("tokenizer", &mut pinned.tokenizer, &owner.tokenizer),
    ];
    for (model, pinned, got) in each {
        if pinned.is_empty() {
            pinned.clone_from(got);
        } else if !got.is_empty() && got != pinned {
            let (pinned, got) = (pinned.clone(), got.clone());
            return Err(crate::transcript::Breach::Fingerprint { model, pinned, got });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cascadia_core::placement::Load;

    use super::*;
    use crate::samples::node;

    fn cluster() -> Snapshot {
        let nodes = [node("d", Role::Drafter), node("e", Role::Expert)];
        Snapshot { revision: 1, nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect() }
    }

    fn constraints<'a>(parameters: &'a Parameters, handed_over: bool, wish: Wish<'a>) -> Constraints<'a> {
        Constraints { parameters, handed_over, begun: false, step_in: true, break_promise: true, wish }
    }

    fn names(parameters: &Parameters, handed_over: bool, gone: &[&str]) -> Result<(String, String), NoPlacement> {
        let exclude: BTreeSet<_> = gone.iter().map(|id| NodeId((*id).into())).collect();
        let wish = Wish { model: "m", exclude, ..Wish::default() };
        let placed = place_session(&cluster(), &Loads::new(), &constraints(parameters, handed_over, wish))?;
        Ok((placed.drafter_name().to_owned(), placed.expert_name().to_owned()))
    }

    fn asks(strategy: &str) -> Parameters {
        Parameters { strategy: strategy.into(), ..Parameters::default() }
    }

    #[test]
    fn each_strategy_has_its_owner() {
        let (drafter, expert) = (|| "d".to_owned(), || "e".to_owned());
        for strategy in ["speculative", "speculative_cascade", "cascade_query", "cascade_token"] {
            assert_eq!(names(&asks(strategy), false, &[]), Ok((drafter(), expert())));
        }
        assert_eq!(names(&asks("drafter"), false, &[]), Ok((drafter(), String::new())));
        assert_eq!(names(&asks("expert"), false, &[]), Ok((String::new(), expert())));
        assert_eq!(names(&asks("cascade_query"), true, &[]), Ok((String::new(), expert())));
    }

    #[test]
    fn without_a_drafter_the_expert_goes_on_unless_told_to_wait() {
        for strategy in ["speculative", "drafter", "cascade_token"] {
            assert_eq!(names(&asks(strategy), false, &["d"]), Ok((String::new(), "e".to_owned())));
            let waits = Parameters { on_drafter_loss: OnDrafterLoss::Wait.into(), ..asks(strategy) };
            assert!(matches!(names(&waits, false, &["d"]), Err(NoPlacement::Now(PlacementError::NoDrafter { .. }))));
        }
    }

    #[test]
    fn nobody_steps_in_for_a_drafter_that_is_only_busy() {
        let parameters = asks("speculative");
        let wish = Wish { model: "m", exclude: BTreeSet::from([NodeId("d".into())]), ..Wish::default() };
        let constraints = Constraints { step_in: false, ..constraints(&parameters, false, wish) };
        assert!(matches!(place_session(&cluster(), &Loads::new(), &constraints), Err(NoPlacement::Now(_))));
    }

    #[test]
    fn only_an_exact_text_goes_on_without_waiting_for_a_node_that_may_come_back() {
        let gone = |id: &str| Wish { model: "m", exclude: BTreeSet::from([NodeId(id.into())]), ..Wish::default() };
        let waits = |parameters: &Parameters, id| {
            let constraints = Constraints { break_promise: false, ..constraints(parameters, false, gone(id)) };
            matches!(place_session(&cluster(), &Loads::new(), &constraints), Err(NoPlacement::Now(_)))
        };
        assert!(!waits(&asks("speculative"), "d"));
        assert!(waits(&asks("speculative_cascade"), "d") && waits(&asks("drafter"), "d"));
        let alone = Parameters { on_expert_loss: OnExpertLoss::Drafter.into(), ..asks("speculative") };
        assert!(waits(&alone, "e"));
    }

    #[test]
    fn without_an_expert_the_session_waits_unless_told_to_go_on() {
        assert!(matches!(names(&asks("speculative"), false, &["e"]), Err(NoPlacement::Now(_))));
        assert!(matches!(names(&asks("expert"), false, &["e"]), Err(NoPlacement::Now(_))));
        let alone = Parameters { on_expert_loss: OnExpertLoss::Drafter.into(), ..asks("speculative") };
        assert_eq!(names(&alone, false, &["e"]), Ok(("d".to_owned(), String::new())));
        assert_eq!(names(&asks("drafter"), false, &["e"]), Ok(("d".to_owned(), String::new())));
    }

    #[test]
    fn a_quarantined_owner_is_not_chosen() {
        let loads = Loads::from([(NodeId("d".into()), Load { quarantined: true, ..Load::default() })]);
        let parameters = asks("speculative");
        let wish = Wish { model: "m", ..Wish::default() };
        assert!(place_session(&cluster(), &loads, &constraints(&parameters, false, wish)).unwrap().is_expert());
    }

    #[test]
    fn other_tokenizers_are_an_error_before_the_beginning_and_a_lost_drafter_after() {
        let mut snapshot = cluster();
        snapshot.nodes.get_mut(&NodeId("d".into())).unwrap().models[0].tokenizer_fingerprint = "u".into();
        let parameters = asks("speculative");
        let wish = Wish { model: "m", ..Wish::default() };
        let constraints = |begun| Constraints { begun, ..constraints(&parameters, false, wish.clone()) };
        let error = place_session(&snapshot, &Loads::new(), &constraints(false)).unwrap_err();
        assert!(matches!(error, NoPlacement::Ever(PlacementError::TokenizerMismatch { .. })));
        assert!(place_session(&snapshot, &Loads::new(), &constraints(true)).unwrap().is_expert());
    }

    #[test]
    fn only_an_exact_text_survives_the_loss_of_its_drafter() {
        let on_expert = alone(&node("e", Role::Expert));
        let maximal = |temperature| Parameters {
            coupling: "maximal".into(),
            temperature: Some(temperature),
            ..asks("speculative")
        };
        assert!(keeps_promise(&asks("speculative"), false, &on_expert));
        assert!(keeps_promise(&asks("expert"), false, &on_expert));
        assert!(keeps_promise(&maximal(0.0), false, &on_expert));
        assert!(!keeps_promise(&maximal(1.0), false, &on_expert));
        for lossy in ["drafter", "cascade_query", "cascade_token", "speculative_cascade"] {
            assert!(!keeps_promise(&asks(lossy), false, &on_expert), "{lossy}");
        }
        assert!(keeps_promise(&asks("cascade_query"), true, &on_expert), "a handover is part of the strategy");
    }

    #[test]
    fn a_drafter_keeps_the_promise_with_its_expert() {
        let on_drafter = alone(&node("d", Role::Drafter));
        let paired = Placement { expert: Some(node("e", Role::Expert)), ..on_drafter.clone() };
        assert!(keeps_promise(&asks("drafter"), false, &on_drafter));
        assert!(!keeps_promise(&asks("speculative"), false, &on_drafter));
        assert!(keeps_promise(&asks("speculative_cascade"), false, &paired));
    }

    #[test]
    fn fingerprints_are_pinned_by_the_first_owner_that_names_them() {
        let prints = |drafter: &str, expert: &str| v1::Fingerprints {
            drafter: drafter.into(),
            expert: expert.into(),
            ..Default::default()
        };
        let mut pinned = prints("", "e");
        assert!(agree(&mut pinned, &prints("d", "")).is_ok());
        assert_eq!(pinned, prints("d", "e"));
        assert!(agree(&mut pinned, &prints("d", "other")).is_err());
    }
}
