//! Logs: one line an event, as text or as one JSON object, with the session and its trace. Never a prompt, never a
//! completion, unless `--log-prompts` asks for them.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use cascadia_core::ids::SessionId;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::{TelemetryError, TraceContext};

/// Sends logs to stderr, as text or as one JSON object a line.
///
/// # Errors
/// When the filter cannot be read, or logs were set up before.
pub fn init(filter: &str, json: bool) -> Result<Logs, TelemetryError> {
    let filter = parse(filter)?;
    // A line that cannot be written (a full disk, a pipe that nobody reads) would be complained of by `eprintln!`, which
    // panics where the complaint cannot be written either: it is lost, and the node serves on.
    let builder = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_env_filter(filter);
    // Two types of subscriber, and of handle: what they have in common is that they take another filter.
    let (set, logs) = if json {
        let builder = builder.fmt_fields(JsonFields::new()).event_format(Lines).with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Logs(Arc::new(move |filter| handle.reload(filter).is_ok())))
    } else {
        let builder = builder.fmt_fields(TextFields).with_filter_reloading();
        let handle = builder.reload_handle();
        (builder.try_init(), Logs(Arc::new(move |filter| handle.reload(filter).is_ok())))
    };
    if json && set.is_ok() {
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a thread panicked")));
    }
    set.map(|()| logs).map_err(|_| TelemetryError::Twice)
}

/// Whether a filter can be read.
///
/// # Errors
/// What is wrong with it, and the cure.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.into(), source })
}

/// The logs of this process.
#[derive(Clone)]
pub struct Logs(Arc<dyn Fn(EnvFilter) -> bool + Send + Sync>);

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logs")
    }
}

impl Logs {
    /// Logs what this filter lets through from now on.
    ///
    /// # Errors
    /// When it cannot be read; nothing has changed then.
    pub fn filter(&self, filter: &str) -> Result<(), TelemetryError> {
        // Fails only where nothing is logged any more.
        let _ = (self.0)(parse(filter)?);
        Ok(())
    }
}

/// What all log lines about a session have in common; shown at every level, so that no line lacks it.
#[must_use]
pub fn log_span(session: SessionId, trace: &TraceContext) -> tracing::Span {
    match trace.trace_id() {
        Some(trace) => tracing::error_span!("session", %session, trace_id = %trace),
        None => tracing::error_span!("session", %session),
    }
}

/// A text line's fields, `name=value`. What clients sent may stand in them, so control characters are escaped: nobody
/// writes a line of his own, or to a terminal.
#[derive(Debug)]
struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut text = Text { writer, is_first: true, result: Ok(()) };
        fields.record(&mut text);
        text.result
    }
}

struct Text<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_err() {
            return;
        }
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        let mut line = Escaped(&mut self.writer);
        self.result = match field.name() {
            "message" => write!(line, "{space}{value:?}"),
            name => write!(line, "{space}{name}={value:?}"),
        };
    }
}

/// Writes on one line, whatever is written.
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.chars().next_back().filter(|last| last.is_control()) {
                Some(last) => {
                    self.0.write_str(&part[..part.len() - last.len_utf8()])?;
                    write!(self.0, "{}", last.escape_debug())?;
                }
                None => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

/// One JSON object a line: what the event says, and beside it what its spans know (`session`, `trace_id`).
#[derive(Debug)]
struct Lines;

impl<S> FormatEvent<S, JsonFields> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        let mut line = Map::new();
        line.insert("timestamp".into(), timestamp.into());
        line.insert("level".into(), metadata.level().as_str().into());
        line.insert("target".into(), metadata.target().into());
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>().map(|fields| fields.fields.as_str());
            if let Some(Ok(Value::Object(fields))) = fields.map(serde_json::from_str) {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// The event's own fields.
struct Fields<'l>(&'l mut Map<String, Value>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_has_the_session_and_its_trace_beside_what_it_says() {
        let memory = Memory::default();
        let sink = memory.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || sink.clone())
            .fmt_fields(JsonFields::new())
            .event_format(Lines)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _session = tracing::error_span!("session", session = "5e", trace_id = %"0af7").entered();
            tracing::warn!(tokens = 3, error = %"two\nlines \"and\" quotes", "ended");
            tracing::info!("again");
        });
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "one line an event: {text}");
        let first = &lines[0];
        assert_eq!((&first["session"], &first["trace_id"]), (&"5e".into(), &"0af7".into()));
        assert_eq!(
            (&first["level"], &first["message"], &first["tokens"]),
            (&"WARN".into(), &"ended".into(), &3.into())
        );
        assert_eq!(first["error"], "two\nlines \"and\" quotes");
        assert!(first["timestamp"].as_str().unwrap().contains('T') && first["target"].is_string());
    }

    #[test]
    fn a_text_line_stays_one_line_whatever_a_client_sent() {
        let memory = Memory::default();
        let sink = memory.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || sink.clone())
            .fmt_fields(TextFields)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _session = tracing::error_span!("session", session = %"5e").entered();
            tracing::info!(error = %"no \"a\n2026 INFO forged \u{1b}[31mred\u{9b}\" é", label = "x\ny", "refused");
        });
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let said = r#"refused error=no "a\n2026 INFO forged \u{1b}[31mred\u{9b}" é label="x\ny""#;
        assert!(text.ends_with(&format!("{said}\n")) && text.contains("session{session=5e}"), "{text}");
    }

    #[test]
    fn a_wrong_filter_is_told_with_its_cure() {
        let error = init("cascadia=loud", false).unwrap_err().to_string();
        assert!(error.contains("cascadia=loud") && error.contains("info"), "{error}");
    }
}
