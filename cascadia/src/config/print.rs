//! The configuration as a file: all defaults, or what is in force.

use std::fmt::Write as _;

use super::layers::Origin;
use super::layout::Section;
use super::schema::{Kind, Schema, Setting};
use super::settings::Settings;

/// How wide a comment is.
const WIDTH: usize = 110;

/// A file with all defaults of some sections, each with what it means.
#[must_use]
pub fn defaults(schema: &Schema, sections: &[Section]) -> String {
    let mut out = String::new();
    comment(&mut out, schema.layout().preface);
    for &section in sections {
        let _ = write!(out, "\n# {}\n[{}]\n", section.title(), section.name());
        for setting in own(schema, section) {
            let default = setting.default();
            out.push('\n');
            comment(&mut out, &setting.help());
            comment(&mut out, &format!("{}; {}.", setting.variable(), when(setting)));
            let key = setting.key();
            if default.is_empty() {
                let _ = writeln!(out, "# {key} = {}", example(setting));
            } else {
                let _ = writeln!(out, "{key} = {}", value(setting, &default));
            }
        }
    }
    out
}

/// A file with what is in force, each with where it comes from.
#[must_use]
pub fn effective(settings: &Settings) -> String {
    let mut out = String::new();
    let mut last = None;
    for ((section, key), found) in settings.values() {
        let Some(setting) = settings.schema().setting(*section, key) else { continue };
        if last.replace(*section) != Some(*section) {
            let gap = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{gap}[{}]", section.name());
        }
        let origin = match &found.origin {
            Origin::Flag => format!("--{}", setting.flag()),
            Origin::Variable => setting.variable().to_owned(),
            Origin::File(line) => {
                format!("{}:{line}", settings.path().map(|path| path.display().to_string()).unwrap_or_default())
            }
            Origin::Default => "default".to_owned(),
        };
        let _ = match found.words.as_slice() {
            [] => writeln!(out, "# {key} is not set"),
            _ if setting.is_secret() => writeln!(out, "# {key} is a secret  # {origin}"),
            words => writeln!(out, "{key} = {}  # {origin}", value(setting, words)),
        };
    }
    out
}

/// The settings of a section that are not common to all members.
fn own(schema: &Schema, section: Section) -> impl Iterator<Item = &Setting> {
    let is_common = move |setting: &Setting| {
        let common = schema.setting(schema.layout().common, setting.key());
        section != schema.layout().common && common.is_some_and(|common| common.help() == setting.help())
    };
    schema.section(section).iter().filter(move |setting| !is_common(setting))
}

fn when(setting: &Setting) -> &'static str {
    if setting.reloads() { "reloads" } else { "needs a restart" }
}

fn example(setting: &Setting) -> String {
    let placeholder = setting.placeholder();
    let one = match setting.kind() {
        Kind::Switch => "false".to_owned(),
        Kind::Count => "0".to_owned(),
        Kind::Number => "0.0".to_owned(),
        Kind::Text => quoted(&placeholder),
    };
    if setting.is_list() { format!("[{one}]") } else { one }
}

fn value(setting: &Setting, words: &[String]) -> String {
    let items: Vec<String> = words.iter().map(|word| item(setting, word)).collect();
    if setting.is_list() { format!("[{}]", items.join(", ")) } else { items.join(", ") }
}

fn item(setting: &Setting, word: &str) -> String {
    let plain = match setting.kind() {
        Kind::Switch => matches!(word, "true" | "false"),
        Kind::Count => word.parse::<i64>().is_ok(),
        // `1.` and `.5` are numbers to everybody but TOML.
        Kind::Number => word.parse::<f64>().is_ok() && !word.starts_with('.') && !word.ends_with('.'),
        Kind::Text => false,
    };
    if plain { word.to_owned() } else { quoted(word) }
}

fn quoted(word: &str) -> String {
    toml::Value::from(word).to_string()
}

/// Words as comment lines.
fn comment(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split_whitespace() {
        if width == 0 || width + 1 + word.chars().count() > WIDTH {
            if width > 0 {
                out.push('\n');
            }
            out.push('#');
            width = 1;
        }
        width += 1 + word.chars().count();
        out.push(' ');
        out.push_str(word);
    }
    out.push('\n');
}
