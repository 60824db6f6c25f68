//! What the doctor finds: how bad, about what, what is so, and what to do.
//!
//! Guarantees: no finding without a remedy. Refuses to know how findings are printed.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// It works, and will not for ever or not for everybody.
    Warning,
    /// It does not work, or is not safe.
    Error,
}

impl Severity {
    /// The word of the report.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
        }
    }
}

/// One thing that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: stable, kebab-case.
    pub about: &'static str,
    /// What is so.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// Findings about one thing, in the order in which they were made.
#[derive(Debug)]
pub struct Findings {
    about: &'static str,
    list: Vec<Finding>,
}

impl Findings {
    /// None yet.
    #[must_use]
    pub const fn about(about: &'static str) -> Self {
        Self { about, list: Vec::new() }
    }

    /// It does not work, or is not safe.
    pub fn error(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, what, remedy);
    }

    /// It works, and will not for ever or not for everybody.
    pub fn warning(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, what, remedy);
    }

    /// Good to know.
    pub fn note(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Note, what, remedy);
    }

    /// All of them.
    #[must_use]
    pub fn into_list(self) -> Vec<Finding> {
        self.list
    }

    fn add(&mut self, severity: Severity, what: impl Into<String>, remedy: impl Into<String>) {
        self.list.push(Finding { severity, about: self.about, what: what.into(), remedy: remedy.into() });
    }
}
