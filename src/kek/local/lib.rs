//! The embedded KEK: a keyring file with versioned AES-256 keys. As safe as that file, and no safer.
//!
//! There is no KMS behind it: whoever reads the file can unwrap every DEK it ever wrapped, and losing it loses them.
//! Guarantees: a file that others can read, or that is not exactly what [`operation`] writes, is refused and not repaired;
//! it is read anew for every wrap and unwrap, so that a promotion or a retirement is noticed without a restart.
//! Refuses to know: configuration, the command line, the clock (time is passed in).
//!
//! The wrapped DEK, 77 bytes, FROZEN for its first byte `0x01`:
//! `0x01` ‖ version uuid (16) ‖ nonce (12) ‖ AES-256-GCM ciphertext of the DEK (32) ‖ tag (16), with the additional data
//! `kube-kms/local/v1` ‖ keyring uuid (16) ‖ version uuid (16) ‖ [`WrapContext::digest`] (32), all of fixed length.
//!
//! [`WrapContext::digest`]: kube_kms_core::context::WrapContext::digest

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

mod blob;
mod error;
mod file;
#[cfg(test)]
mod fixture;
mod json;
mod keyring;
pub mod operation;
mod provider;

pub use error::{KeyringError, Problem, restore};
pub use file::FileProblem;
pub use json::ContentProblem;
pub use keyring::{ChangeProblem, State};
pub use provider::LocalKek;
