//! Rust's source as far as its arrows need it: which paths a file names, which modules it declares, what is there for
//! tests alone.

/// One token: a word, `::`, or a character of punctuation. Comments, strings, numbers and lifetimes leave none.
pub type Token = String;

/// A path that begins at `crate`, `self` or `super`, and the inline module of its file that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The inline modules around it, outermost first.
    pub inside: Vec<String>,
    /// Its segments, `crate`, `self` or `super` first; a group in braces is one path for each name in it.
    pub segments: Vec<String>,
    /// The name that a `pub use` gives it, if it is one.
    pub exported: Option<String>,
}

/// A file's tokens: its code, and apart from it what `#[cfg(test)]` marks.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// What is always compiled.
    pub code: Vec<Token>,
    /// What is compiled for tests alone.
    pub tests: Vec<Token>,
    /// Modules in files of their own that are there for tests alone.
    pub test_modules: Vec<String>,
}

/// Reads a file.
pub fn read(text: &str) -> File {
    let tokens = tokens(text);
    let (mut file, mut at) = (File::default(), 0);
    let marker = ["#", "[", "cfg", "(", "test", ")", "]"];
    while at < tokens.len() {
        if !tokens[at..].iter().map(String::as_str).take(marker.len()).eq(marker) {
            file.code.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += marker.len();
        let end = at + item(&tokens[at..]);
        let marked = &tokens[at..end];
        if let Some(module) = marked.iter().position(|token| token == "mod")
            && marked.last().is_some_and(|last| last == ";")
        {
            file.test_modules.extend(marked.get(module + 1).cloned());
        }
        file.tests.extend_from_slice(marked);
        at = end;
    }
    file
}

/// How many tokens the item that they begin with has: up to its `;` or the end of its block.
fn item(tokens: &[Token]) -> usize {
    let (mut depth, mut braces) = (0usize, false);
    for (i, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" if depth == 0 => return i,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        braces |= token == "{" && depth == 1;
        if depth == 0 && (matches!(token.as_str(), ";" | ",") || (braces && token == "}" && !follows(&tokens[i + 1..])))
        {
            return i + 1;
        }
    }
    tokens.len()
}

/// Whether a block's item goes on behind it, as `use a::{b};` does.
fn follows(rest: &[Token]) -> bool {
    rest.first().is_some_and(|next| next == ";")
}

/// All paths that the tokens name.
pub fn paths(tokens: &[Token]) -> Vec<Path> {
    let mut found = Vec::new();
    // The blocks around, and the name of each that is a module.
    let mut blocks: Vec<Option<String>> = Vec::new();
    // Within `pub use ..;`.
    let mut exporting = false;
    let mut at = 0;
    while at < tokens.len() {
        let token = tokens[at].as_str();
        let before = |n: usize| at.checked_sub(n).map_or("", |i| tokens[i].as_str());
        match token {
            "use" => exporting = is_public(&tokens[..at]),
            ";" => exporting = false,
            "{" => blocks.push((before(2) == "mod").then(|| before(1).to_owned())),
            "}" => drop(blocks.pop()),
            _ => {}
        }
        let begins = matches!(token, "crate" | "self" | "super") && before(1) != "::";
        // What a face hands on may be named from its own children, without `self`.
        let handed_on = exporting && before(1) == "use" && !begins;
        if (begins && tokens.get(at + 1).is_some_and(|next| next == "::")) || handed_on {
            let mut tree = Vec::new();
            let root = if handed_on { vec!["self".to_owned()] } else { Vec::new() };
            at += path(&tokens[at..], root, &mut tree);
            let inside: Vec<String> = blocks.iter().flatten().cloned().collect();
            found.extend(tree.into_iter().map(|(segments, name)| {
                let exported = exporting.then_some(name).flatten();
                Path { inside: inside.clone(), segments, exported }
            }));
        } else {
            at += 1;
        }
    }
    found
}

fn is_public(before: &[Token]) -> bool {
    match before.last().map(String::as_str) {
        Some("pub") => true,
        Some(")") => {
            let open = before.iter().rposition(|token| token == "(").unwrap_or_default();
            open.checked_sub(1).is_some_and(|i| before[i] == "pub")
        }
        _ => false,
    }
}

/// Reads the path that the tokens begin with, a leaf for each name in its braces; how many tokens it has.
fn path(tokens: &[Token], mut segments: Vec<String>, leaves: &mut Vec<(Vec<String>, Option<String>)>) -> usize {
    let is_word = |token: &Token| token.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let mut at = 0;
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at += if tokens[at] == "," { 1 } else { path(&tokens[at..], segments.clone(), leaves).max(1) };
                }
                return at + 1;
            }
            Some(_) if is_word(&tokens[at]) => {
                segments.push(tokens[at].clone());
                at += 1;
            }
            Some("*") => {
                leaves.push((segments, None));
                return at + 1;
            }
            _ => break,
        }
        if tokens.get(at).is_none_or(|next| next != "::") {
            break;
        }
        at += 1;
    }
    let mut name = segments.last().cloned();
    // `use a::{self}` names `a`.
    if segments.len() > 1 && name.as_deref() == Some("self") {
        segments.pop();
        name = segments.last().cloned();
    }
    if tokens.get(at).is_some_and(|next| next == "as") {
        name = tokens.get(at + 1).cloned();
        at += 2;
    }
    leaves.push((segments, name));
    at
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < chars.len() {
        let (c, next) = (chars[at], chars.get(at + 1).copied().unwrap_or(' '));
        match c {
            '/' if next == '/' => at += until(&chars[at..], |rest| rest[0] == '\n'),
            '/' if next == '*' => at += block_comment(&chars[at..]),
            '"' => at += string(&chars[at..]),
            '\'' => at += character(&chars[at..]),
            _ if is_word(c) => {
                let length = until(&chars[at..], |rest| !is_word(rest[0]));
                let word: String = chars[at..at + length].iter().collect();
                let raw = matches!(word.as_str(), "r" | "br" | "cr");
                at += length;
                match chars.get(at) {
                    Some('"' | '#') if raw && is_raw_string(&chars[at..]) => at += raw_string(&chars[at..]),
                    // A raw identifier is the word behind it.
                    Some('#') if word == "r" => at += 1,
                    Some('"' | '\'') if matches!(word.as_str(), "b" | "c") => {}
                    _ if c.is_ascii_digit() => {}
                    _ => tokens.push(word),
                }
            }
            ':' if next == ':' => {
                tokens.push("::".to_owned());
                at += 2;
            }
            _ => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    tokens
}

/// How many characters come before the first place where this holds.
fn until(chars: &[char], holds: impl Fn(&[char]) -> bool) -> usize {
    (0..chars.len()).find(|&at| holds(&chars[at..])).unwrap_or(chars.len())
}

fn block_comment(chars: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < chars.len() {
        let step = match chars.get(at..at + 2) {
            Some(['/', '*']) => 1,
            Some(['*', '/']) => -1,
            _ => 0,
        };
        depth += step;
        at += if step == 0 { 1 } else { 2 };
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(chars: &[char]) -> usize {
    let mut at = 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// A character, or the apostrophe of a lifetime with its name.
fn character(chars: &[char]) -> usize {
    match chars {
        ['\'', '\\', ..] => 3 + until(&chars[3.min(chars.len())..], |rest| rest[0] == '\''),
        ['\'', _, '\'', ..] => 3,
        _ => 1 + until(&chars[1..], |rest| !(rest[0].is_alphanumeric() || rest[0] == '_')),
    }
}

fn is_raw_string(chars: &[char]) -> bool {
    chars.iter().find(|&&c| c != '#') == Some(&'"')
}

fn raw_string(chars: &[char]) -> usize {
    let hashes = until(chars, |rest| rest[0] != '#');
    let end = |rest: &[char]| rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|&c| c == '#');
    hashes + 1 + until(&chars[hashes + 1..], end) + 1 + hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        paths(&read(text).code).into_iter().map(|path| [path.inside, path.segments].concat().join("::")).collect()
    }

    #[test]
    fn a_path_is_named_wherever_it_stands_in_code_and_nowhere_else() {
        assert_eq!(
            named("use crate::{a, b::{self, c as d}, e::*};"),
            ["crate::a", "crate::b", "crate::b::c", "crate::e"]
        );
        assert_eq!(named("fn f() -> super::x::Y<'_> { crate::z::g('{', \"}\") }"), ["super::x::Y", "crate::z::g"]);
        assert_eq!(named("// crate::a\n/* crate::b /* x */ crate::c */ const S: &str = r#\"crate::d\"\"#;"), [""; 0]);
        assert_eq!(named("mod inner { fn f() { super::g() } } pub(crate) fn g() {}"), ["inner::super::g"]);
        assert_eq!(named("use std::crate_like; pub(in crate::a) fn f() {}"), ["crate::a"]);
    }

    #[test]
    fn a_face_says_what_it_hands_on() {
        let tokens = read("pub use config::{Door as Gate, Keys}; use keys::Other; pub(crate) use crate::a::B;").code;
        let exported: Vec<_> =
            paths(&tokens).into_iter().map(|path| (path.segments.join("::"), path.exported)).collect();
        let of = |path: &str, name: &str| (path.to_owned(), Some(name.to_owned()));
        let expected = [of("self::config::Door", "Gate"), of("self::config::Keys", "Keys"), of("crate::a::B", "B")];
        assert_eq!(exported, expected);
    }

    #[test]
    fn what_is_there_for_tests_alone_is_left_out() {
        let file = read(
            "use crate::a; #[cfg(test)] use crate::{b, c}; #[cfg(test)] mod samples; #[cfg(test)] mod tests { use super::*; }
             #[cfg(test)] fn f() -> [u8; 2] { crate::d() } use crate::e;",
        );
        assert_eq!(file.test_modules, ["samples"]);
        assert_eq!(paths(&file.tests).len(), 4);
        assert_eq!(
            paths(&file.code).iter().map(|path| path.segments.join("::")).collect::<Vec<_>>(),
            ["crate::a", "crate::e"]
        );
    }
}
