//! What is asked: problems of a file, or text of a given length.

use cascadia_core::history::splitmix64;
use serde::Deserialize;

use crate::demo::problems::Problem;

/// One request's prompt and the length of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The user's message.
    pub prompt: String,
    /// The right number, where it is known.
    pub answer: Option<i64>,
    /// Output tokens at most, or exactly.
    pub output: u32,
    /// Whether the end of the text is ignored until all of them are written.
    pub exact: bool,
}

/// Prompts of a file: JSON lines with `question` and `answer`, `turns` (the first is asked), or `prompt`.
///
/// # Errors
/// Which line is none of these.
pub fn parse(text: &str, output: u32) -> Result<Vec<Item>, String> {
    #[derive(Deserialize)]
    struct Line {
        question: Option<String>,
        answer: Option<i64>,
        prompt: Option<String>,
        #[serde(default)]
        turns: Vec<String>,
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(number, line): (usize, &str)| {
        let line: Option<Line> = serde_json::from_str(line).ok();
        line.and_then(|line| {
            let prompt = line.question.or(line.prompt).or(line.turns.into_iter().next())?;
            Some(Item { prompt, answer: line.answer, output, exact: false })
        })
        .ok_or_else(|| {
            format!(
                "line {} has no \"question\", \"prompt\" or \"turns\"; it is to be a JSON object a line",
                number + 1
            )
        })
    };
    let items = lines.map(read).collect::<Result<Vec<Item>, String>>()?;
    if items.is_empty() { Err("it holds no prompt".to_owned()) } else { Ok(items) }
}

/// The shipped held-out problems.
#[must_use]
pub fn held_out(output: u32) -> Vec<Item> {
    let item = |problem: Problem| Item { prompt: problem.question, answer: Some(problem.answer), output, exact: false };
    crate::demo::problems::held_out().into_iter().map(item).collect()
}

/// Whether a text answers its item; nothing where nobody knows.
#[must_use]
pub fn is_right(item: &Item, text: &str) -> Option<bool> {
    let problem = Problem { question: String::new(), answer: item.answer? };
    Some(problem.is_solved_by(text))
}

const WORDS: [&str; 32] = [
    "time", "river", "small", "house", "between", "light", "window", "paper", "north", "garden", "simple", "water",
    "letter", "number", "market", "summer", "silver", "travel", "winter", "answer", "green", "castle", "yellow",
    "engine", "before", "second", "people", "island", "common", "mother", "forest", "morning",
];

/// Text of so many words, another for each number.
#[must_use]
pub fn words(count: usize, number: u64) -> String {
    let word = |place: usize| WORDS[splitmix64(splitmix64(number) ^ place as u64) as usize % WORDS.len()];
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// How many tokens a model makes of words, from two prompts that it has counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ruler {
    around: f64,
    a_word: f64,
}

impl Ruler {
    /// Words of the two prompts to have counted.
    pub const WORDS: [usize; 2] = [16, 272];

    /// A ruler from the tokens of these two prompts.
    #[must_use]
    pub fn new(tokens: [u64; 2]) -> Self {
        let [short, long] = tokens.map(|tokens| tokens as f64);
        let a_word = ((long - short) / (Self::WORDS[1] - Self::WORDS[0]) as f64).max(0.1);
        Self { around: (short - a_word * Self::WORDS[0] as f64).max(0.0), a_word }
    }

    /// Words that make about so many tokens, with all that a chat template puts around them.
    #[must_use]
    pub fn words(&self, tokens: u32) -> usize {
        ((f64::from(tokens) - self.around) / self.a_word).round().max(1.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line() {
        let text = r#"{"question": "1 + 1?", "answer": 2, "solution": "..."}
            {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}

            {"prompt": "Go on"}"#;
        let items = parse(text, 9).unwrap();
        let told: Vec<_> = items.iter().map(|item| (item.prompt.as_str(), item.answer, item.output)).collect();
        assert_eq!(told, [("1 + 1?", Some(2), 9), ("Write.", None, 9), ("Go on", None, 9)]);
        assert_eq!(is_right(&items[0], "it is 2"), Some(true));
        assert_eq!(is_right(&items[0], "it is 3"), Some(false));
        assert_eq!(is_right(&items[1], "2"), None);
        assert!(parse("{\"prompt\": \"a\"}\n{\"turns\": []}", 9).unwrap_err().starts_with("line 2"));
        assert!(parse("\n", 9).is_err());
    }

    #[test]
    fn texts_of_a_length_differ_and_repeat() {
        assert_eq!(words(7, 1).split(' ').count(), 7);
        assert_eq!(words(7, 1), words(7, 1));
        assert_ne!(words(7, 1), words(7, 2));
        // Ten tokens of a template, two and a half a word.
        let ruler = Ruler::new([50, 690]);
        assert_eq!((ruler.words(60), ruler.words(1010), ruler.words(1)), (20, 400, 1));
    }
}
