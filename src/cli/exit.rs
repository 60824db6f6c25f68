//! How a command ends: exit status, and an error in three parts: what failed on what, why, what to do.

use kube_kms_core::fault::Fault;
use kube_kms_core::printable::printable;
use std::error::Error;
use std::fmt::Write as _;

/// Exit status of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration is wrong.
    Configuration = 3,
    /// Somebody cannot be reached.
    Unreachable = 4,
    /// Somebody refuses, or we refuse to do harm.
    Refused = 5,
    /// It ran, and what it verified does not hold.
    VerificationFailed = 6,
}

impl Exit {
    /// The exit status that goes with a fault.
    #[must_use]
    pub const fn of(fault: &Fault) -> Self {
        match fault.class().exit_status() {
            0 => Self::Done,
            2 => Self::Usage,
            3 => Self::Configuration,
            4 => Self::Unreachable,
            5 => Self::Refused,
            6 => Self::VerificationFailed,
            _ => Self::Failed,
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    what: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// `what` says what failed on what, in a lower-case sentence without a full stop.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), causes: Vec::new(), hint: None }
    }

    /// Adds an error and all its sources.
    #[must_use]
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Adds a cause in words.
    #[must_use]
    pub fn cause(mut self, text: impl Into<String>) -> Self {
        self.causes.push(text.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }

    /// A failed call to a KEK or a file, with its own exit status.
    #[must_use]
    pub fn of_fault(what: impl Into<String>, fault: &Fault) -> Self {
        let failure = Self::new(Exit::of(fault), what).cause(fault.to_string());
        let causes = fault.causes();
        if causes.is_empty() { failure } else { failure.cause(causes) }
    }

    /// The three parts, for stderr.
    #[must_use]
    pub fn render(&self) -> String {
        // One line each, whatever a plugin, a KMS or etcd said.
        let mut text = format!("error: {}\n", printable(self.what.as_bytes()));
        for cause in &self.causes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "cause: {}", printable(cause.as_bytes()));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
        text
    }
}
