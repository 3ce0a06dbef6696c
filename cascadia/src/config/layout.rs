//! Which sections a file has and which commands they configure: said once, by the program whose commands they are.

use clap::Command;

/// A section of the file, named after the command that it configures. Sections sort as they stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Section {
    place: u8,
    name: &'static str,
    title: &'static str,
}

impl Section {
    /// A section by its place in a file, its name, and the comment above it.
    #[must_use]
    pub const fn new(place: u8, name: &'static str, title: &'static str) -> Self {
        Self { place, name, title }
    }

    /// Its name in a file, and that of the command it is for.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The comment above it in a file that is printed.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.title
    }
}

/// The sections of one file.
#[derive(Debug)]
pub struct Layout {
    /// The comment at the head of a file that is printed.
    pub preface: &'static str,
    /// The command that prints all settings; a section's name may follow it.
    pub printer: &'static str,
    /// What all of `members` have in common. A command's own section is stronger.
    pub common: Section,
    /// The commands whose common settings may stand in `common`.
    pub members: &'static [Section],
    /// The other commands that the file configures.
    pub others: &'static [Section],
    /// The sections that a command reads besides its own.
    pub parts: &'static [Part],
}

impl Layout {
    /// The sections of commands, in the order of a file.
    pub fn commands(&self) -> impl Iterator<Item = Section> {
        self.members.iter().chain(self.others).copied()
    }

    /// All sections, in the order of a file.
    pub fn sections(&self) -> impl Iterator<Item = Section> {
        std::iter::once(self.common).chain(self.commands())
    }

    /// The section of that name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<Section> {
        self.sections().find(|section| section.name == name)
    }
}

/// A section that a command reads besides its own, as a command that starts others does.
#[derive(Debug)]
pub struct Part {
    /// The command that reads it.
    pub reader: Section,
    /// What it reads.
    pub section: Section,
    /// The arguments that it reads there: [`clap::Args::augment_args`].
    pub arguments: fn(Command) -> Command,
    /// Keys that have another default for this reader.
    pub defaults: &'static [(&'static str, &'static str)],
    /// Values for keys that are required, where the reader finds them by other means; they are never shown.
    pub placeholders: &'static [(&'static str, &'static str)],
}
