//! Little-endian bytes, never read past their end.

use crate::{GgufError, TensorType, Value};

/// Arrays in arrays; files hold one level.
const DEEPEST: usize = 4;
/// More than any vocabulary or list of merges; a value takes more room here than a byte does in the file.
const LONGEST: usize = 1 << 22;
/// Names of keys and tensors; real ones have up to 64 bytes.
const LONGEST_NAME: usize = 256;

pub(crate) struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    pub(crate) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], GgufError> {
        if n > self.left() {
            return Err(GgufError::Truncated(what.into()));
        }
        let bytes = &self.file[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N, what)?);
        Ok(number)
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.number(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.number(what).map(u64::from_le_bytes)
    }

    /// A number of things of which each takes at least `least` bytes.
    pub(crate) fn count(&mut self, what: &str, least: usize) -> Result<usize, GgufError> {
        let claimed = self.u64(what)?;
        match usize::try_from(claimed).ok().filter(|&n| n <= self.left() / least) {
            Some(n) => Ok(n),
            None => Err(GgufError::Absurd { what: what.into(), claimed }),
        }
    }

    pub(crate) fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.count(what, 1)?;
        let bytes = self.take(length, what)?;
        // Vocabularies hold pieces of characters in no encoding: what is no text is a token that is never matched.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// A name that a person can be told: not of any length, nothing but text.
    pub(crate) fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.count(what, 1)?;
        if length > LONGEST_NAME {
            return Err(GgufError::Absurd { what: what.into(), claimed: length as u64 });
        }
        match std::str::from_utf8(self.take(length, what)?) {
            Ok(name) if !name.chars().any(char::is_control) => Ok(name.to_owned()),
            _ => Err(GgufError::Malformed { what: what.into(), problem: "is no text".into() }),
        }
    }

    /// A value of type `kind`; `what` is its key.
    pub(crate) fn value(&mut self, kind: u32, what: &str, depth: usize) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.number::<1>(what)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.number(what)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.number(what)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.number(what)?))),
            4 => Value::Unsigned(u64::from(self.u32(what)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.number(what)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.number(what)?))),
            7 => Value::Bool(self.number::<1>(what)?[0] != 0),
            8 => Value::String(self.string(what)?),
            9 if depth < DEEPEST => {
                let kind = self.u32(what)?;
                let least = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                };
                let length = self.count(what, least)?;
                if length > LONGEST {
                    return Err(GgufError::Absurd { what: what.into(), claimed: length as u64 });
                }
                let mut values = Vec::with_capacity(length);
                for _ in 0..length {
                    values.push(self.value(kind, what, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(self.number(what)?)),
            12 => Value::Float(f64::from_le_bytes(self.number(what)?)),
            other => {
                let problem = format!("has a value of type {other}, which does not exist or is nested too deeply");
                return Err(GgufError::Malformed { what: format!("the key `{what}`"), problem });
            }
        })
    }

    /// Name, shape with the outermost dimension first, type, offset.
    pub(crate) fn tensor(&mut self) -> Result<(String, Vec<u64>, TensorType, u64), GgufError> {
        let name = self.name("a tensor's name")?;
        let dimensions = self.u32(&name)?;
        if !(1..=4).contains(&dimensions) {
            let problem = format!("has {dimensions} dimensions, and 1 to 4 are possible");
            return Err(GgufError::Malformed { what: format!("tensor `{name}`"), problem });
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dimensions {
            shape.push(self.u64(&name)?);
        }
        shape.reverse();
        let kind = TensorType::of(self.u32(&name)?);
        let offset = self.u64(&name)?;
        Ok((name, shape, kind, offset))
    }
}
