//! A JSON object read field by field: each has its type, `null` is absent, and what nobody asked for is refused.
//!
//! A field that is not understood may be meant to change the output, so it is never skipped.

use std::borrow::Cow;

use axum::http::StatusCode;
use serde_json::error::Category;

use crate::http::error::ApiError;
use crate::http::json::{Entries, Json, Read, shown, wrong};

/// Fields of one object at most: more than all that are known.
const MOST_FIELDS: usize = 256;

/// An object whose fields are taken out one by one.
#[derive(Debug)]
pub struct Fields<'b> {
    /// Where it stands in the body: `cascadia.` or nothing.
    at: String,
    fields: Vec<(Cow<'b, str>, Json<'b>)>,
}

impl<'b> Fields<'b> {
    /// The object that a request's body is.
    ///
    /// # Errors
    /// When it is no JSON, no object, or has a field twice.
    pub fn of_body(body: &'b [u8]) -> Result<Self, ApiError> {
        let refuse = |code, message| ApiError::new(StatusCode::BAD_REQUEST, code, message);
        let error = match Json::entries_of(body, MOST_FIELDS) {
            Ok(entries) => return Self::few(String::new(), entries?),
            Err(error) => error,
        };
        Err(match serde_json::from_slice(body).map(Json::of) {
            Ok(value) if error.classify() == Category::Data => {
                let message = format!("the body must be a JSON object, not {}", value.type_name());
                refuse("invalid_type", message)
            }
            Ok(_) => refuse("invalid_json", format!("the body is not valid JSON: {error}")),
            Err(error) => refuse("invalid_json", format!("the body is not valid JSON: {error}")),
        })
    }

    /// An object within the body, at `path`.
    ///
    /// # Errors
    /// When it is none, or has a field twice.
    pub fn of_value(value: Json<'b>, path: &str) -> Result<Self, ApiError> {
        Self::few(format!("{path}."), value.entries(MOST_FIELDS, path)?)
    }

    fn few(at: String, (fields, count): Entries<'b>) -> Result<Self, ApiError> {
        if count <= MOST_FIELDS {
            return Ok(Self { at, fields });
        }
        let whole = if at.is_empty() { "the body" } else { at.trim_end_matches('.') };
        let message = format!("{whole} has {count} fields, more than are known: leave out what is unknown here");
        let error = ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message);
        Err(if at.is_empty() { error } else { error.of_field(at.trim_end_matches('.')) })
    }

    /// A field's name in the whole body.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.at)
    }

    /// A field of any type.
    pub fn take(&mut self, name: &str) -> Option<Json<'b>> {
        let at = self.fields.iter().position(|(known, _)| known == name)?;
        Some(self.fields.remove(at).1).filter(|value| !value.is_null())
    }

    /// A field of one type.
    ///
    /// # Errors
    /// When it has another.
    pub fn get<T: Read>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        T::read(value).map(Some).ok_or_else(|| wrong(&self.path(name), T::KIND, value))
    }

    /// An array of at most so many token ids.
    ///
    /// # Errors
    /// When it is something else, or holds more.
    pub fn some_ids(&mut self, name: &str, most: usize) -> Result<Vec<u32>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(Vec::new()) };
        let (ids, count) = value.some(most, &path)?;
        if count > most {
            let message = format!("{path} has {count} ids; at most {most} may be given");
            return Err(ApiError::field("invalid_value", path, message));
        }
        Ok(ids)
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
    pub fn required(&mut self, name: &str) -> Result<Json<'b>, ApiError> {
        let path = self.path(name);
        self.take(name).ok_or_else(|| {
            ApiError::field("missing_required_parameter", &path, format!("{path} is missing: it must be given"))
        })
    }

    /// Fields that change nothing here.
    pub fn ignore(&mut self, names: &[&str]) {
        self.fields.retain(|(name, _)| !names.contains(&&**name));
    }

    /// A field that asks for what cannot be done, unless its value asks for nothing.
    ///
    /// # Errors
    /// When it does ask.
    pub fn refuse(&mut self, name: &str, asks_nothing: impl Fn(Json<'b>) -> bool, cure: &str) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !asks_nothing(value) => {
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
        match self.fields.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path = self.path(&shown(name));
                let message = format!(
                    "{path} is not known here, and might be meant to change the answer, so it is not ignored: leave it out"
                );
                Err(ApiError::field("unknown_parameter", path, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields<'_> {
        Fields::of_body(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_field_has_its_type_or_is_named() {
        let mut body = fields(r#"{"n": 2, "seed": -1, "stop": ["a"], "x": null, "top_p": "high", "big": 4294967296}"#);
        assert_eq!(body.get::<u32>("n").unwrap(), Some(2));
        assert_eq!(body.get::<u64>("seed").unwrap(), Some(u64::MAX));
        let stop = body.take("stop").unwrap();
        assert_eq!(stop.some(1, "stop").unwrap(), (vec!["a".to_owned()], 1));
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
        for broken in ["{\"a\": [1,}", "{\"a\": 1} 2", "[".repeat(100_000).as_str(), "{\"\\ud800\": 1}"] {
            let error = Fields::of_body(broken.as_bytes()).unwrap_err();
            assert_eq!(error.code, Some("invalid_json"), "{}", error.message);
        }
    }

    #[test]
    fn what_is_given_twice_is_refused_by_name() {
        for (body, param) in [
            (r#"{"n": 1, "top_k": 2, "n": 1}"#, "n"),
            (r#"{"n": 1, "\u006e": 2}"#, "n"),
            (r#"{"n": null, "n": 2}"#, "n"),
            (r#"{"cascadia": {"alpha": 1, "alpha": 2}}"#, "cascadia.alpha"),
        ] {
            let read = Fields::of_body(body.as_bytes()).and_then(|mut body| body.object("cascadia"));
            let error = read.unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (Some("duplicate_parameter"), Some(param)), "{body}");
        }
    }

    #[test]
    fn a_flood_of_fields_is_refused_before_it_is_held() {
        let many: Vec<String> = (0..=MOST_FIELDS).map(|i| format!("\"f{i}\": 1")).collect();
        let error = Fields::of_body(format!("{{{}}}", many.join(",")).as_bytes()).unwrap_err();
        assert_eq!((error.code, error.param), (Some("unknown_parameter"), None));
        assert!(error.message.starts_with("the body has 257 fields"), "{}", error.message);
    }

    #[test]
    fn a_number_is_read_to_the_last_bit() {
        // Each is off by one unit in the last place where digits are rounded on the way.
        for text in ["0.30000000000000004", "9.5e-8", "1.7976931348623157e308", "5e-324", "122.416294033786585", "-0.0"]
        {
            let body = format!("{{\"x\": {text}}}");
            let read = fields(&body).get::<f64>("x").unwrap().unwrap();
            assert_eq!(read.to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
        }
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = cascadia_core::history::splitmix64(state);
            let number = f64::from_bits(state);
            if number.is_finite() {
                let body = format!("{{\"x\": {number:e}}}");
                assert_eq!(fields(&body).get::<f64>("x").unwrap(), Some(number), "{body}");
            }
        }
    }

    #[test]
    fn of_too_many_ids_only_the_number_is_known() {
        let mut body = fields(r#"{"a": [1, 2, 3], "b": [1, "x"], "c": 1}"#);
        assert_eq!(body.some_ids("a", 2).unwrap_err().message, "a has 3 ids; at most 2 may be given");
        assert_eq!(body.some_ids("b", 2).unwrap_err().param.as_deref(), Some("b"));
        assert_eq!(body.some_ids("c", 2).unwrap_err().code, Some("invalid_type"));
        assert_eq!(body.some_ids("d", 2).unwrap(), [0; 0]);
    }
}
