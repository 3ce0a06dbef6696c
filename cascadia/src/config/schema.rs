//! What can be set: read from the commands themselves, so that a field of their structs is a key without further work.

use std::any::TypeId;

use cascadia_node::config::Reloads;
use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

use super::layout::{Layout, Section};

/// What a value looks like in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Count,
    /// A number.
    Number,
    /// A string.
    Text,
}

impl Kind {
    fn of(parser: &ValueParser) -> Self {
        let is = |types: &[TypeId]| types.iter().any(|&kind| parser.type_id() == kind);
        if is(&[TypeId::of::<bool>()]) {
            Self::Switch
        } else if is(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
            Self::Number
        } else if is(&[TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()])
            || is(&[TypeId::of::<usize>(), TypeId::of::<isize>(), TypeId::of::<i64>(), TypeId::of::<i32>()])
        {
            Self::Count
        } else {
            Self::Text
        }
    }

    /// With its article.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Switch => "true or false",
            Self::Count => "a whole number",
            Self::Number => "a number",
            Self::Text => "a string",
        }
    }
}

/// One thing that can be set: a flag, a variable and a key.
#[derive(Clone, Debug)]
pub struct Setting {
    arg: Arg,
    key: String,
    variable: String,
}

impl Setting {
    /// What has a flag and a variable has a key; the others (`--check`, `--help`) say what to do once, and `--config`
    /// where the file is.
    fn of(arg: &Arg) -> Option<Self> {
        let (flag, variable) = (arg.get_long()?, arg.get_env()?);
        let (key, variable) = (flag.replace('-', "_"), variable.to_str()?.to_owned());
        (key != "config").then(|| Self { arg: arg.clone(), key, variable })
    }

    /// Its name among the command's arguments.
    #[must_use]
    pub fn id(&self) -> &str {
        self.arg.get_id().as_str()
    }

    /// Its key: the flag's name with `_`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its flag, without the dashes.
    #[must_use]
    pub fn flag(&self) -> &str {
        self.arg.get_long().unwrap_or_default()
    }

    /// Its variable.
    #[must_use]
    pub fn variable(&self) -> &str {
        &self.variable
    }

    /// Its help, one line.
    #[must_use]
    pub fn help(&self) -> String {
        let help = self.arg.get_long_help().or(self.arg.get_help()).map(ToString::to_string).unwrap_or_default();
        help.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// What its value looks like.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(self.arg.get_value_parser())
    }

    /// Whether it is a list.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
    }

    /// What separates the values of a list in one string.
    #[must_use]
    pub fn delimiter(&self) -> Option<char> {
        self.arg.get_value_delimiter()
    }

    /// Whether its flag stands alone.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        !self.arg.get_action().takes_values()
    }

    /// Whether its flag may stand alone.
    #[must_use]
    pub fn may_be_bare(&self) -> bool {
        self.is_bare() || self.arg.get_num_args().is_some_and(|count| count.min_values() == 0)
    }

    /// Its default, empty where it has none.
    #[must_use]
    pub fn default(&self) -> Vec<String> {
        self.arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect()
    }

    /// What stands for a value in its help.
    #[must_use]
    pub fn placeholder(&self) -> String {
        self.arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default()
    }

    /// Whether a running node takes it up.
    #[must_use]
    pub fn reloads(&self) -> bool {
        self.arg.get::<Reloads>().is_some()
    }

    /// Whether its value must not be shown: its struct hides the variable's value from the help.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.arg.is_hide_env_values_set()
    }

    /// Whether the flag would take this value.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn try_value(&self, value: &str) -> Result<(), String> {
        let mut arg = Arg::new("value").long("value").value_parser(self.arg.get_value_parser().clone());
        if let Some(delimiter) = self.delimiter() {
            arg = arg.action(ArgAction::Append).value_delimiter(delimiter);
        }
        let command = Command::new("value").no_binary_name(true).disable_help_flag(true).arg(arg);
        command.try_get_matches_from([format!("--value={value}")]).map(drop).map_err(|error| reason(&error))
    }
}

/// Why clap refuses a value, without the flag's name.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue)
        && !values.is_empty()
    {
        return format!("choose one of {}", values.join(", "));
    }
    "it must not be empty".into()
}

/// All that can be set, by section.
#[derive(Clone, Debug)]
pub struct Schema {
    layout: &'static Layout,
    sections: Vec<(Section, Vec<Setting>)>,
}

impl Schema {
    /// Of a command line with one subcommand for each section of commands.
    #[must_use]
    pub fn of(layout: &'static Layout, mut command: Command) -> Self {
        // Global arguments reach the subcommands here.
        command.build();
        let own = |section: Section| {
            let command = command.find_subcommand(section.name());
            command.into_iter().flat_map(Command::get_arguments).filter_map(Setting::of).collect::<Vec<_>>()
        };
        let mut sections: Vec<_> = layout.commands().map(|section| (section, own(section))).collect();
        let members = &sections[..layout.members.len()];
        let in_all = |setting: &&Setting| {
            let same = |other: &Setting| other.key == setting.key && other.help() == setting.help();
            members.iter().all(|(_, settings)| settings.iter().any(same))
        };
        let first = members.first().map_or(&[][..], |(_, settings)| settings);
        let common = first.iter().filter(in_all).cloned().collect();
        sections.insert(0, (layout.common, common));
        Self { layout, sections }
    }

    /// Which sections there are.
    #[must_use]
    pub fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// What can be set in a section.
    #[must_use]
    pub fn section(&self, section: Section) -> &[Setting] {
        self.sections.iter().find(|(name, _)| *name == section).map_or(&[], |(_, settings)| settings)
    }

    /// A setting by its key.
    #[must_use]
    pub fn setting(&self, section: Section, key: &str) -> Option<&Setting> {
        self.section(section).iter().find(|setting| setting.key == key)
    }

    /// The sections that know a key.
    pub fn homes<'a>(&'a self, key: &'a str) -> impl Iterator<Item = Section> + 'a {
        self.layout.sections().filter(move |&section| self.setting(section, key).is_some())
    }
}
