//! `/v1/chat/completions`: a conversation, rendered by the model's own template at the node that owns the session.

use cascadia_core::limits;
use cascadia_proto::prompt::{EncodedPrompt, MessagesWriter};

use crate::http::asked::CompletionRequest;
use crate::http::endpoint::Endpoint;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::json::{Json, wrong};

/// Reads a request.
///
/// # Errors
/// The field that cannot be meant, is not known or not supported.
pub fn read(body: &[u8]) -> Result<CompletionRequest, ApiError> {
    let mut body = Fields::of_body(body)?;
    let messages = messages(body.required("messages")?)?;
    let mut asked = CompletionRequest::read(&mut body, Endpoint::Chat)?;
    asked.prompts = vec![messages];
    asked.parameters.logprobs = logprobs(&mut body)?;
    refuse(&mut body)?;
    body.finish()?;
    asked.bounded()
}

/// How many alternatives each position reports, if log-probabilities are asked for.
fn logprobs(body: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
    let asked = body.get::<bool>("logprobs")?.unwrap_or(false);
    let top = body.get::<u32>("top_logprobs")?;
    let most = limits::MAX_TOP_LOGPROBS as u32;
    match top {
        Some(top) if top > most => {
            let message = format!("top_logprobs must be between 0 and {most}, not {top}");
            Err(ApiError::field("invalid_value", "top_logprobs", message))
        }
        Some(top) if top > 0 && !asked => {
            let message = "top_logprobs is read where logprobs is true: set it, or leave top_logprobs out";
            Err(ApiError::field("invalid_value", "top_logprobs", message))
        }
        top => Ok(asked.then(|| top.unwrap_or(0))),
    }
}

/// What no model here can do.
fn refuse(body: &mut Fields<'_>) -> Result<(), ApiError> {
    let is_none = |value: Json<'_>| value.is("none");
    let never = |_: Json<'_>| false;
    let tools =
        "tools are not supported: leave it out, or describe the tools in a message and read the answer yourself";
    body.refuse("tools", Json::is_empty_array, tools)?;
    body.refuse("tool_choice", is_none, tools)?;
    body.refuse("functions", Json::is_empty_array, tools)?;
    body.refuse("function_call", is_none, tools)?;
    let json = "only {\"type\": \"text\"} is: ask for JSON in a message and check the answer";
    body.refuse("response_format", is_text, json)?;
    body.refuse("modalities", only_text, "answers are text: leave it out")?;
    body.refuse("audio", never, "answers are text: leave it out")?;
    body.refuse("web_search_options", never, "nothing is searched: leave it out")
}

/// Whether a response format is plain text; nothing in it is given twice.
fn is_text(value: Json<'_>) -> bool {
    let kind = Fields::of_value(value, "response_format").map(|mut format| format.take("type"));
    kind.is_ok_and(|kind| kind.is_some_and(|kind| kind.is("text")))
}

fn only_text(value: Json<'_>) -> bool {
    let mut others = !value.is_array();
    let seen = value.each(|_, one| {
        others |= !one.is("text");
        Ok(())
    });
    seen.is_ok() && !others
}

fn messages(value: Json<'_>) -> Result<EncodedPrompt, ApiError> {
    if !value.is_array() {
        return Err(wrong("messages", "an array of messages", value));
    }
    if value.is_empty_array() {
        let message = "messages is empty: send at least one";
        return Err(ApiError::field("invalid_value", "messages", message));
    }
    let mut messages = MessagesWriter::with_capacity(value.text().len());
    value.each(|i, value| message(value, &format!("messages[{i}]"), &mut messages))?;
    Ok(messages.finish())
}

fn message(value: Json<'_>, path: &str, messages: &mut MessagesWriter) -> Result<(), ApiError> {
    let mut fields = Fields::of_value(value, path)?;
    let role = fields.required("role")?;
    let role = role.string(str::to_owned).map_err(|_| wrong(&fields.path("role"), "a string", role))?;
    let role = match role.as_str() {
        "system" | "user" | "assistant" => role.as_str(),
        // The newer name of the same.
        "developer" => "system",
        _ => {
            let shown: String = role.chars().take(80).collect();
            let path = fields.path("role");
            let message = format!("{path} {shown:?} is not supported; there are system, developer, user and assistant");
            return Err(ApiError::field("invalid_value", path, message));
        }
    };
    let content_path = fields.path("content");
    let content = fields.required("content")?;
    let tools = "tools are not supported: write what the tool said into the content";
    fields.refuse("tool_calls", Json::is_empty_array, tools)?;
    fields.refuse("function_call", |_| false, tools)?;
    fields.refuse("audio", |_| false, "prompts are text")?;
    // No template here reads them.
    fields.ignore(&["name", "refusal", "annotations"]);
    fields.finish()?;
    if content.is_string() {
        let push = |content: &str| messages.push(role, content);
        return content.string(push).map_err(|_| wrong(&content_path, "a string or an array of parts", content));
    }
    messages.push(role, &parts(content, &content_path)?);
    Ok(())
}

/// Parts of type text, joined by line ends as vLLM and llama.cpp join them.
fn parts(value: Json<'_>, path: &str) -> Result<String, ApiError> {
    if !value.is_array() {
        return Err(wrong(path, "a string or an array of parts", value));
    }
    let mut joined = String::new();
    value.each(|i, value| {
        if i > 0 {
            joined.push('\n');
        }
        part(value, &format!("{path}[{i}]"), &mut joined)
    })?;
    Ok(joined)
}

fn part(value: Json<'_>, path: &str, joined: &mut String) -> Result<(), ApiError> {
    let mut fields = Fields::of_value(value, path)?;
    let kind: String = fields.get("type")?.unwrap_or_default();
    if kind != "text" {
        let shown: String = kind.chars().take(80).collect();
        let path = fields.path("type");
        let message =
            format!("{path} {shown:?} is not supported: these models read text only, send parts of type text");
        return Err(ApiError::field("unsupported_parameter", path, message));
    }
    let path = fields.path("text");
    let text = fields.required("text")?;
    fields.finish()?;
    text.string(|text| joined.push_str(text)).map_err(|_| wrong(&path, "a string", text))
}

#[cfg(test)]
mod tests {
    use cascadia_proto::v1::prompt::Kind;
    use serde_json::{Value, json};

    use super::*;

    fn parsed(body: &Value) -> Result<CompletionRequest, ApiError> {
        read(body.to_string().as_bytes())?.resolve(&["demo".to_owned()])
    }

    fn with(more: &Value) -> Value {
        let mut body = json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    #[test]
    fn parts_are_joined_and_developers_are_systems() {
        let asked = parsed(&with(&json!({"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]})))
        .unwrap();
        let Some(Kind::Messages(messages)) = asked.prompts[0].decoded().kind else { panic!("messages") };
        let said: Vec<_> = messages.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(said, [("system", "Be brief."), ("user", "a\nb")]);
    }

    #[test]
    fn answers_are_sessions_with_choices() {
        let asked = parsed(&with(&json!({"n": 3, "model": "demo:token_v3@0.3", "cascadia": {"provenance": true}})));
        let asked = asked.unwrap();
        let request = asked.request("r", "t");
        assert_eq!((request.choice, request.answers, request.sessions()), (0, 3, 3));
        assert!(request.model == "demo" && request.request_id == "r" && request.tenant == "t");
        assert_eq!(request.parameters.rule, "token_v3");
        assert!(asked.provenance);
    }

    #[test]
    fn what_asks_for_nothing_passes() {
        let nothing = json!({
            "tools": [], "tool_choice": "none", "functions": [], "function_call": "none",
            "response_format": {"type": "text"}, "modalities": ["text"], "audio": null, "user": "u",
            "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "parallel_tool_calls": true,
            "prompt_cache_key": "c", "safety_identifier": "s", "reasoning_effort": "low", "verbosity": "low",
            "prediction": {"type": "content", "content": "x"}, "logprobs": false, "top_logprobs": 0,
        });
        let asked = parsed(&with(&nothing)).unwrap();
        assert_eq!((asked.conversation.as_str(), asked.parameters.logprobs), ("c", None));
    }

    #[test]
    fn what_is_given_twice_is_refused_wherever_it_stands() {
        let message = r#"{"role": "user", "content": "x"}"#;
        for (body, param) in [
            (format!(r#"{{"messages": [{message}], "max_tokens": 1, "max_tokens": 2}}"#), "max_tokens"),
            (format!(r#"{{"messages": [{message}, {{"role": "user", "role": "system"}}]}}"#), "messages[1].role"),
            (
                r#"{"messages": [{"role": "user", "content": [{"text": "a", "text": "b"}]}]}"#.into(),
                "messages[0].content[0].text",
            ),
            (
                format!(
                    r#"{{"messages": [{message}], "stream": true, "stream_options": {{"include_usage": true, "include_usage": false}}}}"#
                ),
                "stream_options.include_usage",
            ),
            (
                format!(r#"{{"messages": [{message}], "cascadia": {{"bild": {{"fallback": 1, "fallback": 2}}}}}}"#),
                "cascadia.bild.fallback",
            ),
            (format!(r#"{{"messages": [{message}], "logit_bias": {{"5": 1, "5": 2}}}}"#), "logit_bias.5"),
        ] {
            let error = read(body.as_bytes()).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (Some("duplicate_parameter"), Some(param)), "{body}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
        for (more, param) in [
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"tool_choice": "auto"}), "tool_choice"),
            (json!({"functions": [{}]}), "functions"),
            (json!({"function_call": "auto"}), "function_call"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"audio": {}}), "audio"),
            (json!({"web_search_options": {}}), "web_search_options"),
            (json!({"messages": image}), "messages[0].content[0].type"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": null}), "messages"),
            (json!({"messages": "hello"}), "messages"),
            (json!({"messages": [7]}), "messages[0]"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": 1}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": "x", "weight": 1}]}), "messages[0].weight"),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}),
                "messages[0].tool_calls",
            ),
            (json!({"top_logprobs": 5}), "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
            (json!({"logprobs": 5}), "logprobs"),
            (json!({"n": 0}), "n"),
            (json!({"n": 129}), "n"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "stream_options": {"more": 1}}), "stream_options.more"),
            (json!({"prompt": "x"}), "prompt"),
            (json!({"guided_json": {}}), "guided_json"),
            (json!({"model": 5}), "model"),
        ] {
            let error = parsed(&with(&more)).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{more}");
        }
    }
}
