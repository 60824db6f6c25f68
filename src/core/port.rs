//! What the rules need from outside, as traits: a KEK, a clock, entropy.
//!
//! A [`Kek`] can wrap a DEK and unwrap one, and nothing else: it cannot create, enable, rotate or delete a key. Its
//! current version is not asked for but learned from a trial wrap and its unwrap, so that a label can never come from
//! another moment than the wrap it labels (ARCHITECTURE.md, decision 2).

use crate::annotation::WrappedDek;
use crate::context::WrapContext;
use crate::dek::DekBytes;
use crate::fault::Fault;
use crate::kek_ref::{KekKind, KekRef, KekVersion};
use crate::uid::Uid;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

/// The answer of a KEK provider, some time later.
pub type KekFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send + 'a>>;

/// What a wrap returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The DEK under the KEK.
    pub dek: WrappedDek,
    /// The KEK that wrapped it, from the provider's own answer: never an alias, never the configured string.
    pub kek: KekRef,
}

/// What an unwrap returned.
#[derive(Debug)]
pub struct Unwrapped {
    /// The DEK.
    pub dek: DekBytes,
    /// The KEK version that the blob was under, from the same answer.
    pub version: KekVersion,
}

/// One call to a KEK provider: how long it may take, and for whom it is made.
#[derive(Clone, Debug)]
pub struct KekCall {
    /// The provider answers within this time, with `deadline` when its KMS has not.
    pub timeout: Duration,
    /// The request that needs it, when one does.
    pub uid: Option<Uid>,
}

/// A key-encryption key in an external KMS.
///
/// Every answer is classified by [`crate::fault::Class`]: transient, denied, dead, or about this blob.
pub trait Kek: Send + Sync + fmt::Debug {
    /// The kind of provider.
    fn kind(&self) -> KekKind;

    /// Whether this configuration allows it to unwrap what names that KEK. Answered from memory.
    fn may_unwrap(&self, kek: &KekRef) -> bool;

    /// Wraps a DEK under the current version, bound to the context.
    ///
    /// # Errors
    /// Of every class but `OpenFailed`; `deadline` after `call.timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the call; nothing is left behind.
    fn wrap_dek<'a>(&'a self, dek: &'a DekBytes, context: &'a WrapContext, call: &'a KekCall)
    -> KekFuture<'a, Wrapped>;

    /// Unwraps a DEK that was wrapped under that KEK (any version of it) and this context.
    ///
    /// # Errors
    /// `wrapped-dek-rejected` when the blob is damaged, under another KEK, or bound to another context; else as above.
    ///
    /// # Cancel safety
    /// As [`Kek::wrap_dek`].
    fn unwrap_dek<'a>(
        &'a self,
        kek: &'a KekRef,
        dek: &'a WrappedDek,
        context: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped>;

    /// When the provider will delete the key, as a time since the Unix epoch, where it has said so. Answered from memory.
    fn deletion_date(&self) -> Option<Duration> {
        None
    }

    /// Permissions that are not granted and what is lost by it, a clock that differs from the KMS's. For `kube-kms check`:
    /// nothing on the way of a request depends on it.
    ///
    /// # Errors
    /// Those of the provider, where they say nothing about a permission or the clock.
    ///
    /// # Cancel safety
    /// As [`Kek::wrap_dek`].
    fn notices<'a>(&'a self, _call: &'a KekCall) -> KekFuture<'a, Vec<Notice>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// What an operator should know of a KEK beyond whether it wraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What is so.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Nanoseconds since an arbitrary moment; never goes back, whatever happens to the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// The time from an earlier moment to this one; zero when it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A monotonic clock.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> Moment;
}

/// Randomness fit for keys and nonces.
pub trait Entropy: Send + Sync + fmt::Debug {
    /// Fills the bytes, all of them.
    ///
    /// # Errors
    /// `entropy` when the source fails; the bytes must not be used then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault>;
}
