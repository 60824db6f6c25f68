//! The table of all keys as Markdown, which is how docs/configuration.md has it.
//!
//! Guarantees: made of [`KEYS`] alone, so that it cannot say anything that the parser does not do. Refuses to know the page
//! around it.

use crate::key::{KEYS, Key};
use std::fmt::Write as _;

/// The table.
#[must_use]
pub fn markdown() -> String {
    let mut table =
        String::from("| Key | Default | Takes | Change | Identity | What it does |\n|---|---|---|---|---|---|\n");
    for key in KEYS {
        let Key { path, does, .. } = key;
        let default = key.default.map_or_else(|| "none".to_owned(), |d| format!("`{d}`"));
        let identity = if key.identity { " yes" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| `{path}` | {default} | {} | {} |{identity} | {does} |",
            key.accepts(),
            key.change.as_str()
        );
    }
    table
}
