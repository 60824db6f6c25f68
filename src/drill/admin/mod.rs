//! Powers over a KEK that serving never has: to rotate it, to retire what was before, to undo that. Held by the drill only.
//!
//! `core::port::Kek` can wrap and unwrap and nothing else; this is another trait on purpose, and no module that serves may
//! name it.

#[cfg(feature = "aws")]
pub(crate) mod aws;
pub(crate) mod local;

use std::fmt;
use std::pin::Pin;

/// The answer, some time later.
pub(crate) type AdminFuture<'a> = Pin<Box<dyn Future<Output = Result<String, AdminError>> + 'a>>;

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AdminError {
    /// We may not; somebody else may.
    #[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "nobody denies us a file of the sandbox"))]
    Denied(String),
    /// There is no such thing with this KEK.
    NotPossible(String),
    /// It was tried and failed.
    Failed(String),
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Denied(text) | Self::NotPossible(text) | Self::Failed(text)) = self;
        f.write_str(text)
    }
}

/// See the module. Every `Ok` says what was done, for people.
pub(crate) trait KekAdmin: fmt::Debug {
    /// Makes another version, or another key, the one that wraps.
    fn rotate(&mut self) -> AdminFuture<'_>;

    /// What an operator does in the place of [`KekAdmin::rotate`].
    fn instruction(&self) -> String;

    /// From here on what wrapped before the rotation does not unwrap any more.
    fn retire(&mut self) -> AdminFuture<'_>;

    /// Undoes [`KekAdmin::retire`].
    fn reinstate(&mut self) -> AdminFuture<'_>;

    /// Puts back what has to be as it was, outside of the sandbox; an empty answer when there is nothing.
    fn put_back(&mut self) -> AdminFuture<'_>;
}
