//! A prompt as it travels: encoded once, checked once, and shared by everything that sends it on.
//!
//! A request for many answers has one prompt, and so has a session that is placed again. What a prompt takes decoded may be
//! many times what it takes on the wire (a message of two bytes becomes two strings), so whoever only passes it on keeps
//! the bytes.

use std::fmt;

use cascadia_core::ids::TokenId;
use cascadia_core::limits;
use prost::Message as _;
use prost::bytes::Bytes;
use prost::{decode_length_delimiter, encode_length_delimiter};

use crate::v1;

/// Which of the three kinds of prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Plain text.
    Text,
    /// A conversation.
    Messages,
    /// Token ids.
    Ids,
}

impl Shape {
    fn of_tag(tag: u64) -> Option<Self> {
        match tag {
            1 => Some(Self::Text),
            2 => Some(Self::Messages),
            3 => Some(Self::Ids),
            _ => None,
        }
    }

    fn key(self) -> u8 {
        let tag = match self {
            Self::Text => 1,
            Self::Messages => 2,
            Self::Ids => 3,
        };
        delimited(tag)
    }
}

/// The key of a field that says its own length.
pub(crate) const fn delimited(tag: u8) -> u8 {
    tag << 3 | 2
}

/// An encoded `v1.Prompt` that decodes. Cheap to clone.
#[derive(Clone, PartialEq)]
pub struct EncodedPrompt {
    encoded: Bytes,
    shape: Shape,
    /// Where the content of its one field begins.
    content: usize,
    empty: bool,
    weight: usize,
    ids: usize,
    beginning: Bytes,
}

impl fmt::Debug for EncodedPrompt {
    /// Without the prompt: it is the client's, and may be long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedPrompt({:?}, {} bytes)", self.shape, self.encoded.len())
    }
}

/// Bytes that are no prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable(&'static str);

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the prompt cannot be decoded: {}; encode it as the Prompt of cascadia/v1/inference.proto", self.0)
    }
}

impl std::error::Error for Undecodable {}

impl EncodedPrompt {
    /// A prompt of text.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        let mut writer = Writer::with_capacity(text.len());
        writer.content.extend_from_slice(text.as_bytes());
        writer.finish(&[Shape::Text.key()])
    }

    /// Checks what came as a `v1.Prompt`, and copies what it says out of the message around it; nothing if it is of a kind
    /// that a later protocol adds.
    ///
    /// # Errors
    /// Why it cannot be decoded: whoever it is sent to would fail over it.
    pub fn read(raw: &[u8]) -> Result<Option<Self>, Undecodable> {
        let (mut rest, mut found) = (raw, None);
        while !rest.is_empty() {
            let begin = raw.len() - rest.len();
            let (tag, value) = field(&mut rest)?;
            let Some(shape) = Shape::of_tag(tag) else { continue };
            let Wire::Delimited(content) = value else { return Err(Undecodable("a field has another type")) };
            if found.replace((shape, begin, raw.len() - rest.len(), content)).is_some() {
                return Err(Undecodable("it has two of text, messages and ids"));
            }
        }
        let Some((shape, begin, end, content)) = found else { return Ok(None) };
        let seen = Seen::of(shape, content)?;
        let encoded = Bytes::copy_from_slice(&raw[begin..end]);
        Ok(Some(Self::seen(shape, encoded, content.len(), seen)))
    }

    fn seen(shape: Shape, encoded: Bytes, content: usize, seen: Seen) -> Self {
        let Seen { empty, weight, ids, beginning } = seen;
        let content = encoded.len() - content;
        Self { encoded, shape, content, empty, weight, ids, beginning: beginning.into() }
    }

    /// Its kind.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Nothing stands in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// The `v1.Prompt`.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// What bounds go by, bytes: of its text, of its ids as varints, of its messages with 16 more for each.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight.max(self.encoded.len().saturating_sub(MOST_AROUND))
    }

    /// About how many tokens it has: its ids, else one for four bytes.
    #[must_use]
    pub fn tokens(&self) -> usize {
        if self.shape == Shape::Ids { self.ids } else { self.weight / 4 }
    }

    /// As much of it as makes a placement key: text, each role and content with a zero behind it, or ids as little-endian
    /// numbers of four bytes.
    #[must_use]
    pub fn beginning(&self) -> &[u8] {
        &self.beginning
    }

    /// Its text, where it is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        if self.shape == Shape::Text { std::str::from_utf8(&self.encoded[self.content..]).ok() } else { None }
    }

    /// Its ids, where it is ids, read one after another where they stand.
    #[must_use]
    pub fn ids(&self) -> Ids<'_> {
        let fields = if self.shape == Shape::Ids { &self.encoded[self.content..] } else { &[] };
        Ids { fields, packed: &[] }
    }

    /// The message, in memory of its own.
    #[must_use]
    pub fn decoded(&self) -> v1::Prompt {
        v1::Prompt::decode(self.encoded.clone()).unwrap_or_default()
    }
}

/// The ids of a prompt of ids.
#[derive(Clone, Debug)]
pub struct Ids<'a> {
    /// The fields that have not been read, and what is left of the one that is being read.
    fields: &'a [u8],
    packed: &'a [u8],
}

impl Iterator for Ids<'_> {
    type Item = TokenId;

    fn next(&mut self) -> Option<TokenId> {
        loop {
            if !self.packed.is_empty() {
                return varint(&mut self.packed).ok().map(|id| id as TokenId);
            }
            if self.fields.is_empty() {
                return None;
            }
            match field(&mut self.fields).ok()? {
                (1, Wire::Delimited(packed)) => self.packed = packed,
                (1, Wire::Varint(id)) => return Some(id as TokenId),
                _ => {}
            }
        }
    }
}

impl From<&v1::Prompt> for EncodedPrompt {
    /// An absent kind is an empty text.
    fn from(prompt: &v1::Prompt) -> Self {
        let read = Self::read(&prompt.encode_to_vec());
        read.ok().flatten().unwrap_or_else(|| Self::of_text(""))
    }
}

/// Keys and lengths around a prompt's content at most.
const MOST_AROUND: usize = 12;

/// What is being encoded, with room in front for the keys and lengths of what is around it: they are known last.
#[derive(Debug)]
struct Writer {
    /// [`MOST_AROUND`] bytes of room, then the content.
    content: Vec<u8>,
}

impl Writer {
    fn with_capacity(bytes: usize) -> Self {
        let mut content = Vec::with_capacity(MOST_AROUND + bytes);
        content.resize(MOST_AROUND, 0);
        Self { content }
    }

    /// Puts the content into these fields, the innermost first.
    fn finish(mut self, keys: &[u8]) -> EncodedPrompt {
        let mut begin = MOST_AROUND;
        for &key in keys {
            let mut head = vec![key];
            encode_length_delimiter(self.content.len() - begin, &mut head).expect("a vector grows");
            begin -= head.len();
            self.content[begin..begin + head.len()].copy_from_slice(&head);
        }
        self.content.shrink_to_fit();
        let encoded = Bytes::from(self.content).slice(begin..);
        let mut rest = &encoded[..];
        let shape = keys.last().and_then(|key| Shape::of_tag(u64::from(key >> 3))).unwrap_or(Shape::Text);
        let (content, seen) = match field(&mut rest) {
            Ok((_, Wire::Delimited(content))) => (content.len(), Seen::of(shape, content).unwrap_or_default()),
            _ => (0, Seen::default()),
        };
        EncodedPrompt::seen(shape, encoded, content, seen)
    }
}

/// Token ids on their way into a prompt: nothing but their bytes is held.
#[derive(Debug)]
pub struct IdsWriter(Writer);

impl IdsWriter {
    /// For ids of about so many bytes, all together, as varints.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Writer::with_capacity(bytes))
    }

    /// One more.
    pub fn push(&mut self, id: TokenId) {
        encode_length_delimiter(id as usize, &mut self.0.content).expect("a vector grows");
    }

    /// The prompt.
    #[must_use]
    pub fn finish(self) -> EncodedPrompt {
        self.0.finish(&[delimited(1), Shape::Ids.key()])
    }
}

/// Messages on their way into a prompt.
#[derive(Debug)]
pub struct MessagesWriter(Writer);

impl MessagesWriter {
    /// For messages of about so many bytes, all together.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Writer::with_capacity(bytes))
    }

    /// One more.
    pub fn push(&mut self, role: &str, content: &str) {
        let message = [(1, role), (2, content)];
        let length =
            |text: &str| if text.is_empty() { 0 } else { 1 + prost::length_delimiter_len(text.len()) + text.len() };
        let bytes = &mut self.0.content;
        bytes.push(delimited(1));
        encode_length_delimiter(length(role) + length(content), bytes).expect("a vector grows");
        for (tag, text) in message.into_iter().filter(|(_, text)| !text.is_empty()) {
            bytes.push(delimited(tag));
            encode_length_delimiter(text.len(), bytes).expect("a vector grows");
            bytes.extend_from_slice(text.as_bytes());
        }
    }

    /// The prompt.
    #[must_use]
    pub fn finish(self) -> EncodedPrompt {
        self.0.finish(&[Shape::Messages.key()])
    }
}

/// What is seen of a prompt's content when it is checked.
#[derive(Debug)]
struct Seen {
    empty: bool,
    weight: usize,
    ids: usize,
    beginning: Vec<u8>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { empty: true, weight: 0, ids: 0, beginning: Vec::new() }
    }
}

impl Seen {
    fn of(shape: Shape, content: &[u8]) -> Result<Self, Undecodable> {
        let mut seen = Self::default();
        match shape {
            Shape::Text => {
                text(content)?;
                seen.weight = content.len();
                seen.empty = content.is_empty();
                seen.begins(content);
            }
            Shape::Messages => {
                let mut rest = content;
                while !rest.is_empty() {
                    match field(&mut rest)? {
                        (1, Wire::Delimited(message)) => seen.message(message)?,
                        (1, _) => return Err(Undecodable("a message has another type")),
                        _ => {}
                    }
                }
            }
            Shape::Ids => {
                let mut rest = content;
                while !rest.is_empty() {
                    match field(&mut rest)? {
                        (1, Wire::Delimited(mut packed)) => {
                            while !packed.is_empty() {
                                let id = varint(&mut packed)?;
                                seen.id(id);
                            }
                        }
                        (1, Wire::Varint(id)) => seen.id(id),
                        (1, Wire::Fixed) => return Err(Undecodable("an id has another type")),
                        _ => {}
                    }
                }
            }
        }
        Ok(seen)
    }

    fn message(&mut self, message: &[u8]) -> Result<(), Undecodable> {
        let (mut rest, mut role, mut said) = (message, &[][..], &[][..]);
        while !rest.is_empty() {
            match field(&mut rest)? {
                (1, Wire::Delimited(bytes)) => role = text(bytes)?,
                (2, Wire::Delimited(bytes)) => said = text(bytes)?,
                (1 | 2, _) => return Err(Undecodable("a field of a message has another type")),
                _ => {}
            }
        }
        self.weight += role.len() + said.len() + 16;
        self.empty &= said.is_empty();
        // Separators, so that a role is no content.
        for part in [role, &[0], said, &[0]] {
            self.begins(part);
        }
        Ok(())
    }

    fn id(&mut self, id: u64) {
        self.empty = false;
        self.ids += 1;
        // As `uint32` is decoded.
        let id = id as u32;
        // A varint of 32 bits has 5 bytes at most.
        self.weight += (38 - (id | 1).leading_zeros() as usize) / 7;
        self.begins(&id.to_le_bytes());
    }

    fn begins(&mut self, bytes: &[u8]) {
        let room = limits::PLACEMENT_KEY_BYTES - self.beginning.len();
        self.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn text(bytes: &[u8]) -> Result<&[u8], Undecodable> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(Undecodable("a string is no UTF-8")),
    }
}

/// A field's value.
enum Wire<'a> {
    Varint(u64),
    Fixed,
    Delimited(&'a [u8]),
}

/// The next field's tag and value.
fn field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Wire<'a>), Undecodable> {
    let key = varint(rest)?;
    let (tag, kind) = (key >> 3, key & 7);
    if tag == 0 || key > u64::from(u32::MAX) {
        return Err(Undecodable("a field has no valid number"));
    }
    let value = match kind {
        0 => Wire::Varint(varint(rest)?),
        1 => take(rest, 8).map(|_| Wire::Fixed)?,
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| Undecodable("it breaks off"))?;
            Wire::Delimited(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| Wire::Fixed)?,
        _ => return Err(Undecodable("a field is of no known type")),
    };
    Ok((tag, value))
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], Undecodable> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or(Undecodable("it breaks off"))?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Undecodable> {
    let value = decode_length_delimiter(rest).map_err(|_| Undecodable("a number is no varint"))?;
    Ok(value as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::prompt::Kind;

    fn prompt(kind: Kind) -> v1::Prompt {
        v1::Prompt { kind: Some(kind) }
    }

    fn message(role: &str, content: &str) -> v1::Message {
        v1::Message { role: role.into(), content: content.into() }
    }

    #[test]
    fn what_is_written_is_what_the_wire_has() {
        let text = "x".repeat(300);
        let ids = [0, 127, 128, 16_383, 16_384, u32::MAX];
        let messages = vec![message("user", &text), message("", ""), message("assistant", "")];
        let mut of_ids = IdsWriter::with_capacity(0);
        ids.iter().for_each(|id| of_ids.push(*id));
        let mut of_messages = MessagesWriter::with_capacity(0);
        messages.iter().for_each(|message| of_messages.push(&message.role, &message.content));
        for (written, said) in [
            (EncodedPrompt::of_text(&text), prompt(Kind::Text(text.clone()))),
            (of_ids.finish(), prompt(Kind::Ids(v1::TokenIds { ids: ids.to_vec() }))),
            (of_messages.finish(), prompt(Kind::Messages(v1::Messages { messages }))),
        ] {
            assert_eq!(written.encoded(), &said.encode_to_vec());
            assert_eq!(written.decoded(), said);
            assert_eq!(EncodedPrompt::read(written.encoded()).unwrap().unwrap(), written);
        }
    }

    #[test]
    fn ids_are_measured_as_they_travel() {
        let of = |ids: &[u32]| EncodedPrompt::from(&prompt(Kind::Ids(v1::TokenIds { ids: ids.to_vec() })));
        let measured = of(&[0, 127, 128, 16_383, 16_384, u32::MAX]);
        assert_eq!((measured.weight(), measured.tokens()), (1 + 1 + 2 + 2 + 3 + 5, 6));
        assert_eq!(measured.ids().collect::<Vec<_>>(), [0, 127, 128, 16_383, 16_384, u32::MAX]);
        assert_eq!(EncodedPrompt::of_text("abc").ids().next(), None);
        assert_eq!(of(&[1]).beginning(), [1, 0, 0, 0]);
        assert_eq!(of(&[7; 1_000]).beginning().len(), limits::PLACEMENT_KEY_BYTES);
    }

    #[test]
    fn a_role_is_no_content() {
        let of = |role, content| {
            EncodedPrompt::from(&prompt(Kind::Messages(v1::Messages { messages: vec![message(role, content)] })))
        };
        assert_eq!(of("ab", "c").beginning(), b"ab\0c\0");
        assert!(of("user", "").is_empty() && !of("", "x").is_empty());
        assert_eq!(of("ab", "c").weight(), 3 + 16);
    }

    #[test]
    fn a_kind_of_later_is_none_and_two_kinds_are_no_prompt() {
        assert_eq!(EncodedPrompt::read(b""), Ok(None));
        assert_eq!(EncodedPrompt::read(&[delimited(9), 1, b'x']), Ok(None));
        let twice = [EncodedPrompt::of_text("a").encoded().to_vec(), EncodedPrompt::of_text("b").encoded().to_vec()];
        assert!(EncodedPrompt::read(&twice.concat()).unwrap_err().to_string().contains("two of text"));
    }

    proptest! {
        /// An owner decodes what a router let pass; else a client could make owners look broken.
        #[test]
        fn what_passes_decodes_to_the_same(raw in prop::collection::vec(any::<u8>(), 0..40), shape in 1u8..4) {
            let mut bytes = vec![delimited(shape), raw.len() as u8];
            bytes.extend_from_slice(&raw);
            if let Ok(Some(read)) = EncodedPrompt::read(&bytes) {
                let decoded = v1::Prompt::decode(&bytes[..]);
                prop_assert!(decoded.is_ok(), "{bytes:?}");
                prop_assert_eq!(&read.decoded(), decoded.as_ref().unwrap());
                if let Some(Kind::Ids(ids)) = decoded.unwrap().kind {
                    prop_assert_eq!(ids.ids.len(), read.tokens());
                }
            }
        }
    }
}
