//! How a test says that it did not run.
//!
//! Guarantees: one line on stderr that CI can grep, `SKIPPED: <test>: <reason>`, and one line in
//! `target/tests-skipped.txt`, `<test>: <reason>`, that CI can judge. The line is one append, so parallel tests never mix theirs and a file
//! that someone truncates meanwhile stays well-formed. Refuses to know why a tier is missing: the caller says it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Cargo's target directory, whatever it is called.
#[must_use]
pub fn target_dir() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp).to_path_buf()
}

/// Says that `test` did not run, and why. The file is a help: when it cannot be written, the line on stderr remains.
pub fn skipped(test: &str, reason: &str) {
    eprintln!("SKIPPED: {test}: {reason}");
    let path = target_dir().join("tests-skipped.txt");
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("SKIPPED: {test}: not counted in {}: {error}", path.display());
    }
}
