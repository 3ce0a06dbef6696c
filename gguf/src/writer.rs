//! The head of a file, from metadata and a table of tensors.

use crate::{GgufError, TensorType, Value};

/// What every tensor begins at a multiple of: the format's default.
pub const ALIGNMENT: usize = 32;

/// Writes the head of a version 3 file, up to where the first tensor's bytes begin. Those of every tensor follow in the
/// order of `tensors` (name, shape with the outermost dimension first, type), each filled up to [`ALIGNMENT`].
///
/// Numbers become 32 bits wide, which is what readers ask for, and 64 where they do not fit.
///
/// # Errors
/// When a shape is no whole number of the type's blocks, or an array's values differ in type.
pub fn write_head(
    metadata: &[(String, Value)],
    tensors: &[(String, Vec<usize>, TensorType)],
) -> Result<Vec<u8>, GgufError> {
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut head, key);
        head.extend(kind(value).to_le_bytes());
        write_value(&mut head, key, value)?;
    }
    let mut offset = 0_u64;
    for (name, shape, stored) in tensors {
        string(&mut head, name);
        head.extend((shape.len() as u32).to_le_bytes());
        for &dimension in shape.iter().rev() {
            head.extend((dimension as u64).to_le_bytes());
        }
        head.extend(stored.code().to_le_bytes());
        head.extend(offset.to_le_bytes());
        let (values, width) = (shape.iter().product::<usize>(), shape.last().copied().unwrap_or(1));
        let bytes = stored.bytes(values as u64, width as u64).ok_or_else(|| GgufError::Malformed {
            what: format!("tensor `{name}`"),
            problem: format!("has the shape {shape:?}, which is no whole number of {stored} blocks"),
        })?;
        offset += bytes.next_multiple_of(ALIGNMENT as u64);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    Ok(head)
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// The code of the type that a value is written as.
fn kind(value: &Value) -> u32 {
    match value {
        Value::Unsigned(n) if u32::try_from(*n).is_ok() => 4,
        Value::Unsigned(_) => 10,
        Value::Signed(n) if i32::try_from(*n).is_ok() => 5,
        Value::Signed(_) => 11,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
    }
}

fn write_value(to: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), GgufError> {
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => to.extend(n.to_le_bytes()),
            Err(_) => to.extend(n.to_le_bytes()),
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => to.extend(n.to_le_bytes()),
            Err(_) => to.extend(n.to_le_bytes()),
        },
        Value::Float(x) => to.extend((*x as f32).to_le_bytes()),
        Value::Bool(flag) => to.push(u8::from(*flag)),
        Value::String(text) => string(to, text),
        Value::Array(values) => {
            let of = values.first().map_or(4, kind);
            if values.iter().any(|value| kind(value) != of) {
                let problem = "is a list of values of several types, which the format does not have".into();
                return Err(GgufError::Malformed { what: format!("the key `{key}`"), problem });
            }
            to.extend(of.to_le_bytes());
            to.extend((values.len() as u64).to_le_bytes());
            for value in values {
                write_value(to, key, value)?;
            }
        }
    }
    Ok(())
}
