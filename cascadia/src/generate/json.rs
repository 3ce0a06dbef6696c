//! A whole answer as JSON.

use cascadia_proto::v1;
use serde_json::{Value, json};

use crate::client::{Answer, provenance_name};

/// The whole answer as one object.
#[must_use]
pub fn to_json(answer: &Answer) -> Value {
    let (usage, speculation) = (answer.usage(), answer.speculation());
    let parameters = answer.started.parameters.clone().unwrap_or_default();
    let mut object = json!({
        "text": answer.text,
        "token_ids": answer.token_ids,
        "provenance": answer.provenance.iter().map(|&p| provenance_name(p)).collect::<Vec<_>>(),
        "finish_reason": match answer.finished.reason() {
            v1::FinishReason::Stop => Some("stop"),
            v1::FinishReason::Length => Some("length"),
            v1::FinishReason::Unspecified => None,
        },
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "speculation": {
            "blocks": speculation.blocks,
            "drafted": speculation.drafted,
            "accepted": speculation.accepted,
            "relaxed": speculation.relaxed,
            "deferred": speculation.deferred,
            "expert_passes": speculation.expert_passes,
            "moves": speculation.moves,
            "stale_blocks": speculation.stale_blocks,
            "score": speculation.score,
        },
        "seed": answer.started.seed,
        "reproducible": answer.finished.reproducible,
        "model": answer.started.model,
        "request_id": answer.started.request_id,
        "parameters": {
            "strategy": parameters.strategy,
            "rule": some(&parameters.rule),
            "alpha": parameters.alpha,
            "coupling": some(&parameters.coupling),
            "temperature": parameters.temperature,
            "top_k": parameters.top_k,
            "top_p": parameters.top_p,
            "min_p": parameters.min_p,
            "draft_length": parameters.draft_length,
            "max_tokens": parameters.max_tokens,
        },
    });
    if let Some(text) = &answer.finished.stop_string {
        object["stop_string"] = json!(text);
    }
    if let Some(token) = answer.finished.stop_token {
        object["stop_token"] = json!(token);
    }
    if parameters.logprobs.is_some() {
        object["logprobs"] = answer
            .logprobs
            .iter()
            .map(|l| {
                let top: Vec<Value> = l.top.iter().map(|a| json!({"token": a.token, "logprob": a.logprob})).collect();
                json!({"expert": l.expert, "drafter": l.drafter, "top": top})
            })
            .collect();
    }
    object
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use cascadia_proto::v1::generate_response::Event;

    use super::*;

    #[test]
    fn json_has_the_promised_shape() {
        let mut answer = Answer::default();
        answer.take(Event::Started(v1::Started { seed: 3, ..Default::default() }));
        answer.take(Event::Tokens(v1::Tokens {
            ids: vec![5, 6],
            text: "ab".into(),
            provenance: vec![v1::Provenance::Relaxed.into(), v1::Provenance::Deferred.into()],
            ..Default::default()
        }));
        answer.take(Event::Finished(v1::Finished {
            reason: v1::FinishReason::Stop.into(),
            usage: Some(v1::Usage { prompt_tokens: 4, completion_tokens: 2, cached_tokens: 0 }),
            speculation: Some(v1::Speculation { expert_passes: 1, ..Default::default() }),
            reproducible: true,
            ..Default::default()
        }));
        let object = to_json(&answer);
        assert_eq!(object["text"], "ab");
        assert_eq!(object["token_ids"], json!([5, 6]));
        assert_eq!(object["provenance"], json!(["relaxed", "deferred"]));
        assert_eq!(object["finish_reason"], "stop");
        assert_eq!(object["usage"]["completion_tokens"], 2);
        assert_eq!(object["speculation"]["expert_passes"], 1);
        assert_eq!((&object["seed"], &object["reproducible"]), (&json!(3), &json!(true)));
        assert!(object.get("logprobs").is_none());
    }
}
