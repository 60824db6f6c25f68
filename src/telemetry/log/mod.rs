//! Log lines on stderr: text for people or JSON for machines.
//!
//! Guarantees: one event is one line, whatever its fields contain (`line.rs`); only our own crate logs at the chosen level;
//! whoever logs never waits for whoever reads (`waiting.rs`). Refuses to know configuration files and the environment: no
//! variable can raise a level. A logger that cannot write stays silent and never stops the process. Field names:
//! docs/observability.md.

mod line;
mod waiting;

use self::line::{EscapedFields, PlainText, WallClock};
use self::waiting::{Lines, Writer};
use kube_kms_core::printable::printable_json;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::{self as lines, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, reload};

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
    writer: Writer,
}

impl Logging {
    /// To be called by the thread that serves whenever it has nothing else to do: it is the one that writes then.
    pub fn at_rest(&self) -> impl Fn() + Send + Sync + 'static {
        let lines = self.writer.lines();
        move || lines.rest()
    }

    /// That thread has ended, or does something else from now on.
    pub fn no_more_rest(&self) {
        self.writer.lines().no_more_rest();
    }
}

/// How many lines were dropped because whoever reads stderr did not keep up.
#[derive(Clone, Debug)]
pub struct DroppedLines(Lines);

impl DroppedLines {
    /// So far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.dropped()
    }
}

/// Starts logging to stderr, for the whole process. When something else (a test) already logs for it, that stays and
/// the handle changes nothing. Who writes, and when: `waiting.rs`.
///
/// # Errors
/// When there is no descriptor or no thread left.
pub fn init(format: LogFormat, level: LogLevel) -> io::Result<Logging> {
    let stderr = io::stderr();
    let writer = Writer::start(File::from(stderr.as_fd().try_clone_to_owned()?))?;
    let (logger, level) = build(format, level, stderr.is_terminal(), writer.lines());
    tracing::subscriber::set_global_default(logger).ok();
    Ok(Logging { level, dropped: DroppedLines(writer.lines()), writer })
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
            let json = layer.json().flatten_event(true).with_current_span(true).with_span_list(false).with_ansi(false);
            json.map_writer(PrintableJson).boxed()
        }
    };
    (filtered.with(layer), LevelHandle(handle))
}

/// JSON's own writer leaves controls of C1 and characters of direction as they are, and people read logs on terminals.
#[derive(Debug)]
struct PrintableJson<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for PrintableJson<W> {
    type Writer = PrintableJson<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        PrintableJson(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for PrintableJson<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line) {
            Ok(text) => self.0.write_all(printable_json(text).as_bytes())?,
            Err(_) => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_core::printable::is_steering;
    use serde_json::Value;
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
            "INFO kube_kms_telemetry::log::tests: an RPC failed uid=u-1 code=14 reason=kms-unreachable \
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
        assert!(!line.chars().any(is_steering), "{line:?}");
        let object: Value = serde_json::from_str(line).unwrap();
        assert_is_rfc3339_with_microseconds(object["timestamp"].as_str().unwrap());
        assert_eq!(object["level"], "INFO");
        assert_eq!(object["target"], module_path!());
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
