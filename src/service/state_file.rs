//! `stateDir/state.json`: what this node has reported, so that it never goes back after a restart. Nothing secret.
//!
//! Guarantees: a help, never a need. Lost, it costs the memory of what was reported; damaged, it is set aside with a
//! warning and serving goes on. Written before a new key_id is reported, so a crash cannot forget one.

use crate::core::kek_ref::KekRef;
use crate::core::key_id::KeyId;
use crate::durable::{self, Existing};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The file's name in `stateDir`.
pub const NAME: &str = "state.json";
/// Key_ids that were left and are remembered: at one rotation a day, nearly three years.
const LEFT_MAX: usize = 1000;
const VERSION: u32 = 1;
/// A state file is a few hundred bytes; anything larger than this is not one.
const SIZE_MAX: u64 = 1024 * 1024;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The key_id reported last.
    pub key_id: Option<KeyId>,
    /// Those reported before it, oldest first.
    pub left: Vec<KeyId>,
    /// Hex digest of the wrap context that was used last.
    pub context_digest: Option<String>,
    /// What was written under last.
    pub under: Option<Under>,
}

/// A KEK that this node has written under, and the `epoch` of the configuration at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Under {
    /// The KEK.
    pub kek: KekRef,
    /// The epoch.
    pub epoch: u64,
}

impl Remembered {
    /// After this key_id and context have become the reported ones.
    #[must_use]
    pub fn after(&self, key_id: &KeyId, context_digest: String) -> Self {
        let mut left = self.left.clone();
        if let Some(old) = self.key_id.as_ref().filter(|old| *old != key_id) {
            left.retain(|l| l != old);
            left.push(old.clone());
        }
        left.drain(..left.len().saturating_sub(LEFT_MAX));
        Self { key_id: Some(key_id.clone()), left, context_digest: Some(context_digest), under: self.under.clone() }
    }

    /// After this KEK has become the one that writes.
    #[must_use]
    pub fn under(self, kek: &KekRef, epoch: u64) -> Self {
        Self { under: Some(Under { kek: kek.clone(), epoch }), ..self }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    version: u32,
    key_id: Option<String>,
    #[serde(default)]
    left: Vec<String>,
    context_digest: Option<String>,
    #[serde(default)]
    kek: Option<String>,
    #[serde(default)]
    epoch: u64,
}

/// The file, by its place.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// In this directory, which is created when the file is first written.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME) }
    }

    /// Reads it. A file that cannot be read or understood is set aside, and nothing is remembered.
    #[must_use]
    pub fn load(&self) -> Remembered {
        match self.read() {
            Ok(Some(remembered)) => remembered,
            Ok(None) => Remembered::default(),
            Err(cause) => {
                let aside = self.path.with_extension(format!("json.damaged.{}", std::process::id()));
                let moved = std::fs::rename(&self.path, &aside);
                tracing::warn!(
                    target: "kube_kms::state", path = %self.path.display(), set_aside = %aside.display(), error = %cause,
                    moved = moved.is_ok(),
                    "the state file cannot be used and was set aside; this node has forgotten which key_ids it reported"
                );
                Remembered::default()
            }
        }
    }

    /// Reads it and leaves it as it is.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn peek(&self) -> io::Result<Remembered> {
        self.read().map(Option::unwrap_or_default)
    }

    fn read(&self) -> io::Result<Option<Remembered>> {
        let content = match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
            Ok(meta) if meta.len() > SIZE_MAX => return Err(io::Error::other("larger than 1 MiB")),
            Ok(_) => std::fs::read(&self.path)?,
        };
        let document: Document = serde_json::from_slice(&content).map_err(io::Error::other)?;
        if document.version != VERSION {
            return Err(io::Error::other(format!(
                "version {}, this kube-kms knows version {VERSION}",
                document.version
            )));
        }
        let key_id = document.key_id.map(KeyId::parse).transpose().map_err(io::Error::other)?;
        let left: Result<Vec<_>, _> = document.left.into_iter().map(KeyId::parse).collect();
        let kek = document.kek.map(|kek| KekRef::parse(kek.as_bytes())).transpose().map_err(io::Error::other)?;
        let left = left.map_err(io::Error::other)?;
        let under = kek.map(|kek| Under { kek, epoch: document.epoch });
        Ok(Some(Remembered { key_id, left, context_digest: document.context_digest, under }))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// Those of the file system; what was there is then still there.
    pub fn save(&self, remembered: &Remembered) -> io::Result<()> {
        let document = Document {
            version: VERSION,
            key_id: remembered.key_id.as_ref().map(|k| k.as_str().to_owned()),
            left: remembered.left.iter().map(|k| k.as_str().to_owned()).collect(),
            context_digest: remembered.context_digest.clone(),
            kek: remembered.under.as_ref().map(|under| under.kek.as_str().to_owned()),
            epoch: remembered.under.as_ref().map_or(0, |under| under.epoch),
        };
        let mut content = serde_json::to_vec_pretty(&document).map_err(io::Error::other)?;
        content.push(b'\n');
        self.prepare_directory()?;
        durable::write(&self.path, &content, Existing::Replace)
    }

    /// Makes its directory when it is missing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare_directory(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), std::fs::create_dir_all)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kek_ref::KekKind;

    fn id(name: &str) -> KeyId {
        KeyId::parse(name.to_owned()).unwrap()
    }

    fn kek(name: &str) -> KekRef {
        KekRef::new(KekKind::LOCAL, name).unwrap()
    }

    #[test]
    fn what_was_reported_is_remembered_in_order_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("new"));
        assert_eq!(file.load(), Remembered::default());
        let mut remembered = file.load();
        for name in ["A", "A", "B", "C"] {
            remembered = remembered.after(&id(name), "00".to_owned()).under(&kek(name), 7);
            file.save(&remembered).unwrap();
        }
        let loaded = file.load();
        assert_eq!((loaded.key_id.clone(), loaded.left.clone()), (Some(id("C")), vec![id("A"), id("B")]));
        assert_eq!(
            (loaded.under.clone(), loaded.context_digest.as_deref()),
            (Some(Under { kek: kek("C"), epoch: 7 }), Some("00"))
        );
        assert_eq!(loaded, remembered);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_nothing_is_lost() {
        for content in [
            "",
            "{",
            "[]",
            "{\"version\":2,\"keyId\":\"A\"}",
            "{\"version\":1,\"keyId\":\"\"}",
            "{\"version\":1,\"kek\":\"x\"}",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let file = StateFile::new(dir.path());
            durable::write(file.path(), content.as_bytes(), Existing::Replace).unwrap();
            assert_eq!(file.load(), Remembered::default(), "{content}");
            assert!(!file.path().exists());
            let aside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
            assert_eq!(aside.len(), 1);
            assert_eq!(std::fs::read_to_string(&aside[0]).unwrap(), content);
        }
    }

    #[test]
    fn what_is_not_there_is_no_error_and_what_cannot_be_a_state_file_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(StateFile::new(dir.path()).peek().unwrap(), Remembered::default());
        let remembered = Remembered::default().after(&id("A"), "00".to_owned());
        StateFile::new(dir.path()).save(&remembered).unwrap();
        assert_eq!(StateFile::new(dir.path()).peek().unwrap(), remembered);
        // The directory is a file.
        StateFile::new(&dir.path().join(NAME)).peek().unwrap_err();
        let mut padded = std::fs::read(dir.path().join(NAME)).unwrap();
        for (bytes, taken) in [(SIZE_MAX, true), (SIZE_MAX + 1, false)] {
            padded.resize(usize::try_from(bytes).unwrap(), b' ');
            durable::write(&dir.path().join(NAME), &padded, Existing::Replace).unwrap();
            assert_eq!(StateFile::new(dir.path()).peek().is_ok(), taken, "{bytes}");
        }
    }
}
