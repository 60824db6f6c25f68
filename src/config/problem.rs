//! What is wrong with a configuration: all of it, never only the first mistake.
//!
//! INVARIANT: no string that stands in the file as a value is ever part of a problem, because it could be a secret in
//! the wrong place; a value is described by its kind only. Test: `no_value_is_ever_printed`.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// Characters of a key that are printed at most; ours have less than 20.
const KEY_SHOWN_MAX: usize = 40;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: the key (`kek.aws.region`, `read[0].local`), `line 3, column 5`, or empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// Every mistake of one configuration; at least one. Prints one per line, with the file's path when it came from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: Option<PathBuf>,
    problems: Vec<Problem>,
}

impl ConfigError {
    /// All of them, in the order of docs/configuration.md.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(super) const fn new(problems: Vec<Problem>) -> Self {
        Self { file: None, problems }
    }

    pub(super) fn about(path: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(vec![Problem { path: path.into(), what: what.into(), hint: hint.into() }])
    }

    pub(super) fn in_file(self, file: &Path) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            if let Some(file) = &self.file {
                write!(f, "{}: ", file.display())?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl Error for ConfigError {}

/// Collects problems while the walker goes on.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(&self, path: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) {
        self.0.borrow_mut().push(Problem { path: path.into(), what: what.into(), hint: hint.into() });
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A key as it may be printed. SECURITY: what does not look like the name of a key could be a secret (or a forged log
/// line) that lost its key, so it is not shown.
pub(super) fn shown(key: &str) -> &str {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/');
    if !key.is_empty() && key.len() <= KEY_SHOWN_MAX && key.bytes().all(plain) { key } else { "(a key not shown)" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_does_not_look_like_one_is_not_shown() {
        assert_eq!(shown("maxAge"), "maxAge");
        for odd in ["", "a b", "x\n", "é", &"k".repeat(KEY_SHOWN_MAX + 1)] {
            assert_eq!(shown(odd), "(a key not shown)");
        }
    }
}
