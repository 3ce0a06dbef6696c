//! JSON as it stands in a body: a value is read where it is wanted, and nowhere else.
//!
//! No tree is made of a body, whose every number would take twenty times its room. A name that is given twice in one object
//! may be read differently by whoever looked at the request before us, so it is refused.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Deserializer, Error};

use crate::http::error::ApiError;

/// A value as it stands in the body: valid JSON, of which nothing has been read.
#[derive(Clone, Copy, Debug)]
pub struct Json<'b>(&'b RawValue);

/// A type that a field may have.
pub trait Read: Sized {
    /// What it is called in a sentence.
    const KIND: &'static str;

    /// The value, if it has this type.
    fn read(value: Json<'_>) -> Option<Self>;
}

impl Read for bool {
    const KIND: &'static str = "a boolean";

    fn read(value: Json<'_>) -> Option<Self> {
        value.parse()
    }
}

impl Read for f64 {
    const KIND: &'static str = "a number";

    fn read(value: Json<'_>) -> Option<Self> {
        value.parse()
    }
}

impl Read for u32 {
    const KIND: &'static str = "an integer of at least 0";

    fn read(value: Json<'_>) -> Option<Self> {
        value.parse()
    }
}

impl Read for i32 {
    const KIND: &'static str = "an integer";

    fn read(value: Json<'_>) -> Option<Self> {
        value.parse()
    }
}

impl Read for u64 {
    const KIND: &'static str = "an integer";

    /// 64 bits with or without a sign: OpenAI's seeds have one.
    fn read(value: Json<'_>) -> Option<Self> {
        value.parse().or_else(|| value.parse().map(i64::cast_unsigned))
    }
}

impl Read for String {
    const KIND: &'static str = "a string";

    fn read(value: Json<'_>) -> Option<Self> {
        value.parse()
    }
}

impl<'b> Json<'b> {
    /// What was found to be valid.
    #[must_use]
    pub fn of(value: &'b RawValue) -> Self {
        Self(value)
    }

    /// The fields of the object that a whole body is, as [`Self::entries`].
    ///
    /// # Errors
    /// When it is no JSON, or no object; within, when it has a field twice.
    pub fn entries_of(body: &'b [u8], most: usize) -> Result<Result<Entries<'b>, ApiError>, Error> {
        let mut refused = None;
        let mut value = Deserializer::from_slice(body);
        let read = value.deserialize_map(Object { at: "", most, refused: &mut refused });
        match (read.and_then(|entries| value.end().map(|()| entries)), refused) {
            (_, Some(refused)) => Ok(Err(refused)),
            (read, None) => read.map(Ok),
        }
    }

    fn parse<T: serde::Deserialize<'b>>(self) -> Option<T> {
        serde_json::from_str(self.text()).ok()
    }

    /// As it stands in the body.
    #[must_use]
    pub fn text(self) -> &'b str {
        self.0.get()
    }

    fn begins(self) -> u8 {
        self.text().as_bytes().first().copied().unwrap_or_default()
    }

    /// It is `null`.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.begins() == b'n'
    }

    /// It is a string.
    #[must_use]
    pub fn is_string(self) -> bool {
        self.begins() == b'"'
    }

    /// It is a number.
    #[must_use]
    pub fn is_number(self) -> bool {
        matches!(self.begins(), b'-' | b'0'..=b'9')
    }

    /// It is an array.
    #[must_use]
    pub fn is_array(self) -> bool {
        self.begins() == b'['
    }

    /// It is an object.
    #[must_use]
    pub fn is_object(self) -> bool {
        self.begins() == b'{'
    }

    /// It is an array of nothing.
    #[must_use]
    pub fn is_empty_array(self) -> bool {
        self.is_array() && self.text()[1..].trim_start().starts_with(']')
    }

    /// It is this string.
    #[must_use]
    pub fn is(self, text: &str) -> bool {
        self.parse::<Cow<'_, str>>().is_some_and(|said| said == text)
    }

    /// What it is called in a sentence.
    #[must_use]
    pub fn type_name(self) -> &'static str {
        match self.begins() {
            b'n' => "null",
            b't' | b'f' => "a boolean",
            b'"' => "a string",
            b'[' => "such an array",
            b'{' => "an object",
            _ => "such a number",
        }
    }

    /// Reads the elements of an array one after the other; of anything else, there are none.
    ///
    /// # Errors
    /// The first of `act`.
    pub fn each(self, act: impl FnMut(usize, Json<'b>) -> Result<(), ApiError>) -> Result<(), ApiError> {
        let mut refused = None;
        let each = Elements { act, refused: &mut refused };
        // It is valid, so that nothing else can go wrong.
        let _ = Deserializer::from_str(self.text()).deserialize_seq(each);
        refused.map_or(Ok(()), Err)
    }

    /// The elements of an array that are all of one type; of those behind the first `most`, only how many there are.
    ///
    /// # Errors
    /// When it is something else.
    pub fn some<T: Read>(self, most: usize, path: &str) -> Result<(Vec<T>, usize), ApiError> {
        const KIND: &str = "an array, all of one type";
        let (mut elements, mut count) = (Vec::new(), 0);
        if !self.is_array() {
            return Err(wrong(path, KIND, self));
        }
        self.each(|_, element| {
            count += 1;
            if count <= most {
                elements.push(T::read(element).ok_or_else(|| wrong(path, KIND, self))?);
            }
            Ok(())
        })?;
        Ok((elements, count))
    }

    /// The fields of an object, each given once; of those behind the first `most`, only how many there are.
    ///
    /// # Errors
    /// When it is something else, or has one twice.
    pub fn entries(self, most: usize, path: &str) -> Result<Entries<'b>, ApiError> {
        let (at, mut refused) = (format!("{path}."), None);
        let mut object = Deserializer::from_str(self.text());
        let read = object.deserialize_map(Object { at: &at, most, refused: &mut refused });
        read.map_err(|_| refused.unwrap_or_else(|| wrong(path, "an object", self)))
    }

    /// The numbers of an array that holds nothing but token ids.
    ///
    /// # Errors
    /// When it does not; some may have been taken by then.
    pub fn ids(self, take: impl FnMut(u32)) -> Result<(), Error> {
        let mut numbers = Deserializer::from_str(self.text());
        numbers.deserialize_seq(Ids(take))
    }

    /// A string, as it is written: it is copied once, by whoever takes it.
    ///
    /// # Errors
    /// When it is none, or names half a character.
    pub fn string<T>(self, take: impl FnOnce(&str) -> T) -> Result<T, Error> {
        Deserializer::from_str(self.text()).deserialize_str(Text(take))
    }
}

struct Elements<'r, F> {
    act: F,
    refused: &'r mut Option<ApiError>,
}

impl<'b, F: FnMut(usize, Json<'b>) -> Result<(), ApiError>> Visitor<'b> for Elements<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'b>>(mut self, mut elements: A) -> Result<(), A::Error> {
        let mut index = 0;
        while let Some(element) = elements.next_element::<&RawValue>()? {
            if let Err(error) = (self.act)(index, Json(element)) {
                *self.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
            index += 1;
        }
        Ok(())
    }
}

struct Ids<F>(F);

impl<'b, F: FnMut(u32)> Visitor<'b> for Ids<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of token ids")
    }

    fn visit_seq<A: SeqAccess<'b>>(mut self, mut ids: A) -> Result<(), A::Error> {
        while let Some(id) = ids.next_element()? {
            (self.0)(id);
        }
        Ok(())
    }
}

struct Text<F>(F);

impl<T, F: FnOnce(&str) -> T> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok((self.0)(text))
    }
}

/// A value of the wrong type.
#[must_use]
pub fn wrong(path: &str, kind: &str, value: Json<'_>) -> ApiError {
    ApiError::field("invalid_type", path, format!("{path} must be {kind}, not {}", value.type_name()))
}

/// Takes the fields out of an object, each once, up to so many; those behind are counted.
struct Object<'r> {
    at: &'r str,
    most: usize,
    refused: &'r mut Option<ApiError>,
}

/// An object's fields, and how many there are.
pub type Entries<'b> = (Vec<(Cow<'b, str>, Json<'b>)>, usize);

impl<'b> Visitor<'b> for Object<'_> {
    type Value = Entries<'b>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut entries: A) -> Result<Entries<'b>, A::Error> {
        let (mut fields, mut names, mut count): (Vec<_>, BTreeSet<Cow<'b, str>>, _) = (Vec::new(), BTreeSet::new(), 0);
        while let Some(name) = entries.next_key_seed(Name)? {
            count += 1;
            let value = Json(entries.next_value()?);
            if count > self.most {
                continue;
            }
            if !names.insert(name.clone()) {
                let path = format!("{}{}", self.at, shown(&name));
                let message = format!("{path} is given twice, and only one of them can be meant: give it once");
                *self.refused = Some(ApiError::field("duplicate_parameter", path, message));
                return Err(A::Error::custom("refused"));
            }
            fields.push((name, value));
        }
        Ok((fields, count))
    }
}

/// A field's name, borrowed from the body where it is written as it is.
struct Name;

impl<'b> DeserializeSeed<'b> for Name {
    type Value = Cow<'b, str>;

    fn deserialize<D: serde::Deserializer<'b>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_str(self)
    }
}

impl<'b> Visitor<'b> for Name {
    type Value = Cow<'b, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'b str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// As much of a name as a sentence needs.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}
