//! The configuration of one process: what was typed and what the file says, resolved, and resolved again when the file
//! changes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use super::file::{File, Problem};
use super::layers::{self, Line, Origin, Value, Values};
use super::layout::{Layout, Section};
use super::schema::{Schema, Setting};

/// Why a command line and its file are no configuration.
#[derive(Debug)]
pub enum Refusal {
    /// Clap's answer: a usage error, or help that was asked for.
    Usage(Box<clap::Error>, Option<PathBuf>),
    /// The file cannot be used: one sentence a problem.
    File(Vec<String>),
}

impl Refusal {
    /// Tells it, and how the process ends: 2, as for every usage error, or 0 for help.
    #[must_use]
    pub fn say(&self, tell: impl Fn(&str)) -> ExitCode {
        match self {
            Self::Usage(error, file) => {
                match file {
                    // The usage that clap would show is of what nobody typed.
                    Some(file) => {
                        tell(&format!("error: {}; what {} sets counts as typed", line(error), file.display()));
                    }
                    // Nobody is left to be told that this failed.
                    None => drop(error.print()),
                }
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
            }
            Self::File(problems) => {
                problems.iter().for_each(|problem| tell(&format!("error: {problem}")));
                ExitCode::from(2)
            }
        }
    }
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Self::Usage(Box::new(error), None)
    }
}

/// Parses the command line, with its file if the command takes one.
///
/// # Errors
/// When it is no configuration, or help is asked for.
pub fn read<C>(argv: Vec<OsString>, layout: &'static Layout) -> Result<(C, Option<Settings>), Refusal>
where
    C: CommandFactory + FromArgMatches,
{
    let command = C::command();
    // Only help is no mistake, and it needs no file, not even a good one.
    let typed = command.clone().ignore_errors(true).try_get_matches_from(&argv)?;
    let chosen = typed.subcommand().and_then(|(name, matches)| Some((layout.section(name)?, matches)));
    let Some((section, typed)) = chosen else {
        return Ok((C::from_arg_matches(&command.try_get_matches_from(&argv)?)?, None));
    };
    let path = typed.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let schema = Schema::of(layout, command.clone());
    let (text, file) = match &path {
        None => Default::default(),
        Some(path) => load(path, &schema).map_err(Refusal::File)?,
    };
    let line = Line::new(argv, command, section, typed, schema.section(section));
    let mut settings = Settings { line, path, schema, text, file, values: Values::new() };
    let usage = |error| Refusal::Usage(error, settings.path.clone());
    let (matches, values) = settings.parsed(&settings.file).map_err(usage)?;
    let command = C::from_arg_matches(&matches).map_err(|error| usage(Box::new(error)))?;
    settings.values = values;
    Ok((command, Some(settings)))
}

/// What is in force, and why.
#[derive(Clone, Debug)]
pub struct Settings {
    line: Line,
    path: Option<PathBuf>,
    schema: Schema,
    text: String,
    file: File,
    values: Values,
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
    matches: ArgMatches,
    /// What is in force now.
    pub settings: Settings,
    /// What changed.
    pub changed: Vec<Change>,
    /// What would have to, but needs a restart.
    pub held: Vec<Change>,
}

impl Reread {
    /// The arguments of the command for what is in force now.
    ///
    /// # Errors
    /// When they are not of its type: one sentence.
    pub fn arguments<A: FromArgMatches>(&self) -> Result<A, String> {
        let name = self.settings.section().name();
        let matches = self.matches.subcommand_matches(name).ok_or_else(|| format!("{name} is not what was typed"))?;
        A::from_arg_matches(matches).map_err(|error| line(&error))
    }
}

impl Settings {
    fn parsed(&self, file: &File) -> Result<(ArgMatches, Values), Box<clap::Error>> {
        let (matches, mut values) = self.line.with(file, &self.schema)?;
        for part in self.schema.layout().parts.iter().filter(|part| part.reader == self.section()) {
            values.extend(layers::part_values(part, &self.schema, file));
        }
        Ok((matches, values))
    }

    /// The command's section.
    #[must_use]
    pub fn section(&self) -> Section {
        self.line.section()
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

    /// What is in force for a key of the command; nothing where it is not set.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<String> {
        let value = self.values.get(&(self.section(), key.to_owned()))?;
        (!value.words.is_empty()).then(|| value.words.join(","))
    }

    /// A section that the command reads besides its own: what the file says there, over the defaults of `T`.
    ///
    /// # Errors
    /// When what the section says together cannot be meant.
    ///
    /// # Panics
    /// When the layout has no such part: which a command reads is no question of what is typed.
    pub fn part<T: clap::Args>(&self, section: Section) -> Result<T, String> {
        let mut parts = self.schema.layout().parts.iter();
        let part = parts.find(|part| part.reader == self.section() && part.section == section);
        let part = part.unwrap_or_else(|| panic!("{} reads no [{}]", self.section().name(), section.name()));
        layers::part(part, &self.schema, &self.file).map_err(|error| line(&error))
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
        let (matches, values) = self.parsed(&mixed).map_err(refused)?;
        let (changed, held) = (self.changes(&self.values, &values), self.changes(&values, &wanted));
        let settings = Self { file: mixed, values, ..self.clone() };
        Ok(Reread { matches, settings, changed, held })
    }

    /// What a running process takes from a new file, and keeps of the old.
    fn mixed(&self, new: File) -> File {
        let reloads =
            |(section, key): &(Section, String)| self.schema.setting(*section, key).is_some_and(Setting::reloads);
        let kept = self.file.0.iter().filter(|(key, _)| !reloads(key)).map(|(key, entry)| (key.clone(), entry.clone()));
        let taken = new.0.into_iter().filter(|(key, _)| reloads(key));
        File(kept.chain(taken).collect())
    }

    fn changes(&self, old: &Values, new: &Values) -> Vec<Change> {
        let changed = old.iter().filter_map(|((section, key), old)| {
            let new = new.get(&(*section, key.clone())).filter(|new| new.words != old.words)?;
            let secret = self.schema.setting(*section, key).is_some_and(Setting::is_secret);
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
