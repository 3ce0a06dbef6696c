//! A request as both doors bring it: some prompts, so many answers to each, on terms that all of them share.
//!
//! Nothing in it is copied for a session: prompts and parameters are shared by reference, and what comes over gRPC is
//! bounded before it is decoded.

use cascadia_core::ids::TokenId;
use cascadia_proto::prompt::EncodedPrompt;
use cascadia_proto::relay::{GenerateRequest, PARAMETERS_BYTES};
use cascadia_proto::v1::Parameters;
use prost::Message as _;

use crate::error::GenerateError;

/// What a client asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// A served model; empty for the only one.
    pub model: String,
    /// At least one, or there is nothing to do.
    pub prompts: Vec<EncodedPrompt>,
    /// The first of the seed's texts that each prompt gets.
    pub choice: u32,
    /// Answers to each prompt; each is a session.
    pub answers: u32,
    /// What the sessions are asked, all alike.
    pub parameters: Parameters,
    /// The label; minted if empty.
    pub request_id: String,
    /// Whose it is.
    pub tenant: String,
    /// Sessions of one conversation prefer one node.
    pub conversation: String,
    /// Higher goes first.
    pub priority: i32,
    /// The time it has.
    pub timeout_ms: Option<u64>,
    /// Part of the prefix cache's key.
    pub cache_salt: Option<String>,
}

impl Request {
    /// What a gRPC client asks: one session.
    ///
    /// # Errors
    /// The field that is too large, or is not what the wire says.
    pub fn of_message(message: GenerateRequest) -> Result<Self, GenerateError> {
        let parameters = message.parameters.unwrap_or_default();
        let (bytes, limit) = (parameters.len(), PARAMETERS_BYTES);
        if bytes > limit {
            return Err(GenerateError::TooLong { field: "parameters", bytes, limit });
        }
        let parameters = Parameters::decode(parameters).map_err(|error| GenerateError::Undecodable {
            field: "parameters",
            sentence: format!("the parameters cannot be decoded: {error}"),
        })?;
        let prompt = message.prompt.map(|raw| EncodedPrompt::read(&raw)).transpose();
        let prompt =
            prompt.map_err(|error| GenerateError::Undecodable { field: "prompt", sentence: error.to_string() });
        Ok(Self {
            model: message.model,
            prompts: prompt?.flatten().into_iter().collect(),
            choice: message.choice,
            answers: 1,
            parameters,
            request_id: message.request_id,
            tenant: message.tenant,
            conversation: message.conversation,
            priority: message.priority,
            timeout_ms: message.timeout_ms,
            cache_salt: message.cache_salt,
        })
    }

    /// How many sessions it takes.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.prompts.len() * self.answers as usize
    }

    /// What its sessions hold of it, bytes: each prompt once, and the prompt's ids once for each session.
    #[must_use]
    pub fn bytes(&self) -> usize {
        held(&self.prompts, self.answers)
    }
}

/// What the sessions of some prompts hold of them, with so many answers to each.
#[must_use]
pub fn held(prompts: &[EncodedPrompt], answers: u32) -> usize {
    let ids = |prompt: &EncodedPrompt| prompt.tokens() * size_of::<TokenId>() * answers as usize;
    prompts.iter().map(|prompt| prompt.encoded().len() + ids(prompt)).sum()
}

#[cfg(test)]
mod tests {
    use cascadia_proto::v1;
    use cascadia_proto::v1::prompt::Kind;

    use super::*;

    fn message(request: &v1::GenerateRequest) -> GenerateRequest {
        GenerateRequest::decode(&request.encode_to_vec()[..]).unwrap()
    }

    fn text(text: &str) -> v1::Prompt {
        v1::Prompt { kind: Some(Kind::Text(text.into())) }
    }

    #[test]
    fn what_comes_over_grpc_is_bounded_before_it_is_decoded() {
        let banned = v1::Parameters { banned: vec![7; 100_000], ..v1::Parameters::default() };
        let many = v1::GenerateRequest { prompt: Some(text("x")), parameters: Some(banned), ..Default::default() };
        let refused = Request::of_message(message(&many)).unwrap_err();
        assert!(matches!(refused, GenerateError::TooLong { field: "parameters", .. }), "{refused}");
        let broken = GenerateRequest { parameters: Some(vec![0xff].into()), ..GenerateRequest::default() };
        let refused = Request::of_message(broken).unwrap_err();
        assert!(refused.to_string().starts_with("the parameters cannot be decoded"), "{refused}");
        let broken = GenerateRequest { prompt: Some(vec![0x0a, 9, b'x'].into()), ..GenerateRequest::default() };
        let refused = Request::of_message(broken).unwrap_err();
        assert!(refused.to_string().starts_with("the prompt cannot be decoded: it breaks off"), "{refused}");
    }

    /// Every bound of a parameter is reached, and the whole is within the bound of what is decoded.
    #[test]
    fn what_may_be_asked_is_within_the_bound() {
        let most = v1::Parameters {
            logit_bias: (0..1_024).map(|i| v1::LogitBias { token: u32::MAX - i, bias: -99.5 }).collect(),
            banned: vec![u32::MAX; 1_024],
            stop_token_ids: vec![u32::MAX; 1_024],
            stop: vec!["x".repeat(256); 16],
            ..v1::Parameters::default()
        };
        assert!(most.encoded_len() < PARAMETERS_BYTES / 2, "{}", most.encoded_len());
    }

    #[test]
    fn a_prompt_counts_once_and_its_ids_for_each_session() {
        let prompt = EncodedPrompt::of_text(&"x".repeat(4_000));
        let request = Request { prompts: vec![prompt.clone(), prompt], answers: 3, ..Request::default() };
        assert_eq!((request.sessions(), request.bytes()), (6, 2 * (4_003 + 3 * 4_000)));
    }
}
