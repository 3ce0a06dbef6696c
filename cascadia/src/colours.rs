//! Where each word came from, told by its colour; by brackets where there are no colours.

use std::io::IsTerminal;

use cascadia_proto::v1::Provenance;

/// Whether and how to mark provenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Terminal colours.
    Colours,
    /// Brackets around what was not simply kept.
    Brackets,
    /// Nothing: the bare text, for pipes.
    None,
}

impl Marks {
    /// Colours where standard output is a terminal and `NO_COLOR` is not set, else `otherwise`.
    #[must_use]
    pub fn of_stdout(otherwise: Self) -> Self {
        // https://no-color.org: present and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        if std::io::stdout().is_terminal() && !refused && !dumb { Self::Colours } else { otherwise }
    }

    /// `text` marked with where it came from. White space in front stays outside the mark.
    #[must_use]
    pub fn mark(self, text: &str, provenance: Provenance) -> String {
        let word = text.trim_start();
        let (open, close) = self.pair(provenance);
        if word.is_empty() || open.is_empty() {
            return text.to_owned();
        }
        let space = &text[..text.len() - word.len()];
        format!("{space}{open}{word}{close}")
    }

    /// `text` in bold, where that can be shown.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        if self == Self::Colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// What the marks mean, in one line.
    #[must_use]
    pub fn legend(self) -> String {
        [
            self.mark("kept from the drafter", Provenance::Accepted),
            self.mark("kept thanks to the rule", Provenance::Relaxed),
            self.mark("written by the expert", Provenance::Deferred),
        ]
        .join(" · ")
    }

    fn pair(self, provenance: Provenance) -> (&'static str, &'static str) {
        match (self, provenance) {
            (Self::Colours, Provenance::Accepted) => ("\x1b[32m", "\x1b[0m"),
            (Self::Colours, Provenance::Relaxed) => ("\x1b[36m", "\x1b[0m"),
            (Self::Colours, Provenance::Deferred) => ("\x1b[1;33m", "\x1b[0m"),
            (Self::Brackets, Provenance::Relaxed) => ("{", "}"),
            (Self::Brackets, Provenance::Deferred) => ("[", "]"),
            _ => ("", ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        assert_eq!(Marks::Colours.mark(" 12", Provenance::Deferred), " \x1b[1;33m12\x1b[0m");
        assert_eq!(Marks::Brackets.mark(" 12", Provenance::Deferred), " [12]");
        assert_eq!(Marks::Brackets.mark(" 12", Provenance::Accepted), " 12");
        assert_eq!(Marks::None.mark(" 12", Provenance::Relaxed), " 12");
        assert_eq!(Marks::Colours.mark(" ", Provenance::Deferred), " ");
        assert_eq!(
            Marks::Brackets.legend(),
            "kept from the drafter · {kept thanks to the rule} · [written by the expert]"
        );
    }

    #[test]
    fn a_test_has_no_terminal_of_its_own_unless_it_is_given_one() {
        if !std::io::stdout().is_terminal() {
            assert_eq!(Marks::of_stdout(Marks::None), Marks::None);
        }
    }
}
