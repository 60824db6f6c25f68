//! The list of objects that `scan` is asked for, printed while it reads: nothing is kept.
//!
//! Guarantees: keys come in order and each once, also when etcd compacts and a resource is read again. Only names are
//! printed, escaped where a terminal would obey them.

use crate::scan::Arguments;
use kube_kms_cli::output::{self, Format};
use kube_kms_core::printable::printable;
use kube_kms_etcd::record::Record;
use kube_kms_etcd::resource::Directory;
use kube_kms_etcd::scan::{Progress, Sink};
use kube_kms_etcd::value::Value;
use kube_kms_etcd::verdict::is_named;
use serde::Serialize;
use std::borrow::Cow;

/// Which objects.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Under this key_id.
    KeyId(String),
    /// Whose DEK this KEK can unwrap.
    Kek(String),
    /// In clear.
    Unencrypted,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Listing {
    wanted: Wanted,
    format: Format,
    prefix: Vec<u8>,
    last: Vec<u8>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    key: Cow<'a, str>,
    /// The key itself, when it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    resource: String,
    mod_revision: i64,
}

impl Wanted {
    pub(super) fn of(arguments: &Arguments) -> Option<Self> {
        let key_id = arguments.key_id.clone().map(Self::KeyId);
        let kek = arguments.kek.clone().map(Self::Kek);
        key_id.or(kek).or_else(|| arguments.unencrypted.then_some(Self::Unencrypted))
    }

    fn has(&self, value: &[u8]) -> bool {
        match (self, Value::parse(value)) {
            (Self::KeyId(name), Value::KmsV2(object)) => is_named(object.key_id, name),
            (Self::Kek(name), Value::KmsV2(object)) => {
                object.kek() == Some(name) || object.recovery_keks().contains(&name.as_str())
            }
            (Self::Unencrypted, Value::Other(form)) => form.is_clear(),
            _ => false,
        }
    }
}

impl Listing {
    pub(super) fn new(wanted: Wanted, format: Format, prefix: &[u8]) -> Self {
        Self { wanted, format, prefix: prefix.to_vec(), last: Vec::new() }
    }

    /// Prints the key of this record when it is wanted; whether it was.
    pub(super) fn show(&self, record: &Record<'_>) -> bool {
        if !self.wanted.has(record.value) {
            return false;
        }
        let key = printable(record.key);
        match self.format {
            Format::Text => output::line(key),
            Format::Json => {
                let line = Line {
                    key,
                    key_hex: std::str::from_utf8(record.key).is_err().then(|| hex::encode(record.key)),
                    resource: Directory::of(record.key, &self.prefix).resource(),
                    mod_revision: record.mod_revision,
                };
                output::json_line(&line);
            }
        }
        true
    }
}

impl Sink for Listing {
    fn record(&mut self, record: &Record<'_>) {
        // What is read again was printed already.
        if record.key > self.last.as_slice() && self.show(record) {
            self.last.clear();
            self.last.extend_from_slice(record.key);
        }
    }

    fn forget(&mut self) {}

    fn kept(&mut self) {}

    fn progress(&mut self, _: Progress) {}
}
