//! The filter `tojson` as Hugging Face defines it: Python's `json.dumps`, without HTML escapes.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use crate::methods::pay;

/// Lists in lists, as many as Python's own writer bears.
const MOST_NESTED: usize = 1000;

/// How to write.
struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

/// What is written, paid for value by value: a list may hold one list many times, and that one another.
struct Json<'a, 'template, 'env> {
    text: String,
    paid: usize,
    state: &'a State<'template, 'env>,
}

impl Json<'_, '_, '_> {
    fn pay(&mut self) -> Result<(), Error> {
        // A value costs a step at least.
        self.state.consume_fuel(1)?;
        pay(self.state, self.text.len() - self.paid)?;
        self.paid = self.text.len();
        Ok(())
    }
}

/// The filter.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a filter")]
pub(crate) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = options.get::<Option<Value>>("separators")? {
        item = separators.get_item_by_index(0)?.to_string();
        key = separators.get_item_by_index(1)?.to_string();
    }
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut json = Json { text: String::new(), paid: 0, state };
    Style { indent, item, key, ascii, sorted }.write(value, 0, &mut json)?;
    Ok(json.text)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, json: &mut Json<'_, '_, '_>) -> Result<(), Error> {
        json.pay()?;
        if depth > MOST_NESTED {
            return Err(Error::new(ErrorKind::InvalidOperation, "too deeply nested for JSON"));
        }
        match value.kind() {
            ValueKind::None => json.text.push_str("null"),
            ValueKind::Bool => json.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.text.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), &mut json.text),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.group(['[', ']'], items.len(), depth, json, |i, json| self.write(&items[i], depth + 1, json))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.group(['{', '}'], keys.len(), depth, json, |i, json| {
                    self.string(&keys[i].to_string(), &mut json.text);
                    json.text.push_str(&self.key);
                    self.write(&value.get_item(&keys[i])?, depth + 1, json)
                })?;
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} has no form in JSON")));
            }
        }
        Ok(())
    }

    fn group(
        &self,
        [open, close]: [char; 2],
        length: usize,
        depth: usize,
        json: &mut Json<'_, '_, '_>,
        mut write: impl FnMut(usize, &mut Json<'_, '_, '_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        json.text.push(open);
        for i in 0..length {
            if i > 0 {
                json.text.push_str(&self.item);
            }
            self.line(depth + 1, json)?;
            write(i, json)?;
        }
        if length > 0 {
            self.line(depth, json)?;
        }
        json.text.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, json: &mut Json<'_, '_, '_>) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            let spaces = indent.saturating_mul(depth);
            pay(json.state, spaces)?;
            json.text.push('\n');
            json.text.extend(std::iter::repeat_n(' ', spaces));
        }
        Ok(())
    }

    fn string(&self, text: &str, json: &mut String) {
        json.push('"');
        for c in text.chars() {
            // Writing to a String cannot fail.
            let _ = match c {
                '"' => json.write_str("\\\""),
                '\\' => json.write_str("\\\\"),
                '\n' => json.write_str("\\n"),
                '\r' => json.write_str("\\r"),
                '\t' => json.write_str("\\t"),
                '\u{8}' => json.write_str("\\b"),
                '\u{c}' => json.write_str("\\f"),
                c if c < ' ' => write!(json, "\\u{:04x}", u32::from(c)),
                c if self.ascii && !c.is_ascii() => {
                    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(json, "\\u{unit:04x}"))
                }
                c => json.write_char(c),
            };
        }
        json.push('"');
    }
}
