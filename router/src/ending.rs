//! What to do when an owner's stream ends: pure, so that every case stands in a test.

use std::error::Error as _;

use cascadia_proto::{fault, v1};
use tonic::{Code, Status};

use crate::transcript::Breach;

/// How an owner's stream ended.
#[derive(Debug)]
pub enum End {
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
    Lost(Loss),
    /// The owner broke the protocol.
    Broke(Breach),
}

/// How an owner was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
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
    Unfit,
    /// It said what it may not say.
    Broke,
}

impl Loss {
    /// Every way.
    pub const ALL: [Self; 7] =
        [Self::Connection, Self::Stream, Self::Hung, Self::Leaving, Self::Failed, Self::Unfit, Self::Broke];

    /// The metric's label.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Connection => "owner_lost",
            Self::Stream => "owner_stream_lost",
            Self::Hung => "owner_hung",
            Self::Leaving => "owner_drain",
            Self::Failed => "owner_failed",
            Self::Unfit => "owner_unfit",
            Self::Broke => "owner_broke_protocol",
        }
    }
}

/// Reads an error of an owner's stream.
#[must_use]
pub fn read_status(status: Status) -> End {
    // What tonic made of a broken transport has a cause; what the owner itself said has none.
    if status.source().is_some() {
        return End::Lost(Loss::Connection);
    }
    match status.code() {
        _ if fault::is_own(&status) => End::Failed(status),
        Code::Unavailable => End::Lost(Loss::Leaving),
        // No owner says these; they stand for streams that ended without a word.
        Code::Unknown | Code::Cancelled | Code::Aborted => End::Lost(Loss::Stream),
        Code::ResourceExhausted => End::Full(status),
        _ => End::Refused(status),
    }
}

/// What is known of a session when an owner's stream ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoFar {
    /// Work is done that the client counts on: from here on the session may be delayed but not refused.
    pub begun: bool,
    /// The present owner had opened the session.
    pub opened: bool,
    /// Owners that had no room.
    pub full: u32,
    /// Owners that could not continue it.
    pub unfit: u32,
    /// Owners in turn that failed by their own fault before they committed anything.
    pub failed: u32,
    /// Owners in turn whose streams ended after they opened the session and before they committed anything, or that hung
    /// before they did.
    pub barren: u32,
    /// Owners that broke the protocol, the present one among them.
    pub broke: u32,
}

impl SoFar {
    /// Whether an owner's no says something of that owner, not of the request, which others have accepted.
    fn is_unfit(self, code: Code) -> bool {
        let of_the_owner = matches!(code, Code::FailedPrecondition | Code::NotFound | Code::Unimplemented);
        of_the_owner && self.begun && !self.opened && self.unfit < MOST_UNFIT
    }
}

/// Owners that may be unable to continue a session before the last one's answer is the client's.
pub const MOST_UNFIT: u32 = 4;

/// Owners in turn that may fail a session by what they call their own fault before the last one's answer is the client's.
pub const MOST_FAILED: u32 = 4;

/// Owners in turn that may die of a session before it counts as the cause. Nodes lost otherwise are never counted.
pub const MOST_BARREN: u32 = 8;

/// Owners that may break the protocol over a session before the client is told: what so many say alike is no fault of one.
pub const MOST_BROKE: u32 = 3;

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// Tell the client the end.
    Finish(v1::Finished),
    /// Place it on an expert, from the prompt.
    HandOver(v1::Handover),
    /// The owner is lost: place it again with what is committed, anywhere but there.
    Move(Loss),
    /// The owner has no room: try elsewhere; the client gets this answer where there is no elsewhere.
    TryElsewhere(Status),
    /// Give the client the owner's error.
    Answer(Status),
    /// No owner can be trusted with the session.
    Break(Breach),
    /// The session seems to kill its owners: end it.
    Condemn,
}

/// What comes after an end.
#[must_use]
pub fn after(end: End, so_far: SoFar) -> Next {
    match end {
        End::Finished(finished) => Next::Finish(finished),
        End::HandedOver(handover) => Next::HandOver(handover),
        End::Full(status) if so_far.begun || so_far.full <= 1 => Next::TryElsewhere(status),
        End::Refused(status) if so_far.is_unfit(status.code()) => Next::Move(Loss::Unfit),
        // An engine that has ended is a lost node; one that failed may do so because of the session.
        End::Failed(status) if status.code() == Code::Unavailable || so_far.failed < MOST_FAILED => {
            Next::Move(Loss::Failed)
        }
        End::Full(status) | End::Refused(status) | End::Failed(status) => Next::Answer(status),
        End::Broke(Breach::Fingerprint { .. }) if so_far.is_unfit(Code::FailedPrecondition) => Next::Move(Loss::Unfit),
        End::Broke(breach) if so_far.broke >= MOST_BROKE => Next::Break(breach),
        End::Broke(_) => Next::Move(Loss::Broke),
        End::Lost(_) if so_far.barren >= MOST_BARREN => Next::Condemn,
        End::Lost(loss) => Next::Move(loss),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> SoFar {
        SoFar { begun: true, ..SoFar::default() }
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
            assert!(matches!(after(read_status(status), SoFar::default()), Next::Answer(_)));
        }
    }

    #[test]
    fn an_owner_that_cannot_continue_is_left_for_one_that_can() {
        let refused = |so_far| after(read_status(Status::failed_precondition("another model")), so_far);
        assert!(matches!(refused(begun()), Next::Move(Loss::Unfit)));
        assert!(matches!(refused(SoFar { unfit: MOST_UNFIT, ..begun() }), Next::Answer(_)));
        assert!(matches!(refused(SoFar { opened: true, ..begun() }), Next::Answer(_)));
        assert!(matches!(after(read_status(Status::invalid_argument("ids")), begun()), Next::Answer(_)));
    }

    #[test]
    fn a_lost_owner_is_replaced() {
        assert!(matches!(read_status(fault::leaving("draining")), End::Lost(Loss::Leaving)));
        assert!(matches!(read_status(Status::unknown("no trailers")), End::Lost(Loss::Stream)));
        let broken = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(matches!(read_status(broken), End::Lost(Loss::Connection)));
        for loss in [Loss::Connection, Loss::Stream, Loss::Hung, Loss::Leaving] {
            for so_far in [begun(), SoFar::default()] {
                assert!(matches!(after(End::Lost(loss), so_far), Next::Move(to) if to == loss));
            }
        }
    }

    #[test]
    fn an_owner_that_failed_is_left_for_another_until_so_many_did() {
        let after = |status: Status, failed| after(read_status(status), SoFar { failed, ..SoFar::default() });
        let failed = |failed| after(Status::internal("the engine failed"), failed);
        assert!(matches!(failed(1), Next::Move(Loss::Failed)));
        assert!(matches!(failed(MOST_FAILED - 1), Next::Move(Loss::Failed)));
        assert!(matches!(failed(MOST_FAILED), Next::Answer(status) if status.code() == Code::Internal));
        let ended = |failed| after(Status::unavailable("the engine has ended"), failed);
        assert!(matches!(ended(MOST_FAILED), Next::Move(Loss::Failed)), "whatever the session is");
    }

    #[test]
    fn a_full_owner_is_tried_once_elsewhere_before_the_session_began_and_always_after() {
        let full = |so_far| after(read_status(Status::resource_exhausted("no slot")), so_far);
        assert!(matches!(full(SoFar { full: 1, ..SoFar::default() }), Next::TryElsewhere(_)));
        assert!(matches!(full(SoFar { full: 2, ..SoFar::default() }), Next::Answer(_)));
        assert!(matches!(full(SoFar { full: 9, ..begun() }), Next::TryElsewhere(_)));
    }

    #[test]
    fn an_owner_that_breaks_the_protocol_is_replaced_and_so_many_are_an_error() {
        let broke = |so_far| after(End::Broke(Breach::Unexpected { what: "nonsense" }), so_far);
        for so_far in [begun(), SoFar::default(), SoFar { opened: true, ..begun() }] {
            assert!(matches!(broke(SoFar { broke: MOST_BROKE - 1, ..so_far }), Next::Move(Loss::Broke)));
            assert!(matches!(broke(SoFar { broke: MOST_BROKE, ..so_far }), Next::Break(_)));
        }
    }

    #[test]
    fn a_session_that_kills_its_owners_ends() {
        let lost = |barren| after(End::Lost(Loss::Stream), SoFar { barren, ..begun() });
        assert!(matches!(lost(MOST_BARREN - 1), Next::Move(_)));
        assert!(matches!(lost(MOST_BARREN), Next::Condemn));
    }
}
