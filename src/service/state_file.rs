//! `stateDir/state.json`: what this node has reported, so that it never goes back after a restart. Nothing secret.
//!
//! Guarantees: a help, never a need. Lost, it costs the memory of what was reported; damaged, or such that somebody else could
//! have written it, it is set aside with a warning and serving goes on. Reading it waits for nothing but the disk. SPEC:
//! open(2), fstat(2).

use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use kube_kms_os::durable::{self, Existing};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
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

    /// With what was remembered before it, and came to light only now.
    #[must_use]
    pub fn and_earlier(&self, earlier: Self) -> Self {
        let Some(key_id) = &self.key_id else { return earlier };
        let mut left: Vec<KeyId> = earlier.left;
        for id in earlier.key_id.iter().chain(&self.left) {
            left.retain(|l| l != id);
            left.push(id.clone());
        }
        left.retain(|l| l != key_id);
        left.drain(..left.len().saturating_sub(LEFT_MAX));
        Self { left, ..self.clone() }
    }
}

/// Why what is there is not obeyed.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is no state file.
    #[error("{0}")]
    Damaged(#[from] io::Error),
    /// A link, a pipe, a directory, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// Somebody else could have written the file.
    #[error("others could have written it: its owner is user {owner} and its mode {mode:04o}")]
    File {
        /// Uid of its owner.
        owner: u32,
        /// Permission bits.
        mode: u32,
    },
    /// Somebody else could have put the file there.
    #[error("others can write to its directory: its owner is user {owner} and its mode {mode:04o}")]
    Directory {
        /// Uid of its owner.
        owner: u32,
        /// Permission bits.
        mode: u32,
        /// Where it is.
        path: PathBuf,
    },
}

impl Unusable {
    /// What helps, in one line.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Damaged(_) => "nothing, when the KMS answers: a new one is written".to_owned(),
            Self::NotAFile | Self::File { .. } => {
                "a new one is written; find out who made that one, and who may write to `stateDir`".to_owned()
            }
            Self::Directory { path, .. } => {
                let (euid, path) = (rustix::process::geteuid().as_raw(), path.display());
                format!("chown {euid} {path} && chmod go-w {path}")
            }
        }
    }
}

/// SECURITY: whoever could write it decides which key_ids this node refuses.
fn is_ours(stat: &Stat) -> bool {
    let may_be_written = stat.st_mode & 0o002 != 0
        || (stat.st_mode & 0o020 != 0 && ![0, rustix::process::getegid().as_raw()].contains(&stat.st_gid));
    [0, rustix::process::geteuid().as_raw()].contains(&stat.st_uid) && !may_be_written
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

    /// Reads it. What cannot be read, understood or trusted is set aside, and nothing is remembered.
    #[must_use]
    pub fn load(&self) -> Remembered {
        match self.read() {
            Ok(Some(remembered)) => remembered,
            Ok(None) => Remembered::default(),
            Err(cause) => {
                let aside = self.path.with_extension(format!("json.damaged.{}", std::process::id()));
                // Where that cannot be done, the next write replaces it.
                let moved = std::fs::rename(&self.path, &aside).is_ok();
                tracing::warn!(
                    target: "kube_kms::state", path = %self.path.display(), set_aside = %aside.display(), error = %cause,
                    moved, remedy = cause.remedy(),
                    "the state file cannot be used and was set aside; this node has forgotten which key_ids it reported"
                );
                Remembered::default()
            }
        }
    }

    /// Reads it and leaves it as it is.
    ///
    /// # Errors
    /// When it cannot be read, understood or trusted.
    pub fn peek(&self) -> Result<Remembered, Unusable> {
        self.read().map(Option::unwrap_or_default)
    }

    /// The directory, when it is there.
    fn directory(&self) -> Result<Option<OwnedFd>, Unusable> {
        let path = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match openat(CWD, path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Unusable::Damaged(errno.into())),
        };
        let stat = fstat(&directory).map_err(io::Error::from)?;
        // With the sticky bit others cannot exchange what is ours, and what is not ours is seen by the file.
        let sticky = stat.st_mode & 0o1000 != 0 && [0, rustix::process::geteuid().as_raw()].contains(&stat.st_uid);
        if !sticky && !is_ours(&stat) {
            let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
            return Err(Unusable::Directory { owner, mode, path: path.to_owned() });
        }
        Ok(Some(directory))
    }

    fn content(&self) -> Result<Option<Vec<u8>>, Unusable> {
        let Some(directory) = self.directory()? else { return Ok(None) };
        // SECURITY: NOFOLLOW, so that a link cannot lead to another file; NONBLOCK, so that a pipe cannot stop us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match openat(&directory, NAME, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => return Err(Unusable::NotAFile),
            Err(errno) => return Err(Unusable::Damaged(errno.into())),
        };
        let stat = fstat(&fd).map_err(io::Error::from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Unusable::NotAFile);
        }
        if !is_ours(&stat) {
            return Err(Unusable::File { owner: stat.st_uid, mode: stat.st_mode & 0o7777 });
        }
        let mut content = Vec::new();
        File::from(fd).take(SIZE_MAX.saturating_add(1)).read_to_end(&mut content)?;
        if u64::try_from(content.len()).is_ok_and(|size| size > SIZE_MAX) {
            return Err(io::Error::other("larger than 1 MiB").into());
        }
        Ok(Some(content))
    }

    fn read(&self) -> Result<Option<Remembered>, Unusable> {
        let Some(content) = self.content()? else { return Ok(None) };
        let document: Document = serde_json::from_slice(&content).map_err(io::Error::other)?;
        if document.version != VERSION {
            return Err(io::Error::other(format!(
                "version {}, this kube-kms knows version {VERSION}",
                document.version
            ))
            .into());
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
    use kube_kms_core::kek_ref::KekKind;

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

    /// Remembers one key_id, in a directory of its own.
    fn written() -> (tempfile::TempDir, StateFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(&dir.path().join("state"));
        file.save(&Remembered::default().after(&id("A"), "00".to_owned())).unwrap();
        (dir, file)
    }

    #[test]
    fn what_is_not_a_regular_file_is_not_waited_for_or_followed() {
        type Make = fn(&Path);
        let pipe: Make =
            |path| rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let link: Make = |path| {
            let elsewhere = path.with_file_name("elsewhere");
            std::os::unix::fs::symlink(&elsewhere, path).unwrap();
            durable::write(&elsewhere, br#"{"version":1,"keyId":"X"}"#, Existing::Replace).unwrap();
        };
        let directory: Make = |path| std::fs::create_dir(path).unwrap();
        for make in [pipe, link, directory] {
            let (_dir, file) = written();
            std::fs::remove_file(file.path()).unwrap();
            make(file.path());
            let (tell, told) = std::sync::mpsc::channel();
            let of_another_thread = file.clone();
            std::thread::spawn(move || tell.send(of_another_thread.load()));
            let loaded = told.recv_timeout(std::time::Duration::from_secs(20)).expect("it does not wait for a writer");
            assert_eq!(loaded, Remembered::default());
        }
    }

    #[test]
    fn what_others_could_have_written_is_not_obeyed() {
        use std::os::unix::fs::PermissionsExt as _;
        for (of_file, of_directory, obeyed) in [
            (0o600, 0o700, true),
            (0o644, 0o755, true),
            (0o600, 0o1777, true),
            (0o666, 0o700, false),
            (0o602, 0o700, false),
            (0o600, 0o777, false),
            (0o600, 0o702, false),
        ] {
            let (_dir, file) = written();
            let directory = file.path().parent().unwrap();
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(of_file)).unwrap();
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(of_directory)).unwrap();
            assert_eq!(file.load().key_id.is_some(), obeyed, "{of_file:o} in {of_directory:o}");
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

    /// A group is trusted to write when it is root's or ours; all others never are.
    #[test]
    fn what_another_user_or_group_may_write_is_not_ours() {
        let mut stat = rustix::fs::stat("/").unwrap();
        let (euid, egid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let stranger = 4242;
        for (uid, gid, mode, ours) in [
            (euid, egid, 0o700, true),
            (0, 0, 0o770, true),
            (euid, egid, 0o770, true),
            (euid, stranger, 0o750, true),
            (euid, stranger, 0o770, false),
            (euid, egid, 0o702, false),
            (stranger, egid, 0o700, false),
        ] {
            (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, mode);
            assert_eq!(is_ours(&stat), ours, "{uid} {gid} {mode:o}");
        }
    }
}
