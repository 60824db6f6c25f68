//! What can be wrong with a keyring: on which file, what it is, and what to do about it.
//!
//! Guarantees: texts may name the path, uuids, and a line and column, and never anything else from the file.

use super::file::FileProblem;
use super::json::ContentProblem;
use super::keyring::ChangeProblem;
use crate::core::fault::{Fault, Reason};
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read, or must not be trusted.
    #[error(transparent)]
    File(#[from] FileProblem),
    /// What the file says is not a keyring.
    #[error(transparent)]
    Content(#[from] ContentProblem),
    /// The keyring is fine, and the change that was asked for is refused.
    #[error(transparent)]
    Change(#[from] ChangeProblem),
}

/// A problem, and the file that has it.
#[derive(Debug)]
pub struct KeyringError {
    path: PathBuf,
    problem: Problem,
}

impl KeyringError {
    pub(super) fn new(path: &Path, problem: impl Into<Problem>) -> Self {
        Self { path: path.to_owned(), problem: problem.into() }
    }

    /// The keyring file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong.
    #[must_use]
    pub const fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What to do about it, for a person.
    #[must_use]
    pub fn hint(&self) -> String {
        match &self.problem {
            Problem::File(problem) => problem.hint(&self.path),
            Problem::Content(problem) => problem.hint(&self.path),
            Problem::Change(problem) => problem.hint(&self.path),
        }
    }

    /// The exit status of a command that ends with it: 1 failed, 2 usage, 4 unreachable, 5 refused.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match &self.problem {
            Problem::Change(problem) => problem.exit_status(),
            Problem::File(_) | Problem::Content(_) => self.reason().class().exit_status(),
        }
    }

    /// A missing or unreadable file may come back (a volume that is not mounted yet); a file that is refused stays so
    /// until somebody changes it.
    pub(super) fn reason(&self) -> Reason {
        match &self.problem {
            Problem::File(FileProblem::Missing | FileProblem::Io { .. }) => Reason::KmsUnreachable,
            Problem::File(_) | Problem::Content(_) => Reason::KekFileRefused,
            // Reading a keyring changes nothing, so the provider never meets one of these.
            Problem::Change(_) => Reason::Invariant,
        }
    }

    /// The fault, with all of this as its cause for the log.
    pub(super) fn to_fault(&self) -> Fault {
        let cause = self.source().map_or_else(String::new, |source| format!(": {source}"));
        Fault::caused_by(self.reason(), format!("{self}{cause}; {}", self.hint()))
    }
}

impl fmt::Display for KeyringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keyring {}: {}", self.path.display(), self.problem)
    }
}

impl Error for KeyringError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}
