//! `/v1/completions`: plain text or token ids, one prompt or several.

use cascadia_core::limits;
use cascadia_proto::prompt::{EncodedPrompt, IdsWriter, Shape};

use crate::http::asked::{CompletionRequest, MOST_SESSIONS};
use crate::http::endpoint::Endpoint;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::json::{Json, Read, wrong};

/// Reads a request.
///
/// # Errors
/// The field that cannot be meant, is not known or not supported.
pub fn read(body: &[u8]) -> Result<CompletionRequest, ApiError> {
    let mut body = Fields::of_body(body)?;
    let prompts = prompts(body.required("prompt")?)?;
    let mut asked = CompletionRequest::read(&mut body, Endpoint::Text)?;
    asked.prompts = prompts;
    asked.parameters.logprobs = logprobs(&mut body)?;
    asked.echo = body.get("echo")?.unwrap_or(false);
    check_echo(&asked)?;
    let answers = asked.answers;
    let best = "answers are not ranked here: set it to n or leave it out";
    body.refuse("best_of", |value| u32::read(value) == Some(answers), best)?;
    body.refuse("suffix", |value| value.is(""), "these models write forward only: leave it out")?;
    body.finish()?;
    asked.bounded()
}

fn logprobs(body: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
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
fn check_echo(asked: &CompletionRequest) -> Result<(), ApiError> {
    let ids = asked.prompts.iter().any(|prompt| prompt.shape() == Shape::Ids);
    let message = match (asked.echo, ids, asked.parameters.logprobs.is_some()) {
        (true, true, _) => "echo repeats prompts of text only: send the prompt as text, or leave echo out",
        (true, _, true) => "a prompt's own tokens are not scored: ask for echo or for logprobs",
        _ => return Ok(()),
    };
    Err(ApiError::field("unsupported_parameter", "echo", message))
}

fn prompts(value: Json<'_>) -> Result<Vec<EncodedPrompt>, ApiError> {
    const KIND: &str = "a string, an array of strings, an array of token ids or an array of such arrays";
    let wrong = || wrong("prompt", KIND, value);
    if !value.is_array() {
        return Ok(vec![prompt(value).ok_or_else(wrong)?]);
    }
    let (mut prompts, mut count, mut first) = (Vec::new(), 0, None);
    if value.is_empty_array() {
        return Err(ApiError::field("invalid_value", "prompt", "prompt is empty: send some text or a token id"));
    }
    if value.text()[1..].trim_start().starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
        return Ok(vec![ids(value).ok_or_else(wrong)?]);
    }
    value.each(|_, element| {
        count += 1;
        // All of one kind.
        if count <= MOST_SESSIONS && *first.get_or_insert(element.is_string()) == element.is_string() {
            prompts.push(prompt(element).or_else(|| ids(element)).ok_or_else(wrong)?);
        }
        Ok(())
    })?;
    if count > MOST_SESSIONS {
        let message = format!("prompt has {count} prompts; at most {MOST_SESSIONS} may be sent at once");
        return Err(ApiError::field("invalid_value", "prompt", message));
    }
    if prompts.len() == count { Ok(prompts) } else { Err(wrong()) }
}

/// A string.
fn prompt(value: Json<'_>) -> Option<EncodedPrompt> {
    value.string(EncodedPrompt::of_text).ok()
}

/// An array of token ids.
fn ids(value: Json<'_>) -> Option<EncodedPrompt> {
    // An id and its comma take more than its varint.
    let mut ids = IdsWriter::with_capacity(value.text().len());
    value.ids(|id| ids.push(id)).ok()?;
    Some(ids.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(body: &Value) -> Result<CompletionRequest, ApiError> {
        read(body.to_string().as_bytes())?.resolve(&["demo".to_owned()])
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
        assert_eq!((asked.request("r", "").answers, asked.sessions()), (2, 4));
        assert_eq!((asked.echo_text(1), asked.echo_text(2)), ("a", "b"));
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
            (json!({"prompt": [[1], 2]}), "prompt"),
            (json!({"prompt": [1, [2]]}), "prompt"),
            (json!({"prompt": ["a", [2]]}), "prompt"),
            (json!({"prompt": [null]}), "prompt"),
            (json!({"prompt": [4294967296u64]}), "prompt"),
            (json!({"prompt": vec!["a"; 257]}), "prompt"),
            (json!({"prompt": ["a", "b", "c"], "n": 100}), "prompt"),
            (json!({"prompt": "a", "best_of": 2}), "best_of"),
            (json!({"prompt": "a", "suffix": "b"}), "suffix"),
            (json!({"prompt": [1], "echo": true}), "echo"),
            (json!({"prompt": "x".repeat(40_000), "echo": true, "n": 128}), "echo"),
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
