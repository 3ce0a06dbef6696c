//! `/v1/completions`: plain text or token ids, one prompt or several.

use cascadia_core::limits;
use cascadia_proto::v1::prompt::Kind;
use cascadia_proto::v1::{Prompt, TokenIds};
use serde_json::Value;

use crate::http::asked::{Asked, MOST_SESSIONS};
use crate::http::endpoint::Endpoint;
use crate::http::error::ApiError;
use crate::http::fields::{Fields, Read, wrong};

/// Reads a request.
///
/// # Errors
/// The field that cannot be meant, is not known or not supported.
pub fn read(body: &[u8]) -> Result<Asked, ApiError> {
    let mut body = Fields::of_body(body)?;
    let prompts = prompts(body.required("prompt")?)?;
    let mut asked = Asked::read(&mut body, Endpoint::Text)?;
    asked.prompts = prompts;
    asked.parameters.logprobs = logprobs(&mut body)?;
    asked.echo = body.get("echo")?.unwrap_or(false);
    check_echo(&asked)?;
    let answers = asked.answers;
    let best = "answers are not ranked here: set it to n or leave it out";
    body.refuse("best_of", |value| value.as_u64() == Some(answers.into()), best)?;
    body.refuse("suffix", |value| value == "", "these models write forward only: leave it out")?;
    body.finish()?;
    asked.bounded()
}

fn logprobs(body: &mut Fields) -> Result<Option<u32>, ApiError> {
    let most = limits::MAX_TOP_LOGPROBS as u32;
    match body.get::<u32>("logprobs")? {
        Some(top) if top > most => {
            let message = format!("logprobs must be between 0 and {most}, not {top}");
            Err(ApiError::field("invalid_value", "logprobs", message))
        }
        top => Ok(top),
    }
}

/// An echo repeats text; what it would have to compute for ids or for the prompt's log-probabilities is refused.
fn check_echo(asked: &Asked) -> Result<(), ApiError> {
    let ids = asked.prompts.iter().any(|prompt| matches!(prompt.kind, Some(Kind::Ids(_))));
    let message = match (asked.echo, ids, asked.parameters.logprobs.is_some()) {
        (true, true, _) => "echo repeats prompts of text only: send the prompt as text, or leave echo out",
        (true, _, true) => "a prompt's own tokens are not scored: ask for echo or for logprobs",
        _ => return Ok(()),
    };
    Err(ApiError::field("unsupported_parameter", "echo", message))
}

fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    const KIND: &str = "a string, an array of strings, an array of token ids or an array of such arrays";
    let text = |text: String| Prompt { kind: Some(Kind::Text(text)) };
    let ids = |ids: Vec<u32>| Prompt { kind: Some(Kind::Ids(TokenIds { ids })) };
    let prompts = match &value {
        Value::String(prompt) => vec![text(prompt.clone())],
        Value::Array(values) if values.is_empty() => {
            return Err(ApiError::field("invalid_value", "prompt", "prompt is empty: send some text or a token id"));
        }
        Value::Array(values) if values.iter().all(Value::is_number) => {
            vec![ids(Vec::read(&value).ok_or_else(|| wrong("prompt", KIND, &value))?)]
        }
        Value::Array(values) if values.len() > MOST_SESSIONS => {
            let message = format!("prompt has {} prompts; at most {MOST_SESSIONS} may be sent at once", values.len());
            return Err(ApiError::field("invalid_value", "prompt", message));
        }
        Value::Array(_) => Vec::<String>::read(&value)
            .map(|texts| texts.into_iter().map(text).collect())
            .or_else(|| Some(Vec::<Vec<u32>>::read(&value)?.into_iter().map(ids).collect()))
            .ok_or_else(|| wrong("prompt", KIND, &value))?,
        other => return Err(wrong("prompt", KIND, other)),
    };
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(body: &Value) -> Result<Asked, ApiError> {
        read(body.to_string().as_bytes())?.meant(&["demo".to_owned()])
    }

    #[test]
    fn a_prompt_is_text_or_ids_one_or_several() {
        for (prompt, count) in
            [(json!("a"), 1), (json!(["a", "b"]), 2), (json!([1, 2, 3]), 1), (json!([[1, 2], [3]]), 2)]
        {
            assert_eq!(parsed(&json!({"prompt": prompt})).unwrap().prompts.len(), count, "{prompt}");
        }
    }

    #[test]
    fn choices_of_several_prompts_begin_anew_with_each() {
        let asked = parsed(&json!({"prompt": ["a", "b"], "n": 2, "best_of": 2, "echo": true})).unwrap();
        let choices: Vec<u32> = asked.requests("r", "").iter().map(|request| request.choice).collect();
        assert_eq!(choices, [0, 1, 0, 1]);
        assert_eq!((asked.echoed(1), asked.echoed(2)), ("a", "b"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (body, param) in [
            (json!({}), "prompt"),
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": 5}), "prompt"),
            (json!({"prompt": ["a", 1]}), "prompt"),
            (json!({"prompt": [-1]}), "prompt"),
            (json!({"prompt": [1.5]}), "prompt"),
            (json!({"prompt": [[1], ["a"]]}), "prompt"),
            (json!({"prompt": vec!["a"; 257]}), "prompt"),
            (json!({"prompt": ["a", "b", "c"], "n": 100}), "prompt"),
            (json!({"prompt": "a", "best_of": 2}), "best_of"),
            (json!({"prompt": "a", "suffix": "b"}), "suffix"),
            (json!({"prompt": [1], "echo": true}), "echo"),
            (json!({"prompt": "a", "echo": true, "logprobs": 1}), "echo"),
            (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
            (json!({"prompt": "a", "logprobs": true}), "logprobs"),
            (json!({"prompt": "a", "messages": []}), "messages"),
        ] {
            let error = parsed(&body).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
        }
    }
}
