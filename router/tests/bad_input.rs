//! Whatever a body holds, it is read as a request or refused with a field and a sentence; nothing panics.

use cascadia_router::http::asked::CompletionRequest;
use cascadia_router::http::error::ApiError;
use cascadia_router::http::{chat, completions};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The body as one of the endpoints reads it where `demo` is served.
fn read(endpoint: usize, body: &[u8]) -> Result<CompletionRequest, ApiError> {
    [chat::read, completions::read][endpoint](body)?.resolve(&["demo".to_owned()])
}

/// A request that asks for everything that can be asked for.
fn full(endpoint: usize) -> Value {
    let mut body = json!({
        "model": "demo:token_v3@0.3", "n": 2, "stream": true, "stream_options": {"include_usage": true},
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "seed": -7,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": 1.5}, "max_tokens": 9, "stop": ["a", "b"],
        "stop_token_ids": [2], "ignore_eos": true, "min_tokens": 0, "prompt_cache_key": "c", "priority": -1,
        "cache_salt": "s", "request_id": "r", "user": "u",
        "cascadia": {"draft_length": 4, "wire_top_k": 8, "banned": [1], "on_expert_loss": "wait", "provenance": true,
                     "timeout_ms": 1000, "on_drafter_loss": "expert", "strict_first_tokens": 1},
    });
    let own = [
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "logprobs": true,
               "top_logprobs": 3, "tools": [], "response_format": {"type": "text"}}),
        json!({"prompt": ["a", "b"], "echo": true, "best_of": 2, "suffix": ""}),
    ];
    body.as_object_mut().unwrap().extend(own[endpoint].as_object().unwrap().clone());
    body
}

fn any_json() -> impl Strategy<Value = Value> {
    let names = prop_oneof![
        Just("model".to_owned()),
        Just("messages".to_owned()),
        Just("prompt".to_owned()),
        Just("role".to_owned()),
        Just("content".to_owned()),
        Just("type".to_owned()),
        Just("text".to_owned()),
        Just("cascadia".to_owned()),
        Just("stop".to_owned()),
        Just("n".to_owned()),
        Just("logit_bias".to_owned()),
        Just("bild".to_owned()),
        ".{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(1e308)),
        ".{0,12}".prop_map(Value::from),
        "(demo|user|text|none|token_v3|demo:[a-z@0-9.:-]{0,12})".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        let object = prop::collection::vec((names.clone(), inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::from),
            object.prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A request, or the envelope.
fn judged(outcome: Result<CompletionRequest, ApiError>) -> Result<(), TestCaseError> {
    match outcome {
        Ok(asked) => {
            prop_assert!(!asked.prompts.is_empty());
            prop_assert_eq!(asked.request("r", "t").sessions(), asked.sessions());
        }
        Err(error) => {
            let envelope = json!(error.envelope());
            prop_assert!(error.status.is_client_error());
            prop_assert!(envelope["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
            prop_assert!(envelope["error"]["type"].is_string() && envelope["error"]["code"].is_string());
        }
    }
    Ok(())
}

/// Every place in a value that can be replaced.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(name, inner)| places(inner, &format!("{at}/{name}"), found)),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, inner)| places(inner, &format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

#[test]
fn a_full_request_is_accepted() {
    for endpoint in 0..2 {
        let asked = read(endpoint, full(endpoint).to_string().as_bytes()).unwrap();
        assert_eq!((asked.model.as_str(), asked.parameters.rule.as_str(), asked.answers), ("demo", "token_v3", 2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn bytes_are_no_surprise(bytes in prop::collection::vec(any::<u8>(), 0..400), endpoint in 0..2usize) {
        judged(read(endpoint, &bytes))?;
    }

    #[test]
    fn neither_is_json(value in any_json(), endpoint in 0..2usize) {
        judged(read(endpoint, value.to_string().as_bytes()))?;
    }

    #[test]
    fn nor_a_request_with_something_else_in_one_place(
        value in any_json(),
        place in any::<prop::sample::Index>(),
        endpoint in 0..2usize,
    ) {
        let mut body = full(endpoint);
        let mut found = Vec::new();
        places(&body, "", &mut found);
        let place: &String = place.get(&found);
        *body.pointer_mut(place).expect("a place") = value;
        judged(read(endpoint, body.to_string().as_bytes()))?;
    }

    #[test]
    fn nor_one_with_a_field_that_nobody_knows(name in "[a-z_]{12,20}", endpoint in 0..2usize, value in any_json()) {
        let mut body = full(endpoint);
        let known = value.is_null() || body.get(&name).is_some();
        body[&name] = value;
        let outcome = read(endpoint, body.to_string().as_bytes());
        if !known && let Ok(asked) = outcome {
            let ignored = ["service_tier", "safety_identifier", "reasoning_effort", "prompt_cache_retention"];
            prop_assert!(ignored.contains(&name.as_str()), "{name} was accepted: {asked:?}");
        } else {
            judged(outcome)?;
        }
    }
}
