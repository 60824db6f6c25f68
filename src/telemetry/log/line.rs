//! How a line is put together.
//!
//! Guarantees: one event is one line, whatever its fields contain: control characters are escaped, so a hostile value cannot
//! forge a line or drive a terminal.

use kube_kms_os::wall_clock;
use std::fmt::{self, Write as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// RFC 3339 in UTC with microseconds, written in one piece.
#[derive(Debug)]
pub(super) struct WallClock;

impl FormatTime for WallClock {
    fn format_time(&self, to: &mut Writer<'_>) -> fmt::Result {
        write!(to, "{}", humantime::format_rfc3339_micros(wall_clock()))
    }
}

/// A line without colours, as the library's own format has it, but put together in one piece: there is one for every request, and
/// the library goes through a `dyn Write` for each of its thirty parts.
#[derive(Debug)]
pub(super) struct PlainText;

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
pub(super) struct EscapedFields;

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
