//! The only place that prints. A reader that went away (`| head`) is not an error.
//!
//! SECURITY: results and errors quote etcd, plugins and the KMS; nothing of that reaches a terminal that it would obey.

use kube_kms_core::printable::{printable_json, printable_lines};
use serde::Serialize;
use std::io::{self, BufRead, IsTerminal, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
}

/// Prints a line of a result to stdout.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout().lock(), "{}", printable_lines(text.as_ref()));
}

/// Prints bytes as they are to stdout.
pub fn raw(bytes: &[u8]) {
    let _ = io::stdout().lock().write_all(bytes);
}

/// Prints a result as JSON to stdout.
pub fn json(value: &impl Serialize) {
    line(json_text(value));
}

/// A result as a JSON document.
pub fn json_text(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
    printable_json(&text).into_owned()
}

/// Prints a result as one line of JSON to stdout.
pub fn json_line(value: &impl Serialize) {
    line(printable_json(&serde_json::to_string(value).unwrap_or_default()));
}

/// Prints what went wrong to stderr.
pub fn error(text: &str) {
    let _ = io::stderr().lock().write_all(printable_lines(text).as_bytes());
}

/// Asks on stderr and waits for an answer on stdin. Yes is `y` or `yes`; no, when there is no terminal to ask.
pub fn confirm(question: &str) -> bool {
    if !is_interactive() {
        return false;
    }
    error(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Whether somebody can be asked.
#[must_use]
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Shows what a long command is at, on stderr when that is a terminal. The next text takes its place; an empty one clears
/// the line.
pub fn progress(text: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{}", printable_lines(text)).and_then(|()| stderr.flush());
    }
}
