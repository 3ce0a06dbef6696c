//! A JSON object read field by field: each has its type, `null` is absent, and what nobody asked for is refused.
//!
//! A field that is not understood may be meant to change the output, so it is never skipped.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::http::error::ApiError;

/// An object whose fields are taken out one by one.
#[derive(Debug)]
pub struct Fields {
    /// Where it stands in the body: `cascadia.` or nothing.
    at: String,
    map: Map<String, Value>,
}

/// A type that a field may have.
pub trait Read: Sized {
    /// What it is called in a sentence.
    const KIND: &'static str;

    /// The value, if it has this type.
    fn read(value: &Value) -> Option<Self>;
}

impl Read for bool {
    const KIND: &'static str = "a boolean";

    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Read for f64 {
    const KIND: &'static str = "a number";

    fn read(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl Read for u32 {
    const KIND: &'static str = "an integer of at least 0";

    fn read(value: &Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

impl Read for i32 {
    const KIND: &'static str = "an integer";

    fn read(value: &Value) -> Option<Self> {
        value.as_i64()?.try_into().ok()
    }
}

impl Read for u64 {
    const KIND: &'static str = "an integer";

    /// 64 bits with or without a sign: OpenAI's seeds have one.
    fn read(value: &Value) -> Option<Self> {
        value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
    }
}

impl Read for String {
    const KIND: &'static str = "a string";

    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl<T: Read> Read for Vec<T> {
    const KIND: &'static str = "an array, all of one type";

    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::read).collect()
    }
}

/// What a value is called in a sentence.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "such a number",
        Value::String(_) => "a string",
        Value::Array(_) => "such an array",
        Value::Object(_) => "an object",
    }
}

/// A value of the wrong type.
#[must_use]
pub fn wrong(path: &str, kind: &str, value: &Value) -> ApiError {
    ApiError::field("invalid_type", path, format!("{path} must be {kind}, not {}", type_name(value)))
}

impl Fields {
    /// The object that a request's body is.
    ///
    /// # Errors
    /// When it is no JSON, or no object.
    pub fn of_body(body: &[u8]) -> Result<Self, ApiError> {
        let refuse = |code, message| Err(ApiError::new(StatusCode::BAD_REQUEST, code, message));
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { at: String::new(), map }),
            Ok(other) => refuse("invalid_type", format!("the body must be a JSON object, not {}", type_name(&other))),
            Err(error) => refuse("invalid_json", format!("the body is not valid JSON: {error}")),
        }
    }

    /// An object within the body, at `path`.
    ///
    /// # Errors
    /// When it is none.
    pub fn of_value(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { at: format!("{path}."), map }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// A field's name in the whole body.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.at)
    }

    /// A field of any type.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field of one type.
    ///
    /// # Errors
    /// When it has another.
    pub fn get<T: Read>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        T::read(&value).map(Some).ok_or_else(|| wrong(&self.path(name), T::KIND, &value))
    }

    /// An object.
    ///
    /// # Errors
    /// When it is something else.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.path(name);
        self.take(name).map(|value| Self::of_value(value, &path)).transpose()
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn required(&mut self, name: &str) -> Result<Value, ApiError> {
        let path = self.path(name);
        self.take(name).ok_or_else(|| {
            ApiError::field("missing_required_parameter", &path, format!("{path} is missing: it must be given"))
        })
    }

    /// Fields that change nothing here.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// A field that asks for what cannot be done, unless its value asks for nothing.
    ///
    /// # Errors
    /// When it does ask.
    pub fn refuse(&mut self, name: &str, asks_nothing: impl Fn(&Value) -> bool, cure: &str) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !asks_nothing(&value) => {
                let path = self.path(name);
                let message = format!("{path} is not supported as it is given here: {cure}");
                Err(ApiError::field("unsupported_parameter", path, message))
            }
            _ => Ok(()),
        }
    }

    /// Everything was taken.
    ///
    /// # Errors
    /// When a field is left that nobody knows.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(80).collect();
                let path = self.path(&shown);
                let message = format!(
                    "{path} is not known here, and might be meant to change the answer, so it is not ignored: leave it out"
                );
                Err(ApiError::field("unknown_parameter", path, message))
            }
        }
    }
}

/// One string or several.
///
/// # Errors
/// When it is neither.
pub fn strings(path: &str, value: Value) -> Result<Vec<String>, ApiError> {
    if let Value::String(text) = value {
        return Ok(vec![text]);
    }
    Vec::read(&value).ok_or_else(|| wrong(path, "a string or an array of strings", &value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::of_body(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_field_has_its_type_or_is_named() {
        let mut body = fields(r#"{"n": 2, "seed": -1, "stop": ["a"], "x": null, "top_p": "high", "big": 4294967296}"#);
        assert_eq!(body.get::<u32>("n").unwrap(), Some(2));
        assert_eq!(body.get::<u64>("seed").unwrap(), Some(u64::MAX));
        assert_eq!(body.get::<Vec<String>>("stop").unwrap(), Some(vec!["a".to_owned()]));
        assert_eq!(body.get::<bool>("x").unwrap(), None);
        let error = body.get::<f64>("top_p").unwrap_err();
        assert_eq!(
            (error.param.as_deref(), error.message.as_str()),
            (Some("top_p"), "top_p must be a number, not a string")
        );
        assert!(body.get::<u32>("big").is_err());
        body.finish().unwrap();
    }

    #[test]
    fn what_is_left_is_refused_by_name() {
        let mut body = fields(r#"{"cascadia": {"alhpa": 1}, "future": null}"#);
        let extension = body.object("cascadia").unwrap().unwrap();
        assert_eq!(extension.finish().unwrap_err().param.as_deref(), Some("cascadia.alhpa"));
        body.finish().unwrap();
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (body, code) in [("", "invalid_json"), ("{", "invalid_json"), ("[]", "invalid_type"), ("3", "invalid_type")]
        {
            assert_eq!(Fields::of_body(body.as_bytes()).unwrap_err().code, Some(code), "{body}");
        }
        assert!(Fields::of_body("[".repeat(100_000).as_bytes()).is_err());
    }
}
