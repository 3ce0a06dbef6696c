//! The held-out problems: no chain of arithmetic in them occurs in the training set.

use serde::Deserialize;

/// `demo/heldout.jsonl`, as it was when the binary was built.
const HELD_OUT: &str = include_str!("../../../demo/heldout.jsonl");

/// One problem and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// What is right.
    pub answer: i64,
}

/// The held-out problems, in the order of the file.
///
/// # Panics
/// Never with a binary whose tests pass: the file is part of it.
#[must_use]
pub fn held_out() -> Vec<Problem> {
    HELD_OUT
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).expect("demo/heldout.jsonl holds one problem a line"))
        .collect()
}

impl Problem {
    /// Exact match: the last whole number of the text is the answer.
    #[must_use]
    pub fn is_solved_by(&self, text: &str) -> bool {
        last_integer(text) == Some(self.answer)
    }
}

/// The last run of digits, as a number.
fn last_integer(text: &str) -> Option<i64> {
    text.split(|c: char| !c.is_ascii_digit()).rfind(|digits| !digits.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_problems_are_whole() {
        let problems = held_out();
        assert_eq!(problems.len(), 500);
        assert!(problems.iter().all(|problem| problem.question.ends_with('?')));
    }

    #[test]
    fn the_last_number_counts() {
        for (text, number) in [
            ("Answer: 58", Some(58)),
            ("Adding 10 to 20 gives 30. Answer: 30.", Some(30)),
            ("12 34", Some(34)),
            ("007", Some(7)),
            ("no number", None),
            ("", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(last_integer(text), number, "{text}");
        }
    }

    #[test]
    fn solved() {
        let problem = Problem { question: "?".into(), answer: 30 };
        assert!(problem.is_solved_by("Adding 10 to 20 gives 30. Answer: 30"));
        assert!(!problem.is_solved_by("30. Answer: 31"));
    }
}
