//! `cascade_query` up to its decision: the drafter's whole answer, and whether it is good enough.

use cascadia_core::block::Score;
use cascadia_core::drafting::Decoded;
use cascadia_core::session::{Counters, Emitted};
use cascadia_node::owner::{self, OpenedRun, ResolvedSession, Scorer};
use cascadia_node::sessions::OpenSession;
use cascadia_proto::v1;
use cascadia_proto::v1::run_response::Message as Response;
use tonic::Status;

use crate::alone::{kept, length, next};
use crate::engine::DrafterWork;
use crate::generate::Generation;
use crate::node::DrafterNode;

/// Strategy `cascade_query`: the whole answer first; its score decides whether it is the answer.
pub async fn cascade_query(
    (node, opening): (&DrafterNode, &OpenedRun),
    mut session: OpenSession<DrafterWork>,
    begun: ResolvedSession,
    alpha: f64,
) -> Result<(), Status> {
    let mut answer: Vec<Decoded> = Vec::new();
    let stop_strings = opening.resolved.parameters.as_ref().map_or(&[][..], |p| &p.stop);
    let mut shadow = node.text.clone().begin(
        &begun.ids[..begun.prompt_tokens],
        cascadia_core::commit::StopSettings {
            stop_ids: begun.decoding.stop_ids.clone(),
            stop_strings: stop_strings.to_vec(),
            max_tokens: begun.decoding.max_tokens,
        },
    );
    shadow.commit(&begun.ids[begun.prompt_tokens..]);
    // The score is of the tokens that would be the answer, so the text decides where it ends, not the engine.
    let mut over = false;
    while !over {
        let (decoded, ended) = next(&mut session).await?;
        over = ended;
        for token in decoded {
            let committed = shadow.commit(&[token.token]);
            if committed.taken == 1 {
                answer.push(token);
            }
            over |= committed.finish.is_some();
            if committed.finish.is_some() {
                break;
            }
        }
    }
    drop(session);
    let count = answer.len() as u64;
    let score = answer.iter().map(|d| d.raw_logprob).sum::<f64>() / (count.max(1) as f64);
    let counters = Counters { drafted: count, ..Counters::default() };
    if score < alpha {
        let speculation = Some(v1::Speculation { score: Some(score), ..owner::speculation(counters) });
        return begun.output.send(Response::Handover(v1::Handover { score, speculation })).await;
    }
    let ResolvedSession { decoding, ids, prompt_tokens, mut output } = begun;
    let mut emitted: Vec<Emitted> = answer.into_iter().map(|d| kept(d.token, Score::default())).collect();
    let mut counters = Counters { accepted: count, ..counters };
    if decoding.logprobs.is_some() {
        // Whoever asks for log-probabilities gets the expert's: it scores the kept answer in its catch-up chunk.
        let mut generation = Generation::new(node, opening, decoding, ids, prompt_tokens);
        counters.expert_passes += generation.score(&mut emitted, &mut output).await?;
    }
    let finish = output.emit(&emitted, Scorer::Expert).await?.unwrap_or_else(length);
    let speculation = v1::Speculation { score: Some(score), ..owner::speculation(counters) };
    output.finish(finish, speculation).await
}
