//! The configuration of one process: what was typed and what the file says, resolved, and resolved again when the file
//! changes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cascadia_drafter_node::DrafterConfig;
use cascadia_expert_node::ExpertConfig;
use cascadia_node::telemetry::Logs;
use cascadia_router::RouterConfig;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use super::file::{File, Problem};
use super::layers::{self, Origin, Value, Values};
use super::schema::{Schema, Section};
use crate::cli::Cli;

/// Why a command line and its file are no configuration.
#[derive(Debug)]
pub enum Refusal {
    /// Clap's answer: a usage error, or help that was asked for.
    Usage(Box<clap::Error>, Option<PathBuf>),
    /// The file cannot be used: one sentence a problem.
    File(Vec<String>),
}

impl Refusal {
    /// Says it, and how the process ends: 2, as for every usage error, or 0 for help.
    #[must_use]
    pub fn say(&self) -> ExitCode {
        match self {
            Self::Usage(error, file) => {
                match file {
                    // The usage that clap would show is of what nobody typed.
                    Some(file) => {
                        crate::tell(&format!("error: {}; what {} sets counts as typed", line(error), file.display()));
                    }
                    // Nobody is left to be told that this failed.
                    None => drop(error.print()),
                }
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
            }
            Self::File(problems) => {
                problems.iter().for_each(|problem| crate::tell(&format!("error: {problem}")));
                ExitCode::from(2)
            }
        }
    }
}

/// Parses the command line, with its file if the command takes one.
///
/// # Errors
/// When it is no configuration, or help is asked for.
pub fn read(argv: Vec<OsString>) -> Result<(Cli, Option<Settings>), Refusal> {
    let strict = Cli::try_parse_from(&argv);
    // Help needs no file, not even a good one.
    if let Err(error) = &strict
        && matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
    {
        return strict.map(|cli| (cli, None)).map_err(|error| Refusal::Usage(Box::new(error), None));
    }
    let Some((section, path)) = asked(&argv) else {
        return strict.map(|cli| (cli, None)).map_err(|error| Refusal::Usage(Box::new(error), None));
    };
    let (cli, settings) = Settings::resolve(argv, section, path)?;
    Ok((cli, Some(settings)))
}

/// Which command is asked for, if it is one that a file configures, and the file.
fn asked(argv: &[OsString]) -> Option<(Section, Option<PathBuf>)> {
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(argv).ok()?;
    let (name, matches) = matches.subcommand()?;
    let section = Section::of(name)?;
    Some((section, matches.try_get_one::<PathBuf>("config").ok().flatten().cloned()))
}

/// What is in force, and why.
#[derive(Clone, Debug)]
pub struct Settings {
    argv: Vec<OsString>,
    section: Section,
    path: Option<PathBuf>,
    schema: Schema,
    text: String,
    file: File,
    values: Values,
    logs: Option<Logs>,
}

/// A setting that the file gives another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: String,
    /// What is in force.
    pub old: String,
    /// What the file says.
    pub new: String,
}

/// What comes of a changed file.
#[derive(Debug)]
pub struct Reread {
    /// The command as it would have to be typed for what is in force now.
    pub cli: Cli,
    /// What is in force now.
    pub settings: Settings,
    /// What changed.
    pub changed: Vec<Change>,
    /// What would have to, but needs a restart.
    pub held: Vec<Change>,
}

impl Settings {
    fn resolve(argv: Vec<OsString>, section: Section, path: Option<PathBuf>) -> Result<(Cli, Self), Refusal> {
        let schema = Schema::of(Cli::command());
        let (text, file) = match &path {
            None => Default::default(),
            Some(path) => load(path, &schema).map_err(Refusal::File)?,
        };
        let mut settings = Self { argv, section, path, schema, text, file, values: Values::new(), logs: None };
        let (cli, values) =
            settings.parsed(&settings.file).map_err(|error| Refusal::Usage(error, settings.path.clone()))?;
        settings.values = values;
        Ok((cli, settings))
    }

    fn parsed(&self, file: &File) -> Result<(Cli, Values), Box<clap::Error>> {
        let (cli, mut values) = layers::parse(&self.argv, self.section, &self.schema, file)?;
        if self.section == Section::Up {
            values.extend(layers::part_values::<RouterConfig>(Section::Router, &self.schema, file));
            values.extend(layers::part_values::<DrafterConfig>(Section::Drafter, &self.schema, file));
            values.extend(layers::part_values::<ExpertConfig>(Section::Expert, &self.schema, file));
        }
        Ok((cli, values))
    }

    /// With the logs that follow the file's filter.
    #[must_use]
    pub fn logging(self, logs: Logs) -> Self {
        Self { logs: Some(logs), ..self }
    }

    /// The logs that follow the file's filter.
    #[must_use]
    pub fn logs(&self) -> Option<&Logs> {
        self.logs.as_ref()
    }

    /// The command's section.
    #[must_use]
    pub fn section(&self) -> Section {
        self.section
    }

    /// The file, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The file's text when the process started.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What can be set.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// What is in force.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// How many settings have a value from such a place.
    #[must_use]
    pub fn count(&self, from: impl Fn(&Origin) -> bool) -> usize {
        self.values.values().filter(|value| from(&value.origin)).count()
    }

    /// A part of a cluster in one process: the file's section, over what such a cluster has for a default.
    ///
    /// # Errors
    /// When what the section says together cannot be meant.
    pub fn part<T: clap::Args>(&self, section: Section) -> Result<T, String> {
        layers::part(section, &self.schema, &self.file).map_err(|error| line(&error))
    }

    /// What the file's section says of a key.
    #[must_use]
    pub fn of_file(&self, section: Section, key: &str) -> Option<String> {
        let entry = self.file.0.get(&(section, key.to_owned()))?;
        Some(entry.given.to_string())
    }

    /// What comes of a file that now has this text.
    ///
    /// # Errors
    /// Why it cannot be used: one sentence a problem. Nothing has changed then.
    pub fn reread(&self, text: &str) -> Result<Reread, Vec<String>> {
        let path = self.path.as_deref().unwrap_or(Path::new("(no file)"));
        let file = File::parse(text, &self.schema).map_err(|problems| in_full(&problems, path))?;
        let refused = |error: Box<clap::Error>| vec![format!("{}: {}", path.display(), line(&error))];
        let (_, wanted) = self.parsed(&file).map_err(refused)?;
        let mixed = self.mixed(file);
        let (cli, values) = self.parsed(&mixed).map_err(refused)?;
        let (changed, held) = (self.changes(&values), self.clone().with(&values).changes(&wanted));
        let settings = Self { file: mixed, values, ..self.clone() };
        Ok(Reread { cli, settings, changed, held })
    }

    fn with(self, values: &Values) -> Self {
        Self { values: values.clone(), ..self }
    }

    /// What a running process takes from a new file, and keeps of the old.
    fn mixed(&self, new: File) -> File {
        let reloads = |(section, key): &(Section, String)| {
            self.schema.setting(*section, key).is_some_and(super::schema::Setting::reloads)
        };
        let kept = self.file.0.iter().filter(|(key, _)| !reloads(key)).map(|(key, entry)| (key.clone(), entry.clone()));
        let taken = new.0.into_iter().filter(|(key, _)| reloads(key));
        File(kept.chain(taken).collect())
    }

    fn changes(&self, new: &Values) -> Vec<Change> {
        let changed = self.values.iter().filter_map(|((section, key), old)| {
            let new = new.get(&(*section, key.clone())).filter(|new| new.words != old.words)?;
            let secret = self.schema.setting(*section, key).is_some_and(super::schema::Setting::is_secret);
            let shown = |value: &Value| if secret { "(secret)".to_owned() } else { value.to_string() };
            Some(Change { key: format!("{}.{key}", section.name()), old: shown(old), new: shown(new) })
        });
        changed.collect()
    }
}

fn load(path: &Path, schema: &Schema) -> Result<(String, File), Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| vec![format!("cannot read the configuration file {}: {error}", path.display())])?;
    let file = File::parse(&text, schema).map_err(|problems| in_full(&problems, path))?;
    Ok((text, file))
}

fn in_full(problems: &[Problem], path: &Path) -> Vec<String> {
    problems.iter().map(|problem| problem.of(path)).collect()
}

/// What clap says, without usage and hints.
fn line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.trim_start_matches("error: ").lines().take_while(|line| !line.is_empty());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}
