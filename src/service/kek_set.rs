//! The KEKs of one configuration: exactly one writes, any number read, and up to three are there for recovery.

use kube_kms_core::context::WrapContext;
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::port::Kek;
use std::sync::Arc;

/// One KEK and the context that its wraps are bound to.
#[derive(Clone, Debug)]
pub struct KekEntry {
    /// The provider.
    pub kek: Arc<dyn Kek>,
    /// The context from the configuration.
    pub context: WrapContext,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct KekSet {
    write: KekEntry,
    read: Vec<KekEntry>,
    recovery: Vec<KekEntry>,
    break_glass: bool,
}

impl KekSet {
    /// The writing KEK and those that may only unwrap.
    #[must_use]
    pub const fn new(write: KekEntry, read: Vec<KekEntry>) -> Self {
        Self { write, read, recovery: Vec::new(), break_glass: false }
    }

    /// The same with recovery KEKs, in the order of the configuration. `break_glass`: they unwrap also when the primary KEK is
    /// dead, denied or not configured any more.
    #[must_use]
    pub fn with_recovery(self, recovery: Vec<KekEntry>, break_glass: bool) -> Self {
        Self { recovery, break_glass, ..self }
    }

    /// Whether a DEK could be opened by a recovery wrap at all: there are recovery KEKs, or glass may be broken.
    #[must_use]
    pub const fn has_recovery(&self) -> bool {
        !self.recovery.is_empty() || self.break_glass
    }

    /// The recovery KEKs, in the order of the configuration.
    #[must_use]
    pub fn recovery(&self) -> &[KekEntry] {
        &self.recovery
    }

    /// Whether recovery KEKs unwrap also when the primary KEK is dead, denied or not configured any more.
    #[must_use]
    pub const fn break_glass(&self) -> bool {
        self.break_glass
    }

    /// Those that may unwrap what a recovery annotation names: the recovery KEKs, and any KEK that reads, because yesterday's
    /// recovery KEK may be today's primary.
    pub fn recovery_readers<'a>(&'a self, kek: &'a KekRef) -> impl Iterator<Item = &'a KekEntry> {
        let all = self.recovery.iter().chain(std::iter::once(&self.write)).chain(&self.read);
        all.filter(move |entry| entry.kek.may_unwrap(kek))
    }

    /// The one that writes.
    #[must_use]
    pub const fn write(&self) -> &KekEntry {
        &self.write
    }

    /// Those that may unwrap what names this KEK, the writing one first. More than one when the same KEK is configured
    /// with two contexts.
    pub fn readers<'a>(&'a self, kek: &'a KekRef) -> impl Iterator<Item = &'a KekEntry> {
        std::iter::once(&self.write).chain(&self.read).filter(move |entry| entry.kek.may_unwrap(kek))
    }

    /// Whether anything that names this KEK may be unwrapped at all.
    #[must_use]
    pub fn may_unwrap(&self, kek: &KekRef) -> bool {
        self.readers(kek).next().is_some()
    }
}
