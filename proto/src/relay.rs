//! `Inference` as a router serves it: what may be large in a request stays bytes until it has been bounded.
//!
//! A message is decoded before anybody can look at it, and two bytes on the wire may be fifty in memory. So a request's
//! prompt and parameters are cut out as they came: [`EncodedPrompt`] checks the one and is what owners are sent, in
//! [`opening`]; the other is decoded once it is known to be small.

use cascadia_core::limits;
use prost::Message as _;
use prost::bytes::Bytes;
use prost::{encode_length_delimiter, length_delimiter_len};

use crate::prompt::{EncodedPrompt, delimited};
use crate::v1;

/// The service, generated from `cascadia/v1/inference.proto` for this module's request.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/relay/cascadia.v1.rs"));
}

pub use generated::inference_server;

/// `v1.GenerateRequest`, of which two fields are not decoded yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GenerateRequest {
    /// A served model; empty where the cluster serves exactly one.
    #[prost(string, tag = "1")]
    pub model: String,
    /// A `v1.Prompt`.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub prompt: Option<Bytes>,
    /// A `v1.Parameters`.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub parameters: Option<Bytes>,
    /// A label for logs and retries.
    #[prost(string, tag = "4")]
    pub request_id: String,
    /// Whose it is.
    #[prost(string, tag = "5")]
    pub tenant: String,
    /// Sessions of one conversation prefer one node.
    #[prost(string, tag = "6")]
    pub conversation: String,
    /// Higher first.
    #[prost(int32, tag = "7")]
    pub priority: i32,
    /// The whole request's time.
    #[prost(uint64, optional, tag = "8")]
    pub timeout_ms: Option<u64>,
    /// Part of the prefix cache's key.
    #[prost(string, optional, tag = "9")]
    pub cache_salt: Option<String>,
    /// Which of the seed's texts.
    #[prost(uint32, tag = "10")]
    pub choice: u32,
}

/// Encoded parameters have so many bytes at most: what is within every bound of theirs has half as much.
pub const PARAMETERS_BYTES: usize = limits::CONTROL_BYTES;

/// The bytes of a `v1.RunRequest` that opens a session with this prompt: what is around the prompt, and the prompt, which
/// is shared and not copied. A prompt of `open`'s own is left out.
#[must_use]
pub fn opening(mut open: v1::RunOpen, prompt: &EncodedPrompt) -> [Bytes; 2] {
    // `RunRequest.open`, `RunOpen.prompt`.
    const KEYS: [u8; 2] = [delimited(1), delimited(9)];
    open.prompt = None;
    let prompt = prompt.encoded();
    let bytes = open.encoded_len() + 1 + length_delimiter_len(prompt.len()) + prompt.len();
    let mut around = Vec::with_capacity(open.encoded_len() + 12);
    around.push(KEYS[0]);
    encode_length_delimiter(bytes, &mut around).expect("a vector grows");
    open.encode(&mut around).expect("a vector grows");
    around.push(KEYS[1]);
    encode_length_delimiter(prompt.len(), &mut around).expect("a vector grows");
    [around.into(), prompt.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::prompt::Kind;

    fn prompt() -> v1::Prompt {
        v1::Prompt { kind: Some(Kind::Ids(v1::TokenIds { ids: (0..1_000).collect() })) }
    }

    #[test]
    fn a_request_is_the_wires() {
        let sent = v1::GenerateRequest {
            model: "demo".into(),
            prompt: Some(prompt()),
            parameters: Some(v1::Parameters { banned: vec![1, 300], ..v1::Parameters::default() }),
            request_id: "r".into(),
            tenant: "t".into(),
            conversation: "c".into(),
            priority: -3,
            timeout_ms: Some(5),
            cache_salt: Some("s".into()),
            choice: 2,
        };
        let read = GenerateRequest::decode(&sent.encode_to_vec()[..]).unwrap();
        assert_eq!(read.encode_to_vec(), sent.encode_to_vec());
        assert_eq!(v1::Parameters::decode(read.parameters.unwrap()).unwrap(), sent.parameters.unwrap());
        assert_eq!(EncodedPrompt::read(&read.prompt.unwrap()).unwrap().unwrap().decoded(), prompt());
    }

    #[test]
    fn an_opening_is_the_wires_and_its_prompt_is_shared() {
        let open = v1::RunOpen { model: "demo".into(), age_ms: 7, request_id: "r".into(), ..v1::RunOpen::default() };
        let encoded = EncodedPrompt::from(&prompt());
        let [around, shared] = opening(open.clone(), &encoded);
        let sent = v1::RunRequest::decode(&[&around[..], &shared[..]].concat()[..]).unwrap();
        let open = v1::RunOpen { prompt: Some(prompt()), ..open };
        assert_eq!(sent.message, Some(v1::run_request::Message::Open(open)));
        assert_eq!(shared.as_ptr(), encoded.encoded().as_ptr());
    }
}
