//! What is asked: problems of a file, or text of a given length.

use cascadia_core::history::splitmix64;
use serde::Deserialize;

use super::problem::Problem;

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
        let number = number + 1;
        let line: Line = serde_json::from_str(line).map_err(|error| {
            // The parser counts lines too, and each is its first.
            let reason = error.to_string().replace(" at line 1 column", " at column");
            format!("line {number} is no such JSON object: {reason}")
        })?;
        let prompt = line.question.or(line.prompt).or(line.turns.into_iter().next());
        let prompt = prompt.ok_or_else(|| format!("line {number} has no \"question\", \"prompt\" or \"turns\""))?;
        Ok(Item { prompt, answer: line.answer, output, exact: false })
    };
    let items = lines.map(read).collect::<Result<Vec<Item>, String>>()?;
    if items.is_empty() { Err("it holds no prompt".to_owned()) } else { Ok(items) }
}

/// Problems, each asked as it is.
#[must_use]
pub fn of_problems(problems: Vec<Problem>, output: u32) -> Vec<Item> {
    let item = |problem: Problem| Item { prompt: problem.question, answer: Some(problem.answer), output, exact: false };
    problems.into_iter().map(item).collect()
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
    /// Words of the short prompt to have counted.
    pub const SHORT: usize = 16;

    /// Words of the long prompt to have counted: the first that the model has room for.
    pub const LONG: [usize; 4] = [272, 136, 68, 34];

    /// A ruler from the tokens of the short prompt and the words and tokens of a long one.
    #[must_use]
    pub fn new(short: u64, (words, long): (usize, u64)) -> Self {
        let a_word = ((long as f64 - short as f64) / (words - Self::SHORT) as f64).max(0.1);
        Self { around: (short as f64 - a_word * Self::SHORT as f64).max(0.0), a_word }
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
        let error = parse("{\"question\": \"1+1?\", \"answer\": \"2\"}", 9).unwrap_err();
        assert_eq!(error, "line 1 is no such JSON object: invalid type: string \"2\", expected i64 at column 34");
        assert!(parse("\n", 9).is_err());
    }

    #[test]
    fn texts_of_a_length_differ_and_repeat() {
        assert_eq!(words(7, 1).split(' ').count(), 7);
        assert_eq!(words(7, 1), words(7, 1));
        assert_ne!(words(7, 1), words(7, 2));
        // Ten tokens of a template, two and a half a word.
        for long in [(272, 690), (68, 180)] {
            let ruler = Ruler::new(50, long);
            assert_eq!((ruler.words(60), ruler.words(1010), ruler.words(1)), (20, 400, 1), "{long:?}");
        }
    }
}
