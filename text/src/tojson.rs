//! The filter `tojson` as Hugging Face defines it: Python's `json.dumps`, without HTML escapes.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// How to write.
struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

/// The filter.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a filter")]
pub(crate) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = options.get::<Option<Value>>("separators")? {
        item = separators.get_item_by_index(0)?.to_string();
        key = separators.get_item_by_index(1)?.to_string();
    }
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut json = String::new();
    Style { indent, item, key, ascii, sorted }.write(value, 0, &mut json)?;
    Ok(json)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, json: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), json),
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
                    self.string(&keys[i].to_string(), json);
                    json.push_str(&self.key);
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
        json: &mut String,
        mut write: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        json.push(open);
        for i in 0..length {
            if i > 0 {
                json.push_str(&self.item);
            }
            self.line(depth + 1, json);
            write(i, json)?;
        }
        if length > 0 {
            self.line(depth, json);
        }
        json.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, json: &mut String) {
        if let Some(indent) = self.indent {
            json.push('\n');
            json.extend(std::iter::repeat_n(' ', indent * depth));
        }
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
