//! A JSON object that names the file and the key of whatever is wrong in it.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::LoadError;
use crate::folder::read_json;

/// Beyond any model, and far from overflow in products of two.
const LARGEST: u64 = 1 << 28;

/// A JSON object and where it is from.
pub(super) struct Json {
    pub(super) path: PathBuf,
    pub(super) map: Map<String, Value>,
}

impl Json {
    pub(super) fn read(path: PathBuf) -> Result<Self, LoadError> {
        Ok(Self { map: read_json(&path)?, path })
    }

    pub(super) fn wrong(&self, key: &str, problem: String) -> LoadError {
        LoadError::Key { path: self.path.clone(), key: key.into(), problem }
    }

    fn missing(&self, key: &str) -> LoadError {
        self.wrong(key, "is missing; take config.json from the same export".into())
    }

    /// The value, if it is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A whole number above zero.
    pub(super) fn size(&self, key: &str, default: Option<usize>) -> Result<usize, LoadError> {
        match self.get(key) {
            None => default.ok_or_else(|| self.missing(key)),
            Some(value) => match value.as_u64().filter(|n| (1..=LARGEST).contains(n)) {
                Some(n) => Ok(n as usize),
                None => Err(self.wrong(key, format!("is {value}; it must be a whole number from 1 to {LARGEST}"))),
            },
        }
    }

    /// A number above zero, or none: what stands for an absent key is `absent`, and null is none.
    pub(super) fn optional(&self, key: &str, absent: Option<f64>) -> Result<Option<f64>, LoadError> {
        match self.map.get(key) {
            None => Ok(absent),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(self.wrong(key, format!("is {value}; it must be a number above zero, or null"))),
            },
        }
    }

    /// A finite number of the object, or of an object inside it.
    pub(super) fn number(&self, map: &Map<String, Value>, key: &str, default: Option<f64>) -> Result<f64, LoadError> {
        match map.get(key).filter(|v| !v.is_null()) {
            None => default.ok_or_else(|| self.missing(key)),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(x),
                None => Err(self.wrong(key, format!("is {value}; it must be a number"))),
            },
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, format!("is {other}; use true or false"))),
        }
    }

    /// An object, if it is there.
    pub(super) fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong(key, format!("is {other}; it must be an object"))),
        }
    }

    /// An id or a list of ids.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, format!("is {value}; it must be a token id or a list of them")))
    }
}
