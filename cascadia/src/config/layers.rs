//! Who has the last word on a setting: its flag, else its variable, else the file, else the default.
//!
//! What only the file gives joins the command line, so that clap's own rules (what is required, what excludes what) see
//! one whole configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::file::{Entry, File, Given};
use super::layout::{Part, Section};
use super::schema::{Schema, Setting};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was typed.
    Flag,
    /// It is in the environment.
    Variable,
    /// It is in the file, in this line.
    File(usize),
    /// Nobody said anything.
    Default,
}

/// A setting's value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// As a flag would be given it; none where it is not set.
    pub words: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.words.is_empty() { f.write_str("not set") } else { f.write_str(&self.words.join(",")) }
    }
}

/// What is in force, by section and key.
pub type Values = BTreeMap<(Section, String), Value>;

/// What was typed and what variables add to it; files may come and go.
#[derive(Clone, Debug)]
pub struct Line {
    argv: Vec<OsString>,
    /// Reads no variable that a stronger flag excludes.
    command: Command,
    section: Section,
    rivals: Rivals,
    /// What flags and variables say, by argument.
    said: BTreeMap<String, Origin>,
}

impl Line {
    /// A line of `command` that asks for the subcommand of `section`. `matches` are that subcommand's: mistakes in them
    /// are of no interest yet, [`Line::with`] will find them.
    #[must_use]
    pub fn new(
        argv: Vec<OsString>,
        command: Command,
        section: Section,
        matches: &ArgMatches,
        settings: &[Setting],
    ) -> Self {
        let rivals = Rivals::of(&command, section);
        let mut said = said(matches, settings);
        // A flag is stronger than the variable of a setting that excludes it.
        let typed: Vec<&str> = with(&said, &Origin::Flag).collect();
        let unheard: Vec<String> = with(&said, &Origin::Variable)
            .filter(|id| typed.iter().any(|flag| rivals.exclude(flag, id)))
            .map(str::to_owned)
            .collect();
        said.retain(|id, _| !unheard.contains(id));
        let command = command.mut_subcommand(section.name(), |command| {
            unheard.iter().fold(command, |command, id| command.mut_arg(id, |arg| arg.env(Resettable::Reset)))
        });
        Self { argv, command, section, rivals, said }
    }

    /// The subcommand's section.
    #[must_use]
    pub fn section(&self) -> Section {
        self.section
    }

    /// What the line means with what a file adds to it.
    ///
    /// # Errors
    /// As clap says.
    pub fn with(&self, file: &File, schema: &Schema) -> Result<(ArgMatches, Values), Box<clap::Error>> {
        let (mut line, mut said) = (self.argv.clone(), self.said.clone());
        let end = line.iter().position(|word| word == "--").unwrap_or(line.len());
        let mut added = Vec::new();
        // The command's own section is stronger than the common one.
        for from in [self.section, schema.layout().common] {
            let stronger: Vec<String> = said.keys().cloned().collect();
            for setting in schema.section(self.section) {
                let id = setting.id();
                let taken = stronger.iter().any(|other| other == id || self.rivals.exclude(other, id));
                if let Some(entry) = file.0.get(&(from, setting.key().to_owned())).filter(|_| !taken) {
                    added.extend(flags(setting, &entry.given));
                    said.insert(id.to_owned(), Origin::File(entry.line));
                }
            }
        }
        line.splice(end..end, added);
        let matches = self.command.clone().try_get_matches_from(line)?;
        let values = values(&matches, self.section, schema, &said);
        Ok((matches, values))
    }
}

fn said(matches: &ArgMatches, settings: &[Setting]) -> BTreeMap<String, Origin> {
    let origin = |setting: &Setting| match matches.value_source(setting.id())? {
        ValueSource::CommandLine => Some(Origin::Flag),
        ValueSource::EnvVariable => Some(Origin::Variable),
        _ => None,
    };
    settings.iter().filter_map(|setting| Some((setting.id().to_owned(), origin(setting)?))).collect()
}

fn with<'a>(said: &'a BTreeMap<String, Origin>, origin: &'a Origin) -> impl Iterator<Item = &'a str> {
    said.iter().filter(move |(_, from)| *from == origin).map(|(id, _)| id.as_str())
}

/// What is typed to give a setting this value.
pub fn flags(setting: &Setting, given: &Given) -> Vec<OsString> {
    let flag = setting.flag();
    match given {
        Given::Words(words) => words.iter().map(|word| format!("--{flag}={word}").into()).collect(),
        Given::Bare(true) => vec![format!("--{flag}").into()],
        Given::Bare(false) => Vec::new(),
    }
}

fn values(matches: &ArgMatches, section: Section, schema: &Schema, said: &BTreeMap<String, Origin>) -> Values {
    let Some(matches) = matches.subcommand_matches(section.name()) else { return Values::new() };
    let value = |setting: &Setting| {
        let raw = matches.try_get_raw(setting.id()).ok().flatten().into_iter().flatten();
        Value {
            words: raw.map(|word| word.to_string_lossy().into_owned()).collect(),
            origin: said.get(setting.id()).cloned().unwrap_or(Origin::Default),
        }
    };
    let settings = schema.section(section).iter();
    settings.map(|setting| ((section, setting.key().to_owned()), value(setting))).collect()
}

/// Which arguments exclude each other.
#[derive(Clone, Debug)]
struct Rivals(Vec<BTreeSet<String>>);

impl Rivals {
    fn of(command: &Command, section: Section) -> Self {
        let Some(command) = command.find_subcommand(section.name()) else { return Self(Vec::new()) };
        let names = |ids: &mut dyn Iterator<Item = &clap::Id>| ids.map(ToString::to_string).collect();
        let groups = command.get_groups().filter(|group| !(*group).clone().is_multiple());
        let groups = groups.map(|group| names(&mut group.get_args()));
        let pairs = command.get_arguments().flat_map(|arg| {
            let others = command.get_arg_conflicts_with(arg).into_iter();
            others.map(move |other| names(&mut [arg.get_id(), other.get_id()].into_iter()))
        });
        Self(groups.chain(pairs).collect())
    }

    fn exclude(&self, a: &str, b: &str) -> bool {
        a != b && self.0.iter().any(|group| group.contains(a) && group.contains(b))
    }
}

/// A part that the file alone configures: arguments of `T`, over their defaults.
///
/// # Errors
/// As clap says.
pub fn part<T: clap::Args>(part: &Part, schema: &Schema, file: &File) -> Result<T, Box<clap::Error>> {
    let command = T::augment_args(Command::new(part.section.name()).no_binary_name(true));
    let mut line = Vec::new();
    for setting in schema.section(part.section).iter().filter(|setting| knows(&command, setting)) {
        match entry(file, part.section, setting.key(), schema) {
            Some(entry) => line.extend(flags(setting, &entry.given)),
            None => {
                let word = named(part.defaults, setting).or_else(|| named(part.placeholders, setting));
                line.extend(word.map(|word| format!("--{}={word}", setting.flag()).into()));
            }
        }
    }
    let matches = command.mut_args(|arg| arg.env(Resettable::Reset)).try_get_matches_from(line)?;
    Ok(T::from_arg_matches(&matches)?)
}

/// The values of such a part.
#[must_use]
pub fn part_values(part: &Part, schema: &Schema, file: &File) -> Values {
    let command = (part.arguments)(Command::new(part.section.name()));
    let value = |setting: &Setting| match entry(file, part.section, setting.key(), schema) {
        None => {
            let words = named(part.defaults, setting).map(|word| vec![word.to_owned()]);
            Value { words: words.unwrap_or_else(|| setting.default()), origin: Origin::Default }
        }
        Some(Entry { given, line }) => {
            let words = match given {
                Given::Words(words) => words.clone(),
                Given::Bare(on) => vec![on.to_string()],
            };
            Value { words, origin: Origin::File(*line) }
        }
    };
    let settings = schema.section(part.section).iter().filter(|setting| knows(&command, setting));
    settings.map(|setting| ((part.section, setting.key().to_owned()), value(setting))).collect()
}

/// What a list of keys and words says of a setting.
fn named(list: &[(&str, &'static str)], setting: &Setting) -> Option<&'static str> {
    list.iter().find(|(key, _)| *key == setting.key()).map(|(_, word)| *word)
}

fn knows(command: &Command, setting: &Setting) -> bool {
    command.get_arguments().any(|arg| arg.get_id().as_str() == setting.id())
}

fn entry<'a>(file: &'a File, section: Section, key: &str, schema: &Schema) -> Option<&'a Entry> {
    let of = |section| file.0.get(&(section, key.to_owned()));
    of(section).or_else(|| of(schema.layout().common))
}
