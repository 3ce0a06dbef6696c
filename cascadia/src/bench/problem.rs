//! A problem whose answer is a number.

use serde::Deserialize;

/// One problem and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// What is right.
    pub answer: i64,
}

impl Problem {
    /// Exact match: the last number of the text is the answer.
    #[must_use]
    pub fn is_solved_by(&self, text: &str) -> bool {
        last_integer(text) == Some(self.answer)
    }
}

/// The last number of a text, where it is whole: `-5`, `1,005` and `5.0` are, `5.5` is not.
fn last_integer(text: &str) -> Option<i64> {
    let text: Vec<char> = text.chars().collect();
    let end = text.iter().rposition(char::is_ascii_digit)? + 1;
    let mut begin = end - 1;
    // A comma or a point between digits belongs to them.
    while begin > 0
        && (text[begin - 1].is_ascii_digit()
            || begin > 1 && matches!(text[begin - 1], ',' | '.') && text[begin - 2].is_ascii_digit())
    {
        begin -= 1;
    }
    let written: String = text[begin..end].iter().collect();
    if let Some(digits) = grouped(&written) {
        return signed(&text[..begin], &digits);
    }
    // Commas that group no thousands separate the numbers of a list.
    let (before, last) = match written.rsplit_once(',') {
        Some((_, last)) => (&[][..], last),
        None => (&text[..begin], written.as_str()),
    };
    signed(before, whole(last)?)
}

/// The digits of a number with thousands separators.
fn grouped(written: &str) -> Option<String> {
    let whole = whole(written)?;
    let (first, others) = whole.split_once(',')?;
    let are_thousands = (1..=3).contains(&first.len()) && others.split(',').all(|group| group.len() == 3);
    are_thousands.then(|| whole.replace(',', ""))
}

/// What stands before a decimal part of zeros, or all of a number without one.
fn whole(written: &str) -> Option<&str> {
    let (whole, decimals) = written.split_once('.').unwrap_or((written, ""));
    decimals.chars().all(|digit| digit == '0').then_some(whole)
}

/// A number with the sign that ends what stands before it; between two numbers or words the same character is none.
fn signed(before: &[char], digits: &str) -> Option<i64> {
    let minus = match before {
        [.., other, '-' | '\u{2212}'] => !other.is_alphanumeric() && !matches!(other, ')' | '-' | '\u{2212}'),
        ['-' | '\u{2212}'] => true,
        _ => false,
    };
    // Signed before it is read, so that the least of all numbers has a place too.
    format!("{}{digits}", if minus { "-" } else { "" }).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts() {
        for (text, number) in [
            ("Answer: 58", Some(58)),
            ("Adding 10 to 20 gives 30. Answer: 30.", Some(30)),
            ("12 34", Some(34)),
            ("007", Some(7)),
            ("Answer: -5", Some(-5)),
            ("It is (\u{2212}5)", Some(-5)),
            ("-5", Some(-5)),
            ("20-5", Some(5)),
            ("from 10 - 5", Some(5)),
            ("b)-5, x-5, --5", Some(5)),
            ("1,005", Some(1005)),
            ("-12,345,678.00", Some(-12_345_678)),
            ("3,4", Some(4)),
            ("-3,-4", Some(-4)),
            ("1,0005", Some(5)),
            ("2.5,3", Some(3)),
            ("5.0", Some(5)),
            ("5.00.", Some(5)),
            ("5.5", None),
            ("1,005.5", None),
            ("gives 30.\n7", Some(7)),
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
