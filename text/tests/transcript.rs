//! The commit function against its definition, which makes the whole text anew for every token.

use std::sync::{Arc, LazyLock};

use cascadia_core::commit::{Committed, Finish, FinishReason, StopMatch, StopSettings};
use cascadia_text::{StopStrings, Tokenizer, Transcript, toy};
use proptest::prelude::*;

fn settings(stop_ids: &[u32], stop_strings: &[&str], max_tokens: usize) -> StopSettings {
    let stop_strings = stop_strings.iter().map(|stop| (*stop).to_owned()).collect();
    StopSettings { stop_ids: stop_ids.to_vec(), stop_strings, max_tokens }
}

fn stopped(matched: StopMatch) -> Option<Finish> {
    Some(Finish { reason: FinishReason::Stop, matched: Some(matched) })
}

fn out_of_length() -> Option<Finish> {
    Some(Finish { reason: FinishReason::Length, matched: None })
}

/// Our tokenizers beside the library's own.
static BOTH: LazyLock<[(Tokenizer, tokenizers::Tokenizer); 2]> = LazyLock::new(|| {
    [toy::byte_level_files(), toy::sentencepiece_files()]
        .map(|files| (Tokenizer::new(&files).unwrap(), tokenizers::Tokenizer::from_bytes(&files.tokenizer).unwrap()))
});

/// A tokenizer, and whether it drops a space at the very beginning of a text.
#[derive(Clone, Debug)]
struct Subject(Arc<Tokenizer>, bool);

impl Subject {
    fn all() -> [Self; 2] {
        [Self(Arc::new(toy::byte_level()), false), Self(Arc::new(toy::sentencepiece()), true)]
    }

    /// Specials, an unknown id, and ids that end in the middle of characters or spell stop strings.
    fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..4).collect();
        for text in ["the world.\n", "hello  ing", "é€😀", "ab", " a b", "\u{fffd}"] {
            ids.extend(self.0.encode(text, false).unwrap());
        }
        ids.push(self.0.vocabulary() as u32 + 5);
        ids
    }

    fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        let shown = ids.iter().filter(|&&id| !self.0.is_special(id));
        let bytes = shown.flat_map(|&id| self.0.token_bytes(id).unwrap_or_default().to_vec()).collect::<Vec<_>>();
        bytes.strip_prefix(b" ").filter(|_| self.1).map(<[u8]>::to_vec).unwrap_or(bytes)
    }

    /// The text behind a prompt; an unfinished last character is there only where the text has ended.
    fn text(&self, prompt: &[u32], output: &[u32], ended: bool) -> String {
        let before = complete(&self.bytes(prompt));
        let bytes = self.bytes(&[prompt, output].concat());
        let all = if ended { String::from_utf8_lossy(&bytes).into_owned() } else { complete(&bytes) };
        all[before.len()..].to_owned()
    }

    /// What committing all tokens, and flushing if nothing ended the text, must give.
    fn by_definition(&self, prompt: &[u32], stop: &StopSettings, tokens: &[u32]) -> Committed {
        for taken in 1..=tokens.len() {
            let (output, last) = (&tokens[..taken], tokens[taken - 1]);
            if stop.stop_ids.contains(&last) {
                let text = self.text(prompt, &output[..taken - 1], true);
                return Committed { taken, text, finish: stopped(StopMatch::Token(last)) };
            }
            let text = self.text(prompt, output, false);
            let hits = stop.stop_strings.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at, s)));
            if let Some((_, at, stop)) = hits.min() {
                let text = text[..at].to_owned();
                return Committed { taken, text, finish: stopped(StopMatch::Text(stop.clone())) };
            }
            if taken == stop.max_tokens {
                return Committed { taken, text: self.text(prompt, output, true), finish: out_of_length() };
            }
        }
        Committed { taken: tokens.len(), text: self.text(prompt, tokens, true), finish: None }
    }
}

/// Lossy UTF-8 without a last character that may still be completed.
fn complete(bytes: &[u8]) -> String {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let open = !last.is_empty() && str::from_utf8(last).unwrap_err().error_len().is_none();
    String::from_utf8_lossy(&bytes[..bytes.len() - if open { last.len() } else { 0 }]).into_owned()
}

/// Commits in blocks of the given lengths, as long as nothing ended the text.
fn in_blocks(mut transcript: Transcript, tokens: &[u32], lengths: &[usize]) -> Committed {
    let mut sum = Committed { taken: 0, text: String::new(), finish: None };
    let mut rest = tokens;
    let mut lengths = lengths.iter().copied().cycle();
    while !rest.is_empty() && sum.finish.is_none() {
        let (block, behind) = rest.split_at(lengths.next().unwrap_or(1).clamp(1, rest.len()));
        let committed = transcript.commit(block);
        assert!(committed.taken == block.len() || committed.finish.is_some());
        sum.taken += committed.taken;
        sum.text += &committed.text;
        sum.finish = committed.finish;
        rest = behind;
    }
    assert_eq!(sum.taken, transcript.length());
    assert_eq!(sum.finish.as_ref(), transcript.finish());
    let held = transcript.flush();
    assert!(sum.finish.is_none() || held.is_empty());
    sum.text += &held;
    sum
}

/// A subject, a prompt, settings, tokens, block lengths, and where an owner is lost.
fn cases() -> impl Strategy<Value = (Subject, Vec<u32>, StopSettings, Vec<u32>, Vec<usize>, usize)> {
    let stops = ["the", "he w", "ab", "b a", "€", "é€", "\u{fffd}", "hello", "o  i", " ", "\n", "a", "world."];
    prop::sample::select(Subject::all().to_vec()).prop_flat_map(move |subject| {
        let ids = prop::sample::select(subject.ids());
        let settings = (
            prop::collection::vec(ids.clone(), 0..2),
            prop::collection::vec(prop::sample::select(stops.to_vec()), 0..3),
            1..40_usize,
        );
        (
            Just(subject),
            prop::collection::vec(ids.clone(), 0..4),
            settings.prop_map(|(stop_ids, strings, max)| self::settings(&stop_ids, &strings, max)),
            prop::collection::vec(ids, 0..40),
            prop::collection::vec(1..9_usize, 1..4),
            0..40_usize,
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_or_single_tokens_or_by_definition((subject, prompt, stop, tokens, lengths, lost) in cases()) {
        let wanted = subject.by_definition(&prompt, &stop, &tokens);
        let new = || Transcript::new(subject.0.clone(), &prompt, stop.clone());
        prop_assert_eq!(&in_blocks(new(), &tokens, &lengths), &wanted);
        prop_assert_eq!(&in_blocks(new(), &tokens, &[1]), &wanted);
        prop_assert_eq!(&in_blocks(new(), &tokens, &[tokens.len().max(1)]), &wanted);

        // Another owner goes on from the ids alone.
        let lost = lost.min(wanted.taken);
        let sent = new().commit(&tokens[..lost]).text;
        let mut next = Transcript::resume(subject.0.clone(), &prompt, stop.clone(), &tokens[..lost]);
        let rest = next.commit(&tokens[lost..]);
        prop_assert_eq!(sent + &rest.text + &next.flush(), wanted.text);
        prop_assert_eq!((lost + rest.taken, rest.finish), (wanted.taken, wanted.finish));
    }

    #[test]
    fn decoding_is_that_of_the_library(ids in prop::collection::vec(0..290_u32, 0..30)) {
        let [(byte_level, its_library), (sentencepiece, others_library)] = &*BOTH;
        prop_assert_eq!(byte_level.decode(&ids), its_library.decode(&ids, true).unwrap());
        // The library makes one mark of every byte of a run that has one bad byte; here the good ones survive.
        let characters: Vec<u32> = ids.into_iter().filter(|id| !(3 + 128..3 + 256).contains(id)).collect();
        prop_assert_eq!(sentencepiece.decode(&characters), others_library.decode(&characters, true).unwrap());
    }

    #[test]
    fn stop_strings_do_not_depend_on_the_cut(text in "[abé]{0,30}", stops in prop::collection::vec("[abé]{1,4}", 0..4),
                                             cuts in prop::collection::vec(1..5_usize, 1..4)) {
        let (mut whole, mut pieces) = (StopStrings::new(stops.clone()), StopStrings::new(stops.clone()));
        let (mut at_once, mut in_pieces) = (String::new(), String::new());
        let found = whole.push(&text, &mut at_once).map(str::to_owned);
        let letters: Vec<char> = text.chars().collect();
        let (mut rest, mut hit) = (letters.as_slice(), None);
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() || hit.is_some() {
                break;
            }
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            hit = pieces.push(&piece.iter().collect::<String>(), &mut in_pieces).map(str::to_owned);
            rest = behind;
        }
        prop_assert_eq!(&hit, &found);
        prop_assert_eq!(&in_pieces, &at_once);
        if found.is_none() {
            // Held back: only what may still become a stop string.
            let held = &text[at_once.len()..];
            prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
        }
    }
}

#[test]
fn a_stop_string_across_tokens_and_blocks() {
    let tokenizer = Arc::new(toy::byte_level());
    let ids = tokenizer.encode("so the worldly", false).unwrap();
    let mut transcript = Transcript::new(tokenizer.clone(), &[0], settings(&[1], &["e wor"], 99));
    let first = transcript.commit(&ids[..3]);
    assert_eq!((first.text.as_str(), first.finish), ("so th", None));
    let second = transcript.commit(&ids[3..]);
    // " world" completes the string: it counts, "ly" does not.
    assert_eq!(tokenizer.decode(&ids[3..=3]), " world");
    assert_eq!((second.taken, second.text.as_str()), (1, ""));
    assert_eq!(second.finish, stopped(StopMatch::Text("e wor".into())));
    let after = transcript.commit(&ids);
    assert_eq!((after.taken, after.text.as_str(), after.finish), (0, "", second.finish));
}

#[test]
fn eos_counts_but_is_not_shown() {
    let tokenizer = Arc::new(toy::byte_level());
    let hello = tokenizer.encode("Hello", false).unwrap();
    let tokens = [&hello[..], &[1], &hello].concat();
    let mut transcript = Transcript::new(tokenizer.clone(), &[0], settings(&[1], &["lot"], 2));
    let committed = transcript.commit(&tokens);
    // The held-back "lo" is released at the end; Stop is said, although the length is reached as well.
    assert_eq!(committed, Committed { taken: 2, text: "Hello".into(), finish: stopped(StopMatch::Token(1)) });
    let mut ignoring = Transcript::new(tokenizer, &[0], settings(&[], &[], 99));
    assert_eq!(ignoring.commit(&tokens), Committed { taken: 3, text: "HelloHello".into(), finish: None });
}

#[test]
fn a_stop_id_need_not_be_special() {
    let tokenizer = Arc::new(toy::byte_level());
    let ids = tokenizer.encode("Hello world.\n", false).unwrap();
    let mut transcript = Transcript::new(tokenizer, &[], settings(&[ids[1]], &["world"], 99));
    let committed = transcript.commit(&ids);
    assert_eq!(committed, Committed { taken: 2, text: "Hello".into(), finish: stopped(StopMatch::Token(ids[1])) });
}

#[test]
fn length_releases_what_is_held() {
    let tokenizer = Arc::new(toy::byte_level());
    let ids = tokenizer.encode("the€", false).unwrap();
    let mut transcript = Transcript::new(tokenizer.clone(), &[], settings(&[], &["the end"], 2));
    let committed = transcript.commit(&ids);
    assert_eq!(committed, Committed { taken: 2, text: "the\u{fffd}".into(), finish: out_of_length() });
    let mut none = Transcript::new(tokenizer, &[], settings(&[], &[], 0));
    assert_eq!(none.commit(&ids), Committed { taken: 0, text: String::new(), finish: out_of_length() });
}

#[test]
fn garbage_bytes_delay_nothing() {
    let tokenizer = Arc::new(toy::byte_level());
    let byte = |byte: u32| 4 + byte;
    let mut transcript = Transcript::new(tokenizer, &[], settings(&[], &[], 99));
    let mut texts = |tokens: &[u32]| tokens.iter().map(|&t| transcript.commit(&[t]).text).collect::<Vec<_>>();
    assert_eq!(texts(&[0x9f, 0x9f, 0xe2, 0x82, 0x61].map(byte)), ["\u{fffd}", "\u{fffd}", "", "", "\u{fffd}a"]);
    assert_eq!(texts(&[0xf0, 0x9f, 0x98, 0x80].map(byte)), ["", "", "", "😀"]);
}

#[test]
fn spaces_behind_a_prompt() {
    let tokenizer = Arc::new(toy::sentencepiece());
    let ids = tokenizer.encode("the world", false).unwrap();
    let text = |prompt: &[u32]| Transcript::new(tokenizer.clone(), prompt, settings(&[], &[], 99)).commit(&ids).text;
    assert_eq!(text(&[1]), "the world", "nothing stands before it");
    assert_eq!(text(&[1, ids[0]]), " the world", "it goes on from text");
}

#[test]
fn a_prompt_may_end_inside_a_character() {
    let tokenizer = Arc::new(toy::byte_level());
    let ids = tokenizer.encode("x😀€", false).unwrap();
    for cut in 1..ids.len() {
        let mut transcript = Transcript::new(tokenizer.clone(), &ids[..cut], settings(&[], &[], 99));
        let text = transcript.commit(&ids[cut..]).text;
        assert_eq!(text, ["😀€", "😀€", "€", "€"][cut - 1]);
    }
}
