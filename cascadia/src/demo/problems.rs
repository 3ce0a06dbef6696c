//! The held-out problems: no chain of arithmetic in them occurs in the training set.

use crate::bench::problem::Problem;

/// `demo/heldout.jsonl`, as it was when the binary was built.
const HELD_OUT: &str = include_str!("../../../demo/heldout.jsonl");

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_problems_are_whole() {
        let problems = held_out();
        assert_eq!(problems.len(), 500);
        assert!(problems.iter().all(|problem| problem.question.ends_with('?')));
    }
}
