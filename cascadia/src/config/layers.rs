//! Who has the last word on a setting: its flag, else its variable, else the file, else the default.
//!
//! What only the file gives joins the command line, so that clap's own rules (what is required, what excludes what) see
//! one whole configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _};

use super::file::{Entry, File, Given};
use super::schema::{Schema, Section, Setting};
use crate::cli::Cli;

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

/// Parses a command line, with what the variables and the file add to it.
///
/// # Errors
/// As clap says.
pub fn parse(
    argv: &[OsString],
    section: Section,
    schema: &Schema,
    file: &File,
) -> Result<(Cli, Values), Box<clap::Error>> {
    let command = Cli::command();
    let rivals = Rivals::of(&command, section);
    let mut said = said(&command, argv, section, schema);
    // A flag is stronger than the variable of a setting that excludes it.
    let typed: Vec<String> = with(&said, &Origin::Flag).map(str::to_owned).collect();
    let unheard: Vec<String> = with(&said, &Origin::Variable)
        .filter(|id| typed.iter().any(|flag| rivals.exclude(flag, id)))
        .map(str::to_owned)
        .collect();
    said.retain(|id, _| !unheard.contains(id));
    let command = command.mut_subcommand(section.name(), |command| {
        unheard.iter().fold(command, |command, id| command.mut_arg(id, |arg| arg.env(Resettable::Reset)))
    });

    let mut line = argv.to_vec();
    let end = line.iter().position(|word| word == "--").unwrap_or(line.len());
    let mut added = Vec::new();
    // The node's own section is stronger than the common one.
    for from in [section, Section::Node] {
        let stronger: Vec<String> = said.keys().cloned().collect();
        for setting in schema.section(section) {
            let id = setting.id();
            let taken = stronger.iter().any(|other| other == id || rivals.exclude(other, id));
            if let Some(entry) = file.0.get(&(from, setting.key().to_owned())).filter(|_| !taken) {
                added.extend(flags(setting, &entry.given));
                said.insert(id.to_owned(), Origin::File(entry.line));
            }
        }
    }
    line.splice(end..end, added);
    let matches = command.try_get_matches_from(line)?;
    let values = values(&matches, section, schema, &said);
    Ok((Cli::from_arg_matches(&matches)?, values))
}

/// What flags and variables say, by argument. Mistakes are of no interest here: the real parse will find them.
fn said(command: &Command, argv: &[OsString], section: Section, schema: &Schema) -> BTreeMap<String, Origin> {
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(argv) else { return BTreeMap::new() };
    let Some(matches) = matches.subcommand_matches(section.name()) else { return BTreeMap::new() };
    let origin = |setting: &Setting| match matches.value_source(setting.id())? {
        ValueSource::CommandLine => Some(Origin::Flag),
        ValueSource::EnvVariable => Some(Origin::Variable),
        _ => None,
    };
    let settings = schema.section(section).iter();
    settings.filter_map(|setting| Some((setting.id().to_owned(), origin(setting)?))).collect()
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

/// What a cluster in one process has for a default instead of a node's own.
fn default_of_part(section: Section, key: &str) -> Option<&'static str> {
    match (section, key) {
        // No load balancer has to learn that this router goes.
        (Section::Router, "lame_duck_ms") => Some("0"),
        _ => None,
    }
}

/// Stands for a model where the file names none: the pair is found by other means.
const NO_MODEL: &str = "none";

/// The part of a cluster in one process that is configured by the file alone: the arguments of one role, over its defaults.
///
/// # Errors
/// As clap says.
pub fn part<T: clap::Args>(section: Section, schema: &Schema, file: &File) -> Result<T, Box<clap::Error>> {
    let command = T::augment_args(Command::new(section.name()).no_binary_name(true));
    let mut line = Vec::new();
    for setting in schema.section(section).iter().filter(|setting| knows(&command, setting)) {
        match entry(file, section, setting.key()) {
            Some(entry) => line.extend(flags(setting, &entry.given)),
            None => {
                let model = (setting.key() == "model").then_some(NO_MODEL);
                let word = default_of_part(section, setting.key()).or(model);
                line.extend(word.map(|word| format!("--{}={word}", setting.flag()).into()));
            }
        }
    }
    let matches = command.mut_args(|arg| arg.env(Resettable::Reset)).try_get_matches_from(line)?;
    Ok(T::from_arg_matches(&matches)?)
}

/// The values of such a part.
pub fn part_values<T: clap::Args>(section: Section, schema: &Schema, file: &File) -> Values {
    let command = T::augment_args(Command::new(section.name()));
    let value = |setting: &Setting| match entry(file, section, setting.key()) {
        None => {
            let words = default_of_part(section, setting.key()).map(|word| vec![word.to_owned()]);
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
    let settings = schema.section(section).iter().filter(|setting| knows(&command, setting));
    settings.map(|setting| ((section, setting.key().to_owned()), value(setting))).collect()
}

fn knows(command: &Command, setting: &Setting) -> bool {
    command.get_arguments().any(|arg| arg.get_id().as_str() == setting.id())
}

fn entry<'a>(file: &'a File, section: Section, key: &str) -> Option<&'a Entry> {
    let of = |section| file.0.get(&(section, key.to_owned()));
    of(section).or_else(|| of(Section::Node))
}
