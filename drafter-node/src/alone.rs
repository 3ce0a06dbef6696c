//! The drafter alone: every token as it comes, and what it goes on with where there is no expert.

use cascadia_core::block::{Provenance, Score};
use cascadia_core::commit::{Finish, FinishReason};
use cascadia_core::drafting::Decoded;
use cascadia_core::session::Emitted;
use cascadia_node::owner::{Output, ResolvedSession, Scorer};
use cascadia_node::sessions::{EngineEvent, OpenSession};
use cascadia_proto::v1;
use tonic::Status;

use crate::engine::{DrafterReply, DrafterWork};

/// Strategy `drafter`: every token as it comes.
pub async fn drafter(session: OpenSession<DrafterWork>, begun: ResolvedSession) -> Result<(), Status> {
    let mut output = begun.output;
    output.cached_tokens = session.cached.min(begun.prompt_tokens) as u32;
    stream(session, output, v1::Speculation::default()).await
}

/// Streams what a session decodes alone until its text ends; `account` is what it did before.
pub async fn stream(
    mut session: OpenSession<DrafterWork>,
    mut output: Output,
    mut account: v1::Speculation,
) -> Result<(), Status> {
    loop {
        let (decoded, over) = next(&mut session).await?;
        account.drafted += decoded.len() as u64;
        account.accepted += decoded.len() as u64;
        let emitted: Vec<Emitted> = decoded.into_iter().map(|d| kept(d.token, d.score)).collect();
        let finish = output.emit(&emitted, Scorer::Drafter).await?;
        if let Some(finish) = finish.or_else(|| over.then_some(length())) {
            return output.finish(finish, account).await;
        }
    }
}

/// A token that nobody tested.
pub(crate) fn kept(token: u32, score: Score) -> Emitted {
    Emitted { token, provenance: Provenance::Accepted, score }
}

/// The text is as long as it may be.
pub(crate) fn length() -> Finish {
    Finish { reason: FinishReason::Length, matched: None }
}

/// The next decoded tokens, and whether the text is over.
pub(crate) async fn next(session: &mut OpenSession<DrafterWork>) -> Result<(Vec<Decoded>, bool), Status> {
    loop {
        if let EngineEvent::Reply(DrafterReply::Decoded(decoded, over)) = session.next().await? {
            return Ok((decoded, over));
        }
    }
}
