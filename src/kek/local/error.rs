//! What can be wrong with a keyring: on which file, what it is, and what to do about it.
//!
//! Guarantees: texts may name the path, uuids, and a line and column, and never anything else from the file.

use super::file::FileProblem;
use super::json::ContentProblem;
use super::keyring::ChangeProblem;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::KekRef;
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
    /// It is a keyring, and not the one that it was.
    #[error("it holds keyring {found}, and what this node has written is under keyring {known}")]
    Replaced {
        /// The one that was there before.
        known: KekRef,
        /// The one that is there now.
        found: KekRef,
    },
}

/// A problem, and the file that has it.
#[derive(Debug)]
pub struct KeyringError {
    path: PathBuf,
    problem: Problem,
    /// The keyring that should be there.
    known: Option<KekRef>,
}

impl KeyringError {
    pub(super) fn new(path: &Path, problem: impl Into<Problem>) -> Self {
        Self { path: path.to_owned(), problem: problem.into(), known: None }
    }

    /// The same, where it is known which keyring should be there.
    pub(super) fn knowing(self, known: Option<&KekRef>) -> Self {
        Self { known: known.cloned(), ..self }
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
        match (&self.problem, &self.known) {
            (Problem::Replaced { known, .. }, _) | (Problem::File(FileProblem::Missing), Some(known)) => {
                restore(known, &self.path)
            }
            (Problem::File(problem), _) => problem.hint(&self.path),
            (Problem::Content(problem), _) => problem.hint(&self.path),
            (Problem::Change(problem), _) => problem.hint(&self.path),
        }
    }

    /// The exit status of a command that ends with it: 1 failed, 2 usage, 4 unreachable, 5 refused.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match &self.problem {
            Problem::Change(problem) => problem.exit_status(),
            Problem::File(_) | Problem::Content(_) | Problem::Replaced { .. } => self.reason().class().exit_status(),
        }
    }

    /// A missing or unreadable file may come back (a volume that is not mounted yet); a file that is refused stays so
    /// until somebody changes it.
    pub(super) fn reason(&self) -> Reason {
        match &self.problem {
            Problem::File(FileProblem::Missing | FileProblem::Io { .. }) => Reason::KmsUnreachable,
            Problem::File(_) | Problem::Content(_) => Reason::KekFileRefused,
            Problem::Replaced { .. } => Reason::KeyringReplaced,
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

/// What to do where that keyring should be and is not. SECURITY: never a new one in its place: what is in etcd would be lost.
#[must_use]
pub fn restore(known: &KekRef, path: &Path) -> String {
    format!(
        "restore the backup of keyring {known} at {}; for a new keyring that is meant, or where every copy is lost, see \
         docs/rotation.md, \"A new keyring\"",
        path.display()
    )
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
