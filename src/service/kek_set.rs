//! The KEKs of one configuration: exactly one writes, any number read.

use crate::core::context::WrapContext;
use crate::core::kek_ref::KekRef;
use crate::core::port::Kek;
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
}

impl KekSet {
    /// The writing KEK and those that may only unwrap.
    #[must_use]
    pub const fn new(write: KekEntry, read: Vec<KekEntry>) -> Self {
        Self { write, read }
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
