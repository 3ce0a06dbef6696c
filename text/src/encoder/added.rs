//! Tokens that are found in a text before anything else is done to it.

use aho_corasick::{AhoCorasick, MatchKind};
use cascadia_core::ids::TokenId;
use fancy_regex::Regex;

use super::NoIds;

/// A part of a text.
pub(super) enum Part<'t> {
    /// One of the tokens.
    Token(TokenId),
    /// What stands between two of them, and where it begins; never empty.
    Text(usize, &'t str),
}

#[derive(Debug)]
struct AddedToken {
    id: TokenId,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

/// A set of tokens to look for.
#[derive(Debug)]
pub(super) struct AddedTokens {
    search: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
    word: Regex,
}

impl AddedTokens {
    /// Those that a tokenizer looks for in the rewritten text, or those that it looks for in the text as it came.
    pub(super) fn of(inner: &tokenizers::Tokenizer, rewritten: bool) -> Result<Self, tokenizers::Error> {
        let added = inner.get_added_tokens_decoder();
        let mut named: Vec<(String, AddedToken)> = Vec::new();
        for (id, token) in added.into_iter().filter(|(_, token)| token.normalized == rewritten) {
            let name = if rewritten { inner.id_to_token(id).unwrap_or(token.content) } else { token.content };
            let (single_word, lstrip, rstrip) = (token.single_word, token.lstrip, token.rstrip);
            named.push((name, AddedToken { id, single_word, lstrip, rstrip }));
        }
        let (names, tokens): (Vec<_>, Vec<_>) = named.into_iter().unzip();
        let longest = || AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&names);
        let search = if names.is_empty() { None } else { Some(longest()?) };
        Ok(Self { search, tokens, word: Regex::new(r"\A\w\z")? })
    }

    /// Hands over the parts of a text in their order.
    pub(super) fn split(&self, text: &str, mut each: impl FnMut(Part<'_>) -> Result<(), NoIds>) -> Result<(), NoIds> {
        let mut done = 0;
        for found in self.search.iter().flat_map(|search| search.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (before, behind) = (&text[..found.start()], &text[found.end()..]);
            if token.single_word && (self.is_word(before.chars().next_back()) || self.is_word(behind.chars().next())) {
                continue;
            }
            // Spaces that the token before has taken are gone.
            let start = if token.lstrip { before.trim_end().len().max(done) } else { found.start() };
            if done < start {
                each(Part::Text(done, &text[done..start]))?;
            }
            each(Part::Token(token.id))?;
            done = if token.rstrip { text.len() - behind.trim_start().len() } else { found.end() };
        }
        if done < text.len() { each(Part::Text(done, &text[done..])) } else { Ok(()) }
    }

    fn is_word(&self, c: Option<char>) -> bool {
        c.is_some_and(|c| self.word.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false))
    }
}
