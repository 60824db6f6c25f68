//! The configuration file: YAML in, [`Config`] out, or every mistake at once.
//!
//! Text becomes a tree (`tree`), the tree is walked section by section (`section`, `lift`, `kek`) and lifted
//! into the model: what is built holds every rule, and nothing is validated later. [`KEYS`] lists every key;
//! docs/configuration.md is made from it. Refuses to know: the socket, the KMS, and, but for
//! [`otlp`()] and [`surroundings`], the environment.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

mod kek;
mod key;
mod lift;
mod model;
mod otlp;
mod problem;
mod reference;
mod section;
pub mod surroundings;
mod tree;

#[cfg(test)]
mod tests;

pub use key::{Change, KEYS, Key, Takes};
pub use model::{
    AwsKekConfig, Config, Enforce, Harden, KekConfig, Listen, LocalKekConfig, Log, LogFormat, LogLevel, RecoveryConfig,
};
pub use otlp::{OtlpConfig, OtlpDestination, otlp};
pub use problem::{ConfigError, Problem};
pub use reference::markdown;

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads and parses the file.
///
/// # Errors
/// Every problem, each with the file's path: it cannot be read, is not UTF-8, and all of [`parse`].
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    read_text(path).and_then(|text| parse(&text)).map_err(|e| e.in_file(path))
}

/// Parses a configuration.
///
/// # Errors
/// Every problem: not YAML (then only that one, with line and column), unknown keys, wrong types, bounds, rules that
/// span keys. Numbers and durations that were understood may be part of one, any other value never.
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let (tree, ambiguous) = tree::read(text)?;
    let lifted = lift::lift(&tree);
    if ambiguous.is_empty() {
        return lifted.map_err(ConfigError::new);
    }
    let mut problems = ambiguous;
    // What a walker says of a value that readers disagree about would only confuse.
    let rest: Vec<Problem> =
        lifted.err().into_iter().flatten().filter(|p| problems.iter().all(|a| a.path != p.path)).collect();
    problems.extend(rest);
    Err(ConfigError::new(problems))
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |e: std::io::Error| ConfigError::about("", format!("cannot be read: {e}"), "");
    let limit = u64::try_from(tree::SIZE_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    // A character cut in two by the limit must not hide that the file is too large.
    if bytes.len() > tree::SIZE_MAX {
        return Err(tree::too_large());
    }
    String::from_utf8(bytes)
        .map_err(|e| ConfigError::about("", format!("is not UTF-8 text (byte {})", e.utf8_error().valid_up_to()), ""))
}
