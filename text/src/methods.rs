//! Python's methods as templates use them, at a price.
//!
//! The engine asks a price for what a method or filter gives back, once that is there. Here it is asked for what a method
//! reads, and for lists before they are made: one of a string's letters takes many times the memory of the string.

use std::sync::Arc;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Bytes that one step of fuel pays for, as the engine has it.
const BYTES_A_STEP: usize = 64;

/// Memory of an item of a list.
const ITEM_BYTES: usize = 48;

/// Pays for bytes that are read or made.
pub(crate) fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_A_STEP) as u64)
}

/// Calls a method.
pub(crate) fn call(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        pay(state, text.len())?;
        match name {
            "split" => pay_for_parts(state, text, arguments.first().and_then(Value::as_str))?,
            "splitlines" => pay_for_items(state, text.lines().count())?,
            _ => {}
        }
    } else if value.kind() == ValueKind::Seq {
        pay_for_items(state, value.len().unwrap_or(0))?;
    }
    unknown_method_callback(state, value, name, arguments)
}

/// The filter `split`.
pub(crate) fn split(state: &State, value: &Value, by: Option<Arc<str>>, most: Option<i64>) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        pay_for_parts(state, text, by.as_deref())?;
    }
    filters::split(value, by, most)
}

/// The filter `lines`.
pub(crate) fn lines(state: &State, value: &Value) -> Result<Value, Error> {
    pay_for_items(state, value.as_str().map_or(0, |text| text.lines().count()))?;
    filters::lines(value)
}

fn pay_for_parts(state: &State, text: &str, by: Option<&str>) -> Result<(), Error> {
    let parts = match by {
        Some(by) => text.matches(by).count() + 1,
        None => text.split_whitespace().count(),
    };
    pay_for_items(state, parts)
}

fn pay_for_items(state: &State, items: usize) -> Result<(), Error> {
    pay(state, items.saturating_mul(ITEM_BYTES))
}
