//! What a gRPC status says on a span.

use tonic::{Code, Status};

use super::Span;

impl Span {
    /// It ended with this status. A call that was cancelled is no failure.
    pub fn fail_with(&mut self, status: &Status) {
        match status.code() {
            Code::Ok | Code::Cancelled => {}
            code => self.fail(code_name(code), || status.message().to_owned()),
        }
    }
}

/// A status code as metrics label it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
