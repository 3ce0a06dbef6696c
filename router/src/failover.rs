//! What to do when an owner's stream ends: pure, so that every case stands in a test.

use std::error::Error as _;

use cascadia_proto::{fault, v1};
use tonic::{Code, Status};

use crate::transcript::Breach;

/// How an owner's stream ended.
#[derive(Debug)]
pub enum OwnerExit {
    /// The text is complete.
    Finished(v1::Finished),
    /// `cascade_query` fell short; nothing was committed.
    HandedOver(v1::Handover),
    /// The owner has no room.
    Full(Status),
    /// The owner said no, and another would say the same.
    Refused(Status),
    /// The owner failed, and says that it is its own fault.
    Failed(Status),
    /// The owner is gone, or goes.
    Lost(OwnerLoss),
    /// The owner broke the protocol.
    Broke(Breach),
}

/// How an owner was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerLoss {
    /// The connection is gone.
    Connection,
    /// The stream ended before the text did; the node may live.
    Stream,
    /// Its status says that it hangs.
    Hung,
    /// It answered that it takes or keeps no sessions, because it drains.
    Leaving,
    /// It answered that it failed: its engine did, or has ended.
    Failed,
    /// It cannot continue what another began: another model, another protocol.
    Incompatible,
    /// It said what it may not say.
    Broke,
}

impl OwnerLoss {
    /// Every way.
    pub const ALL: [Self; 7] =
        [Self::Connection, Self::Stream, Self::Hung, Self::Leaving, Self::Failed, Self::Incompatible, Self::Broke];

    /// The metric's label.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Connection => "owner_lost",
            Self::Stream => "owner_stream_lost",
            Self::Hung => "owner_hung",
            Self::Leaving => "owner_drain",
            Self::Failed => "owner_failed",
            Self::Incompatible => "owner_unfit",
            Self::Broke => "owner_broke_protocol",
        }
    }
}

/// Reads an error of an owner's stream.
#[must_use]
pub fn read_status(status: Status) -> OwnerExit {
    // What tonic made of a broken transport has a cause; what the owner itself said has none.
    if status.source().is_some() {
        return OwnerExit::Lost(OwnerLoss::Connection);
    }
    match status.code() {
        _ if fault::is_own(&status) => OwnerExit::Failed(status),
        Code::Unavailable => OwnerExit::Lost(OwnerLoss::Leaving),
        // No owner says these; they stand for streams that ended without a word.
        Code::Unknown | Code::Cancelled | Code::Aborted => OwnerExit::Lost(OwnerLoss::Stream),
        Code::ResourceExhausted => OwnerExit::Full(status),
        _ => OwnerExit::Refused(status),
    }
}

/// What is known of a session when an owner's stream ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Work is done that the client counts on: from here on the session may be delayed but not refused.
    pub begun: bool,
    /// The present owner had opened the session.
    pub opened: bool,
    /// Owners that had no room.
    pub full: u32,
    /// Owners that could not continue it.
    pub incompatible: u32,
    /// Owners in turn that failed by their own fault before they committed anything.
    pub failed: u32,
    /// Owners in turn whose streams ended after they opened the session and before they committed anything, or that hung
    /// before they did.
    pub fruitless: u32,
    /// Owners that broke the protocol, the present one among them.
    pub broke: u32,
}

impl Attempts {
    /// Whether an owner's no says something of that owner, not of the request, which others have accepted.
    fn is_incompatible(self, code: Code) -> bool {
        let of_the_owner = matches!(code, Code::FailedPrecondition | Code::NotFound | Code::Unimplemented);
        of_the_owner && self.begun && !self.opened && self.incompatible < MAX_INCOMPATIBLE
    }
}

/// Owners that may be unable to continue a session before the last one's answer is the client's.
pub const MAX_INCOMPATIBLE: u32 = 4;

/// Owners in turn that may fail a session by what they call their own fault before the last one's answer is the client's.
pub const MOST_FAILED: u32 = 4;

/// Owners in turn that may die of a session before it counts as the cause. Nodes lost otherwise are never counted.
pub const MAX_FRUITLESS: u32 = 8;

/// Owners that may break the protocol over a session before the client is told: what so many say alike is no fault of one.
pub const MOST_BROKE: u32 = 3;

/// What comes next.
#[derive(Debug)]
pub enum Action {
    /// Tell the client the end.
    Finish(v1::Finished),
    /// Place it on an expert, from the prompt.
    HandOver(v1::Handover),
    /// The owner is lost: place it again with what is committed, anywhere but there.
    Move(OwnerLoss),
    /// The owner has no room: try elsewhere; the client gets this answer where there is no elsewhere.
    TryElsewhere(Status),
    /// Give the client the owner's error.
    Answer(Status),
    /// No owner can be trusted with the session.
    Break(Breach),
    /// The session seems to kill its owners: end it.
    GiveUp,
}

/// What comes after an end.
#[must_use]
pub fn decide(end: OwnerExit, attempts: Attempts) -> Action {
    match end {
        OwnerExit::Finished(finished) => Action::Finish(finished),
        OwnerExit::HandedOver(handover) => Action::HandOver(handover),
        OwnerExit::Full(status) if attempts.begun || attempts.full <= 1 => Action::TryElsewhere(status),
        OwnerExit::Refused(status) if attempts.is_incompatible(status.code()) => Action::Move(OwnerLoss::Incompatible),
        // An engine that has ended is a lost node; one that failed may do so because of the session.
        OwnerExit::Failed(status) if status.code() == Code::Unavailable || attempts.failed < MOST_FAILED => {
            Action::Move(OwnerLoss::Failed)
        }
        OwnerExit::Full(status) | OwnerExit::Refused(status) | OwnerExit::Failed(status) => Action::Answer(status),
        OwnerExit::Broke(Breach::Fingerprint { .. }) if attempts.is_incompatible(Code::FailedPrecondition) => {
            Action::Move(OwnerLoss::Incompatible)
        }
        OwnerExit::Broke(breach) if attempts.broke >= MOST_BROKE => Action::Break(breach),
        OwnerExit::Broke(_) => Action::Move(OwnerLoss::Broke),
        OwnerExit::Lost(_) if attempts.fruitless >= MAX_FRUITLESS => Action::GiveUp,
        OwnerExit::Lost(loss) => Action::Move(loss),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Attempts {
        Attempts { begun: true, ..Attempts::default() }
    }

    #[test]
    fn a_definite_answer_is_the_clients() {
        for status in [
            Status::invalid_argument("the prompt is over the context"),
            Status::not_found("no such model"),
            Status::failed_precondition("protocols"),
            Status::deadline_exceeded("too late"),
            Status::data_loss("no numbers"),
            fault::of("expert-1", Status::internal("no expert could serve it")),
        ] {
            assert!(matches!(decide(read_status(status), Attempts::default()), Action::Answer(_)));
        }
    }

    #[test]
    fn an_owner_that_cannot_continue_is_left_for_one_that_can() {
        let refused = |attempts| decide(read_status(Status::failed_precondition("another model")), attempts);
        assert!(matches!(refused(begun()), Action::Move(OwnerLoss::Incompatible)));
        assert!(matches!(refused(Attempts { incompatible: MAX_INCOMPATIBLE, ..begun() }), Action::Answer(_)));
        assert!(matches!(refused(Attempts { opened: true, ..begun() }), Action::Answer(_)));
        assert!(matches!(decide(read_status(Status::invalid_argument("ids")), begun()), Action::Answer(_)));
    }

    #[test]
    fn a_lost_owner_is_replaced() {
        assert!(matches!(read_status(fault::leaving("draining")), OwnerExit::Lost(OwnerLoss::Leaving)));
        assert!(matches!(read_status(Status::unknown("no trailers")), OwnerExit::Lost(OwnerLoss::Stream)));
        let broken = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(matches!(read_status(broken), OwnerExit::Lost(OwnerLoss::Connection)));
        for loss in [OwnerLoss::Connection, OwnerLoss::Stream, OwnerLoss::Hung, OwnerLoss::Leaving] {
            for attempts in [begun(), Attempts::default()] {
                assert!(matches!(decide(OwnerExit::Lost(loss), attempts), Action::Move(to) if to == loss));
            }
        }
    }

    #[test]
    fn an_owner_that_failed_is_left_for_another_until_so_many_did() {
        let decide = |status: Status, failed| decide(read_status(status), Attempts { failed, ..Attempts::default() });
        let failed = |failed| decide(Status::internal("the engine failed"), failed);
        assert!(matches!(failed(1), Action::Move(OwnerLoss::Failed)));
        assert!(matches!(failed(MOST_FAILED - 1), Action::Move(OwnerLoss::Failed)));
        assert!(matches!(failed(MOST_FAILED), Action::Answer(status) if status.code() == Code::Internal));
        let ended = |failed| decide(Status::unavailable("the engine has ended"), failed);
        assert!(matches!(ended(MOST_FAILED), Action::Move(OwnerLoss::Failed)), "whatever the session is");
    }

    #[test]
    fn a_full_owner_is_tried_once_elsewhere_before_the_session_began_and_always_after() {
        let full = |attempts| decide(read_status(Status::resource_exhausted("no slot")), attempts);
        assert!(matches!(full(Attempts { full: 1, ..Attempts::default() }), Action::TryElsewhere(_)));
        assert!(matches!(full(Attempts { full: 2, ..Attempts::default() }), Action::Answer(_)));
        assert!(matches!(full(Attempts { full: 9, ..begun() }), Action::TryElsewhere(_)));
    }

    #[test]
    fn an_owner_that_breaks_the_protocol_is_replaced_and_so_many_are_an_error() {
        let broke = |attempts| decide(OwnerExit::Broke(Breach::Unexpected { what: "nonsense" }), attempts);
        for attempts in [begun(), Attempts::default(), Attempts { opened: true, ..begun() }] {
            assert!(matches!(broke(Attempts { broke: MOST_BROKE - 1, ..attempts }), Action::Move(OwnerLoss::Broke)));
            assert!(matches!(broke(Attempts { broke: MOST_BROKE, ..attempts }), Action::Break(_)));
        }
    }

    #[test]
    fn a_session_that_kills_its_owners_ends() {
        let lost = |fruitless| decide(OwnerExit::Lost(OwnerLoss::Stream), Attempts { fruitless, ..begun() });
        assert!(matches!(lost(MAX_FRUITLESS - 1), Action::Move(_)));
        assert!(matches!(lost(MAX_FRUITLESS), Action::GiveUp));
    }
}
