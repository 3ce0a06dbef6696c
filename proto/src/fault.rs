//! Whose fault an error is: the node's that says it, another node's, or the request's.
//!
//! `INTERNAL` and `UNAVAILABLE` blame the node that says them; every other code names the request, or a state that will
//! pass. An owner that repeats what its expert said names the expert beside it.

use std::error::Error as _;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The key of the node's name where the fault is not its who says it.
const NODE: &str = "cascadia-fault-of";

/// Whether whoever said this blames itself. What tonic makes of a broken transport has a source, and nobody said it.
#[must_use]
pub fn is_own(status: &Status) -> bool {
    let blames = matches!(status.code(), Code::Internal | Code::Unavailable);
    blames && status.source().is_none() && !status.metadata().contains_key(NODE)
}

/// `UNAVAILABLE` of a node that drains: it goes, and nothing is wrong with it.
#[must_use]
pub fn leaving(sentence: impl Into<String>) -> Status {
    of("nobody", Status::unavailable(sentence))
}

/// The same, repeated by another than the node that said it.
#[must_use]
pub fn of(node: &str, mut status: Status) -> Status {
    // A name that no header can carry is left out; that there is one is not.
    let name = MetadataValue::try_from(node).unwrap_or_else(|_| MetadataValue::from_static("another"));
    status.metadata_mut().insert(NODE, name);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_says_of_itself_blames_it() {
        assert!(is_own(&Status::internal("the engine failed")) && is_own(&Status::unavailable("the engine has ended")));
        for of_the_request in [
            Status::data_loss("the model computes no numbers"),
            Status::invalid_argument("the prompt is over the context"),
            Status::deadline_exceeded("the request's time is over"),
            Status::failed_precondition("the session outgrew the context"),
            Status::resource_exhausted("the node has no room"),
            Status::aborted("stale: epoch 3 is open for this session"),
            Status::cancelled("the router has gone"),
            Status::not_found("no such model"),
            Status::unknown("no trailers"),
        ] {
            assert!(!is_own(&of_the_request), "{of_the_request}");
        }
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let mut transport = Status::unavailable("broken");
        transport.set_source(std::sync::Arc::new(broken));
        assert!(!is_own(&transport), "nobody said it");
    }

    #[test]
    fn a_node_that_drains_blames_nobody() {
        let leaving = leaving("the node drains");
        assert!(!is_own(&leaving) && leaving.code() == Code::Unavailable);
    }

    #[test]
    fn a_repeated_error_blames_the_node_that_said_it() {
        for node in ["expert-1", "exp\u{e9}rt\n"] {
            let repeated = of(node, Status::internal("the engine failed"));
            assert!(!is_own(&repeated));
            assert_eq!((repeated.code(), repeated.message()), (Code::Internal, "the engine failed"));
        }
    }
}
