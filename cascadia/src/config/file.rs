//! The file: TOML text becomes entries that fit their settings, or a list of everything that is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::layout::Section;
use super::nearest::nearest;
use super::schema::{Kind, Schema, Setting};

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, counted from 1; absent where the whole file is meant.
    pub line: Option<usize>,
    /// What, and the cure.
    pub sentence: String,
}

impl Problem {
    /// In full: which file, where, what.
    #[must_use]
    pub fn of(&self, path: &Path) -> String {
        match self.line {
            Some(line) => format!("{}:{line}: {}", path.display(), self.sentence),
            None => format!("{}: {}", path.display(), self.sentence),
        }
    }
}

/// What a file gives for one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its flag would be given.
    pub given: Given,
    /// Where it stands, counted from 1.
    pub line: usize,
}

/// A value as the flag would get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// One value, or those of a list.
    Words(Vec<String>),
    /// The bare flag, or not even that.
    Bare(bool),
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(words) => f.write_str(&words.join(",")),
            Self::Bare(on) => on.fmt(f),
        }
    }
}

/// What a file says, by section and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File(pub BTreeMap<(Section, String), Entry>);

impl File {
    /// Reads a text.
    ///
    /// # Errors
    /// Everything that is wrong with it; at least one problem.
    pub fn parse(text: &str, schema: &Schema) -> Result<Self, Vec<Problem>> {
        let reader = Reader { text, schema };
        let root = DeTable::parse(text).map_err(|error| vec![reader.syntax(&error)])?;
        let (mut file, mut problems) = (Self::default(), Vec::new());
        for (name, value) in root.into_inner() {
            let section = schema.layout().section(name.as_ref());
            match (section, value.get_ref()) {
                (Some(section), DeValue::Table(table)) => {
                    reader.section(section, table, &mut file, &mut problems);
                }
                _ => problems.push(reader.outside(&name, section)),
            }
        }
        problems.sort_by_key(|problem| problem.line);
        if problems.is_empty() { Ok(file) } else { Err(problems) }
    }
}

struct Reader<'a> {
    text: &'a str,
    schema: &'a Schema,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
    }

    fn problem(&self, offset: usize, sentence: String) -> Problem {
        Problem { line: Some(self.line(offset)), sentence }
    }

    fn syntax(&self, error: &toml::de::Error) -> Problem {
        let line = error.span().map(|span| self.line(span.start));
        let place = error.span().and_then(|span| self.text.get(span)).map(str::trim).unwrap_or_default();
        let place = place.lines().next().filter(|place| !place.is_empty()).map(|place| format!(" at {}", short(place)));
        let message = error.message().replace('\n', ", ");
        Problem { line, sentence: format!("this is no TOML: {message}{}", place.unwrap_or_default()) }
    }

    /// Something that is no section.
    fn outside(&self, name: &Spanned<std::borrow::Cow<'_, str>>, section: Option<Section>) -> Problem {
        let word = name.get_ref();
        let key = word.replace('-', "_");
        let homes: Vec<String> = self.schema.homes(&key).map(|section| format!("[{}]", section.name())).collect();
        let sentence = if section.is_some() {
            format!("{word} is a section: write [{word}] on a line of its own")
        } else if !homes.is_empty() {
            format!("{word} stands in no section: put it in {}", homes.join(" or "))
        } else {
            let known: Vec<&str> = self.schema.layout().sections().map(Section::name).collect();
            let meant = nearest(word, known.iter().copied())
                .map(|name| format!("; did you mean [{name}]?"))
                .unwrap_or_default();
            format!("there is no section [{}]{meant}; there are {}", short(word), known.join(", "))
        };
        self.problem(name.span().start, sentence)
    }

    fn section(&self, section: Section, table: &DeTable<'_>, file: &mut File, problems: &mut Vec<Problem>) {
        for (name, value) in table {
            let key = name.get_ref().replace('-', "_");
            let entry = match self.schema.setting(section, &key) {
                None => Err(self.problem(name.span().start, self.unknown(section, &key))),
                Some(setting) => fit(setting, value.get_ref())
                    .map(|given| Entry { given, line: self.line(name.span().start) })
                    .map_err(|why| self.problem(value.span().start, format!("{}.{key} {why}", section.name()))),
            };
            match entry {
                Err(problem) => problems.push(problem),
                Ok(entry) => {
                    let line = entry.line;
                    if let Some(other) = file.0.insert((section, key.clone()), entry) {
                        let (first, last) = (line.min(other.line), line.max(other.line));
                        let sentence = format!("{}.{key} is set in line {first} too: keep one", section.name());
                        problems.push(Problem { line: Some(last), sentence });
                    }
                }
            }
        }
    }

    fn unknown(&self, section: Section, key: &str) -> String {
        let homes: Vec<String> = self.schema.homes(key).map(|home| format!("[{}]", home.name())).collect();
        let known = self.schema.section(section).iter().map(Setting::key);
        let cure = if homes.is_empty() {
            match nearest(key, known) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("`{} {}` lists what there is", self.schema.layout().printer, section.name()),
            }
        } else {
            format!("it belongs in {}", homes.join(" or "))
        };
        format!("[{}] has no key {:?}: {cure}", section.name(), short(key))
    }
}

/// What a message repeats of a word that can have any length.
fn short(word: &str) -> String {
    word.chars().take(80).collect()
}

/// A value as the setting's flag would get it.
fn fit(setting: &Setting, value: &DeValue<'_>) -> Result<Given, String> {
    match value {
        DeValue::Boolean(on) if setting.may_be_bare() => return Ok(Given::Bare(*on)),
        DeValue::Array(_) if !setting.is_list() => {}
        DeValue::Array(items) => {
            if items.is_empty() && !setting.default().is_empty() {
                return Err("is an empty list, which cannot be meant: leave it out for the default".into());
            }
            let words = items.iter().map(|item| {
                let word = word(setting, item.get_ref())?;
                match setting.delimiter().filter(|&delimiter| word.contains(delimiter)) {
                    Some(delimiter) => Err(format!("has {word:?} in its list: no item may hold a {delimiter:?}")),
                    None => Ok(word),
                }
            });
            return words.collect::<Result<_, _>>().map(Given::Words);
        }
        _ if setting.is_bare() => {}
        value => return word(setting, value).map(|word| Given::Words(vec![word])),
    }
    Err(wrong_kind(setting, value))
}

/// One value as text that the flag takes.
fn word(setting: &Setting, value: &DeValue<'_>) -> Result<String, String> {
    let word = match (setting.kind(), value) {
        (Kind::Switch, DeValue::Boolean(on)) => on.to_string(),
        (Kind::Count | Kind::Number, DeValue::Integer(number)) => decimal(number.as_str(), number.radix()),
        (Kind::Number, DeValue::Float(number)) => number.as_str().to_owned(),
        (Kind::Text, DeValue::String(text)) => text.clone().into_owned(),
        // Some numbers are written with a unit, which only a string can hold.
        (Kind::Count | Kind::Number, DeValue::String(text))
            if text.parse::<f64>().is_err() && setting.try_value(text).is_ok() =>
        {
            text.clone().into_owned()
        }
        _ => return Err(wrong_kind(setting, value)),
    };
    match setting.try_value(&word) {
        Ok(()) => Ok(word),
        Err(_) if setting.is_secret() => Err("is not what it must be".into()),
        Err(why) => Err(format!("is {:?}: {why}", short(&word))),
    }
}

fn wrong_kind(setting: &Setting, value: &DeValue<'_>) -> String {
    let found = match value {
        _ if setting.is_secret() => String::new(),
        DeValue::String(text) => format!("{:?}, ", short(text)),
        DeValue::Integer(number) => format!("{}, ", short(number.as_str())),
        DeValue::Float(number) => format!("{}, ", short(number.as_str())),
        DeValue::Boolean(on) => format!("{on}, "),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => String::new(),
    };
    let list = if setting.is_list() { " or a list of such" } else { "" };
    format!("is {found}a TOML {}: it must be {}{list}", value.type_str(), setting.kind().name())
}

/// A TOML integer in decimal; one that no machine holds stays as it is, and no flag takes it.
fn decimal(digits: &str, radix: u32) -> String {
    u128::from_str_radix(digits, radix).map_or_else(|_| digits.to_owned(), |number| number.to_string())
}
