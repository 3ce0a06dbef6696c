//! Pieces to ids.
//!
//! A piece may be as long as the prompt: of a text without a space, or where a tokenizer cuts nothing. Such a one goes
//! through the merges in windows. A list of tokens is what merging their whole text gives exactly when that holds for
//! every two neighbours: merges go by rank, then from left to right, so the first one that crossed a boundary would cross
//! it as well if the two tokens beside it were alone. Tokens of one window are neighbours in a merged text already, so
//! where two windows meet one look at the tokens beside the boundary proves the whole.

use cascadia_core::ids::TokenId;
use tokenizers::{Model, ModelWrapper, Token};

use super::{Ids, NoIds, boundary};

/// Bytes of a window.
const WINDOW: usize = 16 * 1024;

/// Bytes of a window's end that the next one begins with: its last tokens may be others where more text follows.
const OVERLAP: usize = 1024;

/// Boundaries that are tried before the piece is merged at once.
const TRIES: usize = 8;

/// What is to be known of a model.
#[derive(Debug)]
pub(super) struct Merges {
    window: usize,
    overlap: usize,
    /// Pieces can be merged in windows.
    windows: bool,
    /// A piece that is a token as a whole is that token, whatever the merges say.
    whole_first: bool,
    unknown: Option<TokenId>,
}

/// Merged text from a place on.
struct Window {
    start: usize,
    end: usize,
    tokens: Vec<Token>,
}

impl Merges {
    pub(super) fn of(model: &ModelWrapper) -> Self {
        Self::with_window(model, WINDOW, OVERLAP)
    }

    /// Smaller windows are for tests.
    fn with_window(model: &ModelWrapper, window: usize, overlap: usize) -> Self {
        let ModelWrapper::BPE(bpe) = model else {
            return Self { window, overlap, windows: false, whole_first: false, unknown: None };
        };
        let sure = bpe.dropout.is_none_or(|chance| chance == 0.0);
        let windows = sure && bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none();
        let unknown = bpe.unk_token.as_deref().and_then(|token| bpe.token_to_id(token));
        Self { window, overlap, windows, whole_first: bpe.ignore_merges, unknown }
    }

    /// Adds the ids of a piece.
    pub(super) fn ids(&self, model: &ModelWrapper, piece: &str, ids: &mut Ids<'_>) -> Result<(), NoIds> {
        if self.windows && piece.len() > self.window && !self.is_token(model, piece) {
            let before = ids.made.len();
            if self.in_windows(model, piece, ids)? {
                return Ok(());
            }
            ids.made.truncate(before);
        }
        let tokens = model.tokenize(piece).map_err(NoIds::failed)?;
        ids.add(tokens.into_iter().map(|token| token.id))
    }

    fn is_token(&self, model: &ModelWrapper, text: &str) -> bool {
        self.whole_first && model.token_to_id(text).is_some()
    }

    /// False where windows do not do for this piece.
    fn in_windows(&self, model: &ModelWrapper, piece: &str, ids: &mut Ids<'_>) -> Result<bool, NoIds> {
        let Some(mut window) = self.window(model, piece, 0)? else { return Ok(false) };
        while window.end < piece.len() {
            let Some((settled, next)) = self.next(model, piece, &window)? else { return Ok(false) };
            ids.add(window.tokens[..settled].iter().map(|token| token.id))?;
            window = next;
        }
        ids.add(window.tokens.iter().map(|token| token.id))?;
        Ok(true)
    }

    /// The window that goes on, and how many of this one's tokens stand before it.
    fn next(&self, model: &ModelWrapper, piece: &str, window: &Window) -> Result<Option<(usize, Window)>, NoIds> {
        let last = window.end.saturating_sub(self.overlap);
        let apart = |&at: &usize| {
            let place = window.start + window.tokens[at].offsets.0;
            place <= last && piece.is_char_boundary(place)
        };
        for at in (1..window.tokens.len()).rev().filter(apart).take(TRIES) {
            let place = window.start + window.tokens[at].offsets.0;
            let Some(next) = self.window(model, piece, place)? else { return Ok(None) };
            if self.meet(model, piece, (window, at), &next)? {
                return Ok(Some((at, next)));
            }
        }
        Ok(None)
    }

    /// Merges a window's text; `None` where its tokens do not cover it one by one.
    fn window(&self, model: &ModelWrapper, piece: &str, start: usize) -> Result<Option<Window>, NoIds> {
        let end = boundary(piece, start + self.window);
        let text = &piece[start..end];
        if self.is_token(model, text) {
            return Ok(None);
        }
        let tokens = model.tokenize(text).map_err(NoIds::failed)?;
        let covers = tokens.last().is_some_and(|token| token.offsets.1 == text.len());
        let known = self.unknown.is_none_or(|unknown| tokens.iter().all(|token| token.id != unknown));
        Ok((covers && known).then_some(Window { start, end, tokens }))
    }

    /// Whether the tokens beside the boundary are what their text alone becomes. Where a token is a byte of a character
    /// its neighbours go with it.
    fn meet(
        &self,
        model: &ModelWrapper,
        piece: &str,
        (left, at): (&Window, usize),
        right: &Window,
    ) -> Result<bool, NoIds> {
        let begins = |&i: &usize| piece.is_char_boundary(left.start + left.tokens[i].offsets.0);
        let ends = |&i: &usize| piece.is_char_boundary(right.start + right.tokens[i].offsets.1);
        let (Some(from), Some(to)) = ((0..at).rev().find(begins), (0..right.tokens.len()).find(ends)) else {
            return Ok(false);
        };
        let text = &piece[left.start + left.tokens[from].offsets.0..right.start + right.tokens[to].offsets.1];
        let merged = model.tokenize(text).map_err(NoIds::failed)?;
        let apart = left.tokens[from..at].iter().chain(&right.tokens[..=to]);
        Ok(merged.iter().map(|token| token.id).eq(apart.map(|token| token.id)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::Asked;
    use super::*;

    /// Merges of pairs of letters and of what was merged before, the first one first.
    fn model(pairs: &[(usize, usize)], fallback: bool, whole_first: bool) -> ModelWrapper {
        let mut tokens: Vec<String> = ["a", "b", "c", "\u{e9}"].map(String::from).to_vec();
        let mut merges = Vec::new();
        for &(left, right) in pairs {
            let pair = [tokens[left % tokens.len()].clone(), tokens[right % tokens.len()].clone()];
            let merged = pair.concat();
            // One token may be made in several ways, as in files that were converted from scores.
            if !merges.contains(&pair) && merged.len() < 24 {
                merges.push(pair);
                if !tokens.contains(&merged) {
                    tokens.push(merged);
                }
            }
        }
        if fallback {
            tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
        }
        let vocabulary: serde_json::Map<_, _> = tokens.into_iter().zip((0..).map(|id: u32| json!(id))).collect();
        let model = json!({
            "type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": fallback,
            "ignore_merges": whole_first,
        });
        serde_json::from_value(model).unwrap()
    }

    fn ids(merges: &Merges, model: &ModelWrapper, text: &str, asked: Asked<'_>) -> Result<Vec<TokenId>, NoIds> {
        let mut ids = Ids { made: Vec::new(), asked };
        merges.ids(model, text, &mut ids).map(|()| ids.made)
    }

    fn at_once(model: &ModelWrapper, text: &str) -> Vec<TokenId> {
        model.tokenize(text).unwrap().into_iter().map(|token| token.id).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn windows_give_the_ids_of_the_whole(
            pairs in prop::collection::vec((0..60_usize, 0..60_usize), 0..30),
            (fallback, whole_first) in any::<(bool, bool)>(),
            parts in prop::collection::vec(("[abc\u{e9}]{1,4}|[\u{e9}\u{20ac}ab]{1,3}", 1..30_usize), 1..8),
            (window, overlap) in (8..40_usize, 0..8_usize),
        ) {
            let model = model(&pairs, fallback, whole_first);
            let text: String = parts.iter().map(|(part, times)| part.repeat(*times)).collect();
            let merges = Merges::with_window(&model, window, overlap);
            prop_assert_eq!(ids(&merges, &model, &text, Asked::ALL).unwrap(), at_once(&model, &text));
        }
    }

    /// Else the test above would test nothing: a piece merged at once is right, too.
    #[test]
    fn windows_do_for_texts_that_repeat() {
        // Doublings, and a chain in which each pair goes before the one on its left.
        let model = model(&[(0, 0), (4, 4), (5, 5), (1, 2), (0, 1)], false, false);
        let merges = Merges::with_window(&model, 64, 16);
        for text in ["a".repeat(1_000), "abc".repeat(500), "aab".repeat(700) + "c", "aaaaaaaab".repeat(99)] {
            let mut made = Ids { made: Vec::new(), asked: Asked::ALL };
            assert!(merges.in_windows(&model, &text, &mut made).unwrap(), "{text}");
            assert_eq!(made.made, at_once(&model, &text));
        }
    }

    #[test]
    fn a_long_piece_ends_where_it_is_too_long_or_unwanted() {
        let model = model(&[(0, 0), (4, 4)], false, false);
        let merges = Merges::with_window(&model, 64, 16);
        let text = "a".repeat(100_000);
        let looked = std::cell::Cell::new(0);
        let few = Asked {
            most: 100,
            wanted: &|| {
                looked.set(looked.get() + 1);
                true
            },
        };
        assert!(matches!(ids(&merges, &model, &text, few), Err(NoIds::TooMany(101..=120))));
        assert!(looked.get() < 20, "{}", looked.get());
        looked.set(0);
        let left = Asked {
            most: usize::MAX,
            wanted: &|| {
                looked.set(looked.get() + 1);
                looked.get() < 5
            },
        };
        assert_eq!(ids(&merges, &model, &text, left), Err(NoIds::Abandoned));
        assert_eq!(looked.get(), 5);
    }
}
