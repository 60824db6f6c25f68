//! Log lines on stderr: text for people or JSON for machines.
//!
//! Guarantees: one event is one line, whatever its fields contain (control characters are escaped, so a hostile value
//! cannot forge a line or drive a terminal); only our own crate logs at the chosen level. Refuses to know configuration
//! files and the environment: no variable can raise a level. A logger that cannot write stays silent and never stops
//! the process. Field names: docs/observability.md.

use super::backlog::{Backlog, Flush};
use crate::os::wall_clock;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{self as lines, FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

pub use super::backlog::DroppedLines;

/// The target of everything that this crate logs.
const OURS: &str = "kube_kms";
/// SECURITY: what dependencies may log at most. Below `warn` an HTTP stack prints headers and bodies, and those of a KMS
/// call hold credentials and the DEK itself.
const DEPENDENCIES_MAX: LevelFilter = LevelFilter::WARN;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time LEVEL target: message key=value …`
    Text,
    /// One JSON object with the event's fields at its top.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// Something failed that may pass by itself, or that a caller did wrong.
    Warn,
    /// Changes of state.
    Info,
    /// Every RPC and every KMS call.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// Changes the level of a running logger.
#[derive(Clone, Debug)]
pub struct LevelHandle(reload::Handle<Targets, Registry>);

impl LevelHandle {
    /// From the next event on. Nothing happens when the logger is gone.
    pub fn set(&self, level: LogLevel) {
        self.0.reload(targets(level)).ok();
    }
}

/// A started logger. Dropping it writes what is still waiting.
#[derive(Debug)]
pub struct Logging {
    /// Changes the level.
    pub level: LevelHandle,
    /// Counts lines that were dropped.
    pub dropped: DroppedLines,
    _flush: Flush,
}

/// Starts logging to stderr, for the whole process. When something else (a test) already logs for it, that stays and
/// the handle changes nothing.
///
/// A thread of its own writes: whoever reads our stderr and stops (a stuck log collector) must never stop a request. Up
/// to 32,768 lines wait; beyond that they are dropped and counted. It writes what a few milliseconds bring with one write.
#[must_use]
pub fn init(format: LogFormat, level: LogLevel) -> Logging {
    let (backlog, flush) = Backlog::start(std::io::stderr());
    let dropped = backlog.dropped();
    let (logger, level) = build(format, level, std::io::stderr().is_terminal(), backlog);
    tracing::subscriber::set_global_default(logger).ok();
    Logging { level, dropped, _flush: flush }
}

fn targets(level: LogLevel) -> Targets {
    let ours = level.filter();
    Targets::new().with_default(ours.min(DEPENDENCIES_MAX)).with_target(OURS, ours)
}

fn build<W>(format: LogFormat, level: LogLevel, ansi: bool, to: W) -> (impl Subscriber + Send + Sync, LevelHandle)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(targets(level));
    let filtered = Registry::default().with(filter);
    // With log_internal_errors a failed write is itself printed, and printing to a stderr that is gone panics.
    let layer = lines::layer().with_timer(WallClock).with_writer(to).with_ansi(ansi).log_internal_errors(false);
    let layer = match format {
        LogFormat::Text if ansi => layer.fmt_fields(EscapedFields).boxed(),
        LogFormat::Text => layer.fmt_fields(EscapedFields).event_format(PlainText).boxed(),
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(true).with_span_list(false).with_ansi(false).boxed()
        }
    };
    (filtered.with(layer), LevelHandle(handle))
}

/// RFC 3339 in UTC with microseconds, written in one piece.
#[derive(Debug)]
struct WallClock;

impl FormatTime for WallClock {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        write!(to, "{}", humantime::format_rfc3339_micros(wall_clock()))
    }
}

/// A line without colours, as the library's own format has it, but put together in one piece: there is one for every request, and
/// the library goes through a `dyn Write` for each of its thirty parts.
#[derive(Debug)]
struct PlainText;

/// Bytes that the line of a request needs, and then some.
const LINE_USUAL: usize = 320;

impl<S, N> FormatEvent<S, N> for PlainText
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::with_capacity(LINE_USUAL);
        write!(line, "{}", humantime::format_rfc3339_micros(wall_clock()))?;
        line.push_str(match *event.metadata().level() {
            Level::ERROR => " ERROR ",
            Level::WARN => "  WARN ",
            Level::INFO => "  INFO ",
            Level::DEBUG => " DEBUG ",
            Level::TRACE => " TRACE ",
        });
        let mut is_inside = false;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            is_inside = true;
            line.push_str(span.name());
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(line, "{{{fields}}}")?;
            }
            line.push(':');
        }
        if is_inside {
            line.push(' ');
        }
        line.push_str(event.metadata().target());
        line.push_str(": ");
        let mut fields = Line { to: line, is_empty: true, written: Ok(()) };
        event.record(&mut fields);
        fields.written?;
        fields.to.push('\n');
        to.write_str(&fields.to)
    }
}

/// `message key=value …`; a value with anything but plain characters is quoted and escaped.
#[derive(Debug)]
struct EscapedFields;

impl<'w> FormatFields<'w> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, to: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line { to, is_empty: true, written: Ok(()) };
        fields.record(&mut line);
        line.written
    }
}

struct Line<W> {
    to: W,
    is_empty: bool,
    written: fmt::Result,
}

impl<W: fmt::Write> Line<W> {
    fn field(&mut self, name: &str, value: &str) {
        if self.written.is_ok() {
            self.written = self.write(name, value);
        }
    }

    fn write(&mut self, name: &str, value: &str) -> fmt::Result {
        self.name(name)?;
        if is_plain(value) {
            return self.to.write_str(value);
        }
        // SECURITY: Debug of a str escapes quotes, line ends and everything that does not print.
        write!(self.to, "{value:?}")
    }

    fn name(&mut self, name: &str) -> fmt::Result {
        if !std::mem::take(&mut self.is_empty) {
            self.to.write_char(' ')?;
        }
        self.to.write_str(name)?;
        self.to.write_char('=')
    }

    fn message(&mut self, message: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_empty) {
            self.to.write_char(' ')?;
        }
        write!(Escaping(&mut self.to), "{message:?}")
    }

    fn number(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        self.name(name)?;
        write!(self.to, "{value}")
    }
}

impl<W: fmt::Write> Visit for Line<W> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            name => self.field(name, value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if self.written.is_ok() {
            self.written = self.number(field.name(), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" if self.written.is_ok() => self.written = self.message(value),
            name => self.field(name, &format!("{value:?}")),
        }
    }
}

/// Looks at all of it and not just up to the first that is not plain: without a branch for each byte it is much faster.
fn is_plain(value: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_graphic() & (b != b'"') & (b != b'\\') & (b != b'=');
    !value.is_empty() & value.bytes().fold(true, |all, b| all & is_plain(b))
}

/// Writes the sentence of a line, without quotes around it.
struct Escaping<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return self.0.write_str(text);
        }
        text.chars().try_for_each(|c| match c {
            '"' | '\'' | '\\' => self.0.write_char(c),
            _ => write!(self.0, "{}", c.escape_debug()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing::subscriber::with_default;
    use tracing::{debug, error, info, info_span, trace, warn};

    const HOSTILE: &str = "x\n2030-01-01T00:00:00Z ERROR forged=\"yes\" \u{1b}[2J\u{9b}31m\r\u{202e}\0";

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `act` logs, line by line; the handle can change the level in between.
    fn logged(format: LogFormat, level: LogLevel, act: impl FnOnce(&LevelHandle)) -> Vec<String> {
        let captured = Captured::default();
        let to = captured.clone();
        let (logger, handle) = build(format, level, false, move || to.clone());
        with_default(logger, || act(&handle));
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_text_line_has_time_level_target_message_and_fields() {
        let lines = logged(LogFormat::Text, LogLevel::Info, |_| {
            info!(uid = "u-1", code = 14, reason = %"kms-unreachable", text = "two words", empty = "", "an RPC failed");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let (time, rest) = line.split_once(' ').unwrap();
        assert_is_rfc3339_with_microseconds(time);
        assert_eq!(
            rest.trim_start(),
            "INFO kube_kms::telemetry::log::tests: an RPC failed uid=u-1 code=14 reason=kms-unreachable \
             text=\"two words\" empty=\"\""
        );
    }

    #[test]
    fn a_line_without_colours_is_what_the_library_would_write() {
        let log_all = || {
            error!(n = 1, "x");
            warn!(target: "kube_kms::elsewhere", text = "two words", "two words");
            let outer = info_span!("outer", uid = "u-1");
            outer.in_scope(|| info_span!("inner").in_scope(|| info!("inside")));
            debug!(no = "message");
            trace!("5");
        };
        let captured = Captured::default();
        let to = captured.clone();
        let library = lines::layer().with_writer(move || to.clone()).with_ansi(false).fmt_fields(EscapedFields);
        with_default(Registry::default().with(library.with_timer(WallClock)), log_all);
        let theirs = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        let ours = logged(LogFormat::Text, LogLevel::Trace, |_| log_all());
        let after_time = |line: &str| line.split_once(' ').unwrap().1.to_owned();
        assert_eq!(ours.len(), 5);
        assert_eq!(
            ours.iter().map(|l| after_time(l)).collect::<Vec<_>>(),
            theirs.lines().map(after_time).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_hostile_value_stays_on_its_line_and_in_its_quotes() {
        let lines = logged(LogFormat::Text, LogLevel::Info, |_| {
            info!(as_str = HOSTILE, as_display = %HOSTILE, as_debug = ?HOSTILE, "{HOSTILE}");
            let span = info_span!("rpc", uid = %HOSTILE);
            span.in_scope(|| warn!("inside"));
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        for line in &lines {
            assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
            assert!(line.contains("\\n") && line.contains("\\u{1b}") && line.contains("\\u{9b}"), "{line}");
        }
        assert!(lines[0].contains(r#"as_str="x\n2030-01-01T00:00:00Z ERROR forged=\"yes\" "#), "{}", lines[0]);
        assert!(lines[1].contains(r#"uid="x\n2030"#), "{}", lines[1]);
    }

    #[test]
    fn a_json_line_is_one_object_with_the_fields_on_top() {
        let lines = logged(LogFormat::Json, LogLevel::Info, |_| {
            info_span!("rpc", uid = "u-1").in_scope(|| info!(elapsed_us = 12, reason = %HOSTILE, "done"));
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let object: Value = serde_json::from_str(line).unwrap();
        assert_is_rfc3339_with_microseconds(object["timestamp"].as_str().unwrap());
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["target"], "kube_kms::telemetry::log::tests");
        assert_eq!(object["message"], "done");
        assert_eq!(object["elapsed_us"], 12);
        assert_eq!(object["reason"], HOSTILE);
        assert_eq!(object["span"]["uid"], "u-1");
    }

    #[test]
    fn dependencies_are_capped_at_warn_whatever_the_level() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = logged(format, LogLevel::Trace, |handle| {
                for _ in 0..2 {
                    info!(target: "aws_smithy_runtime::client", "body: canary");
                    debug!(target: "h2::codec", "frame: canary");
                    trace!(target: "hyper::proto", "bytes: canary");
                    trace!(target: "aws_sdk_kms", "plaintext: canary");
                    handle.set(LogLevel::Trace);
                }
                warn!(target: "hyper::proto", "seen");
                trace!("ours");
            });
            assert!(!lines.iter().any(|l| l.contains("canary")), "{lines:?}");
            assert_eq!(lines.len(), 2, "{lines:?}");
        }
    }

    #[test]
    fn at_error_dependencies_log_errors_only() {
        let lines = logged(LogFormat::Text, LogLevel::Error, |_| {
            warn!(target: "hyper::proto", "no");
            warn!("no");
            error!(target: "hyper::proto", "yes");
            error!("yes");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
    }

    #[test]
    fn the_level_can_be_changed_while_running() {
        let log_all = || {
            error!("1");
            warn!("2");
            info!("3");
            debug!("4");
            trace!("5");
        };
        let levels =
            [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace, LogLevel::Error];
        for (level, count) in levels.into_iter().zip([1, 2, 3, 4, 5, 1]) {
            let lines = logged(LogFormat::Text, LogLevel::Info, |handle| {
                handle.set(level);
                log_all();
            });
            assert_eq!(lines.len(), count, "{level:?}: {lines:?}");
        }
    }

    #[test]
    fn colours_are_for_terminals_only() {
        let coloured = |ansi| {
            let captured = Captured::default();
            let to = captured.clone();
            let (logger, _handle) = build(LogFormat::Text, LogLevel::Info, ansi, move || to.clone());
            with_default(logger, || info!("x"));
            captured.0.lock().unwrap().contains(&0x1b)
        };
        assert!(coloured(true));
        assert!(!coloured(false));
    }

    #[test]
    fn a_writer_that_fails_stops_nothing() {
        struct Gone;
        impl io::Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let (logger, handle) = build(LogFormat::Json, LogLevel::Info, false, || Gone);
        with_default(logger, || info!("nobody reads this"));
        // The logger is gone now: changing its level is harmless.
        handle.set(LogLevel::Debug);
    }

    /// `2030-01-01T00:00:00.123456Z`
    fn assert_is_rfc3339_with_microseconds(time: &str) {
        assert_eq!(time.len(), 27, "{time}");
        assert!(time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
        humantime::parse_rfc3339(time).unwrap();
    }
}
