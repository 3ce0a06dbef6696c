//! What a client sends becomes ids, or one clear sentence.

use cascadia_core::commit::{Message, Prompt, Room};
use cascadia_text::{PromptError, TemplateError, Tokenizer, toy};

fn resolve(tokenizer: &Tokenizer, prompt: &Prompt) -> Result<Vec<u32>, PromptError> {
    tokenizer.resolve(prompt, Room { context_length: 32, max_tokens: 8 }, None)
}

#[test]
fn three_kinds_of_prompt() {
    let tokenizer = toy::byte_level();
    let hello = tokenizer.encode("Hello", false).unwrap();
    assert_eq!(resolve(&tokenizer, &Prompt::Text("Hello".into())).unwrap(), hello);
    assert_eq!(resolve(&tokenizer, &Prompt::Ids(vec![0, 5, 9])).unwrap(), [0, 5, 9]);
    let messages = Prompt::Messages(vec![Message::new("user", "Hello")]);
    assert_eq!(resolve(&tokenizer, &messages).unwrap(), [&[0, 2], hello.as_slice(), &[3]].concat());
    let text = Prompt::Text("hello".into());
    assert_eq!(resolve(&toy::sentencepiece(), &text).unwrap()[0], 1, "the tokenizer's own BOS");
}

fn vocabulary(tokenizer: &Tokenizer) -> u32 {
    tokenizer.vocabulary() as u32
}

#[test]
fn bad_prompts() {
    let tokenizer = toy::byte_level();
    let refused = |prompt: Prompt| {
        let error = resolve(&tokenizer, &prompt).unwrap_err();
        assert!(!error.to_string().contains('\n'));
        error
    };
    for empty in [Prompt::Text(String::new()), Prompt::Messages(vec![]), Prompt::Ids(vec![])] {
        assert_eq!(refused(empty), PromptError::Empty);
    }
    assert_eq!(resolve(&toy::sentencepiece(), &Prompt::Text(String::new())), Err(PromptError::Empty));
    let long = refused(Prompt::Ids(vec![5; 32]));
    assert_eq!(
        long.to_string(),
        "the prompt has 32 tokens but the model's context is 32: shorten it to at most 31 tokens"
    );
    let no_room = refused(Prompt::Ids(vec![5; 25]));
    assert_eq!(
        no_room.to_string(),
        "the prompt has 25 tokens and max_tokens asks for 8 more, but the model's context is 32: set max_tokens to at most 7 or shorten the prompt"
    );
    assert!(resolve(&tokenizer, &Prompt::Ids(vec![5; 24])).is_ok());
    let endless = refused(Prompt::Text("Hello ".repeat(100_000)));
    assert_eq!(endless, PromptError::TooManyBytes { bytes: 600_000, context_length: 32 });
    assert!(endless.to_string().contains("shorten it to less than 32 tokens"), "{endless}");
    // What can be cut into tokens that fit is never refused for its bytes.
    let longest = (0..vocabulary(&tokenizer)).max_by_key(|&id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len));
    let name = tokenizer.token_bytes(longest.unwrap()).unwrap();
    assert_eq!(Some(name.len()), tokenizer.widest_token());
    let full = String::from_utf8(name.repeat(24)).unwrap();
    assert_eq!(resolve(&tokenizer, &Prompt::Text(full)).unwrap(), [longest.unwrap(); 24]);
    let vocabulary = tokenizer.vocabulary();
    let unknown = refused(Prompt::Ids(vec![5, u32::MAX]));
    assert_eq!(unknown, PromptError::UnknownId { id: u32::MAX, position: 1, vocabulary });
    let messages = Prompt::Messages(vec![Message::new("user", "hello")]);
    let no_template = resolve(&toy::sentencepiece(), &messages).unwrap_err();
    assert_eq!(no_template, PromptError::Template(TemplateError::Missing));
    assert!(no_template.to_string().contains("plain text"));
}
