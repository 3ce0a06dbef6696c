//! Chat templates: Jinja as Hugging Face runs it.

use std::io;

use cascadia_core::commit::Message;
use cascadia_core::limits::{RENDERED_BYTES, TEMPLATE_FUEL};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::error::TemplateError;
use crate::files::ModelFiles;
use crate::methods;
use crate::strftime::strftime;
use crate::tojson::tojson;

/// The special tokens that templates name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
}

impl SpecialTokens {
    /// Those of a `tokenizer_config.json`: plain strings, or objects with `content`.
    #[must_use]
    pub fn of(tokenizer_config: &serde_json::Value) -> Self {
        let token = |name: &str| {
            let token = &tokenizer_config[name];
            token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
        };
        Self { bos: token("bos_token"), eos: token("eos_token"), unk: token("unk_token"), pad: token("pad_token") }
    }
}

/// Address space, of which a template that does nothing absurd touches a few pages: enough for the deepest list that
/// [`TEMPLATE_FUEL`] pays for.
const STACK_BYTES: usize = 512 << 20;

/// A chat template that has been parsed once and found good.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Takes a template's source.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        let source = without_generation_tags(source);
        environment(None).template_from_str(&source).map_err(|e| TemplateError::Syntax(describe(&e)))?;
        Ok(Self { source, special })
    }

    /// The template of a model folder: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, which is a
    /// string or a list of named ones.
    pub fn of(files: &ModelFiles, special: SpecialTokens) -> Result<Self, TemplateError> {
        let configured = &files.tokenizer_config["chat_template"];
        let source = match (&files.chat_template, configured) {
            (Some(source), _) => source,
            (None, serde_json::Value::String(source)) => source,
            (None, serde_json::Value::Array(named)) => named_default(named)?,
            _ => return Err(TemplateError::Missing),
        };
        Self::new(source, special)
    }

    /// The prompt text of a conversation. `add_generation_prompt` opens the assistant's turn.
    ///
    /// `now` (Unix seconds) is what `strftime_now` formats, in UTC. Without it that function does not exist: templates
    /// that ask whether it does print a date of their own, others fail.
    ///
    /// A template comes with a model and may do anything: its work, what it keeps and what it writes are bounded
    /// ([`TEMPLATE_FUEL`], [`RENDERED_BYTES`]), the same at every node.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: Option<u64>,
    ) -> Result<String, TemplateError> {
        // `None` where Hugging Face passes None, undefined where it passes nothing.
        let named = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let turn = |message: &Message| context! { role => &*message.role, content => &*message.content };
        let context = context! {
            messages => messages.iter().map(turn).collect::<Vec<Value>>(),
            add_generation_prompt,
            bos_token => named(&self.special.bos),
            eos_token => named(&self.special.eos),
            unk_token => named(&self.special.unk),
            pad_token => named(&self.special.pad),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        // Lists in lists are dropped, compared and written by recursion, and a stack that ends takes the process with it.
        let deep = std::thread::Builder::new().stack_size(STACK_BYTES);
        std::thread::scope(|scope| {
            let work = deep.spawn_scoped(scope, || self.run(context, environment(now)));
            let work = work.map_err(|error| TemplateError::Failed(error.to_string()))?;
            work.join().unwrap_or_else(|_| Err(TemplateError::Failed("it panicked".into())))
        })
    }

    fn run(&self, context: Value, mut environment: Environment<'_>) -> Result<String, TemplateError> {
        environment.set_fuel(Some(TEMPLATE_FUEL));
        let mut written = Written { bytes: Vec::new(), full: false };
        let rendered = environment
            .template_from_str(&self.source)
            .and_then(|template| template.render_captured_to(context, &mut written).map(drop));
        rendered.map_err(|error| match raised(&error) {
            Some(Raised(message)) => TemplateError::Raised(message.clone()),
            None if written.full => TemplateError::TooMuchText(RENDERED_BYTES),
            None if out_of_fuel(&error) => TemplateError::TooMuchWork(TEMPLATE_FUEL),
            None => TemplateError::Failed(describe(&error)),
        })?;
        String::from_utf8(written.bytes).map_err(|error| TemplateError::Failed(error.to_string()))
    }
}

/// What a template has written: never more than [`RENDERED_BYTES`].
struct Written {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.full = self.bytes.len() + bytes.len() > RENDERED_BYTES;
        if self.full {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template called `default`, or the only one.
fn named_default(named: &[serde_json::Value]) -> Result<&String, TemplateError> {
    let templates: Vec<(&str, &String)> = named
        .iter()
        .filter_map(|entry| match &entry["template"] {
            serde_json::Value::String(source) => Some((entry["name"].as_str()?, source)),
            _ => None,
        })
        .collect();
    match templates.as_slice() {
        [] => Err(TemplateError::Missing),
        [(_, only)] => Ok(only),
        several => several.iter().find(|(name, _)| *name == "default").map(|(_, source)| *source).ok_or_else(|| {
            TemplateError::NoDefault(several.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
        }),
    }
}

/// The environment that `transformers` sets up.
fn environment(now: Option<u64>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default());
    environment.set_unknown_method_callback(methods::call);
    environment.add_filter("tojson", tojson);
    environment.add_filter("split", methods::split);
    environment.add_filter("lines", methods::lines);
    // As Python means them: `tools is iterable and tools | length > 0` asks for no length of None.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    if let Some(now) = now {
        environment.add_function("strftime_now", move |format: &str| strftime(format, now));
    }
    environment
}

/// `{% generation %}` marks what to train on and prints nothing of its own: a block that is always taken.
fn without_generation_tags(source: &str) -> String {
    let mut plain = String::new();
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        let Some(close) = tag.find("%}") else { break };
        plain.push_str(before);
        let body = &tag[..close];
        match body.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => plain.push_str(&body.replace("generation", "if true")),
            "endgeneration" => plain.push_str(&body.replace("endgeneration", "endif")),
            _ => plain.push_str(body),
        }
        rest = &tag[close..];
    }
    plain.push_str(rest);
    plain
}

/// What `raise_exception` throws.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raised(error: &Error) -> Option<&Raised> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        cause = error.source();
    }
    None
}

/// It may be the cause of what a filter or a macro says.
fn out_of_fuel(error: &Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// One line: what and where.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or_else(|| what.clone(), |line| format!("{what}, line {line}"))
}
