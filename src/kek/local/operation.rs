//! What an operator does with a keyring: `init`, `list`, `add`, `promote`, `retire`, `reinstate`.
//!
//! Guarantees: a change is all or nothing and on disk when it returns; two changes never mix (a lock beside the file, never
//! waited for); no material is ever thrown away; what is about to be written is read back first. Nothing is printed, and
//! the time is passed in. A running plugin notices changes at its next wrap or unwrap.

use super::error::{KeyringError, Problem};
use super::file::{self, FileProblem};
use super::json::{self, ContentProblem};
use super::keyring::{ChangeProblem, Keyring, State, Version};
use crate::core::kek_ref::KekRef;
use crate::core::key_id::KeyId;
use crate::core::port::Entropy;
use crate::durable::{self, Existing};
use std::io;
use std::path::Path;
use std::time::SystemTime;
use uuid::Uuid;

/// A keyring that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The keyring's uuid, which is the KEK's identity.
    pub keyring: Uuid,
    /// Its first version, which is current.
    pub version: Uuid,
}

/// A version that took the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// Was current; still unwraps.
    pub from: Uuid,
    /// Wraps from now on.
    pub to: Uuid,
}

/// What is public of a keyring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The KEK, as it stands in annotations: `local:` and the keyring's uuid.
    pub kek: KekRef,
    /// The keyring's uuid.
    pub keyring: Uuid,
    /// In the order in which they were made.
    pub versions: Vec<Listed>,
}

/// What is public of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its uuid.
    pub version: Uuid,
    /// When it was made, to the second.
    pub created: SystemTime,
    /// Whether it unwraps.
    pub state: State,
    /// Whether it is the one that wraps.
    pub current: bool,
    /// What kube-apiserver gets to see while it is current.
    pub key_id: KeyId,
}

/// Makes a keyring with one version, and the missing directories above it with mode 0700.
///
/// # Errors
/// Refused when anything is at `path`; failed when the disk, the clock or the randomness fails.
pub fn init(path: &Path, now: SystemTime, entropy: &dyn Entropy) -> Result<Created, KeyringError> {
    let run = || {
        let keyring = Keyring::new(Version::generate(writable(now)?, entropy)?);
        file::create_directories(path)?;
        write(path, &keyring, Existing::Refuse)?;
        Ok(Created { keyring: keyring.id(), version: keyring.current_id() })
    };
    run().map_err(|problem: Problem| KeyringError::new(path, problem))
}

/// Everything about a keyring but its keys; each `key_id` as it would be under this `epoch`.
///
/// # Errors
/// Unreachable when the file cannot be read, refused when it must not be used.
pub fn list(path: &Path, epoch: u64) -> Result<Listing, KeyringError> {
    let keyring = read(path)?;
    let invalid = |_| KeyringError::new(path, ContentProblem::IdInvalid("id"));
    let mut versions = Vec::with_capacity(keyring.versions().len());
    for version in keyring.versions() {
        versions.push(Listed {
            version: version.id,
            created: version.created,
            state: version.state,
            current: version.id == keyring.current_id(),
            key_id: KeyId::derive(&keyring.kek_version(version.id).map_err(invalid)?, epoch),
        });
    }
    Ok(Listing { kek: keyring.kek().map_err(invalid)?, keyring: keyring.id(), versions })
}

/// Makes another version, enabled and not current: give it time to reach every replica, then [`promote`] it.
///
/// # Errors
/// As [`list`]; refused when another process is changing the keyring or it is full; failed when the disk, the clock or
/// the randomness fails.
pub fn add(path: &Path, now: SystemTime, entropy: &dyn Entropy) -> Result<Uuid, KeyringError> {
    change(path, |keyring| {
        let version = Version::generate(writable(now)?, entropy)?;
        let id = version.id;
        keyring.add(version)?;
        Ok(id)
    })
}

/// Makes a version the one that wraps; the one before still unwraps. `version` is its uuid or the first hex digits of it.
///
/// Going back to a version that was current before needs a new `epoch` in the configuration: a plugin never reports a
/// key_id again that it has left.
///
/// # Errors
/// As [`list`]; refused when it is retired or current already or another process is changing the keyring; usage when
/// `version` names none or several; failed when the disk fails.
pub fn promote(path: &Path, version: &str) -> Result<Promoted, KeyringError> {
    change(path, |keyring| {
        let (from, to) = (keyring.current_id(), keyring.resolve(version)?);
        keyring.promote(to)?;
        Ok(Promoted { from, to })
    })
}

/// Stops a version from unwrapping: with `kek-disabled` from now on, although its material is kept.
///
/// # Errors
/// As [`promote`]; refused when it is current or retired already.
pub fn retire(path: &Path, version: &str) -> Result<Uuid, KeyringError> {
    change(path, |keyring| {
        let id = keyring.resolve(version)?;
        keyring.retire(id)?;
        Ok(id)
    })
}

/// Undoes [`retire`]; does not make the version current.
///
/// # Errors
/// As [`promote`]; refused when it is not retired.
pub fn reinstate(path: &Path, version: &str) -> Result<Uuid, KeyringError> {
    change(path, |keyring| {
        let id = keyring.resolve(version)?;
        keyring.reinstate(id)?;
        Ok(id)
    })
}

/// The keyring in the file, as it is now.
pub(super) fn read(path: &Path) -> Result<Keyring, KeyringError> {
    let content = file::read(path).map_err(|problem| KeyringError::new(path, problem))?;
    json::parse(&content).map_err(|problem| KeyringError::new(path, problem))
}

/// Read, edit, write, under the lock.
fn change<T>(path: &Path, edit: impl FnOnce(&mut Keyring) -> Result<T, Problem>) -> Result<T, KeyringError> {
    // Before the lock file is made: nothing is left beside a path that is not a keyring (`passwd.lock` locks logins).
    read(path)?;
    let at = |problem: Problem| KeyringError::new(path, problem);
    let _held = file::try_lock(path).map_err(|p| at(p.into()))?.ok_or_else(|| at(ChangeProblem::Held.into()))?;
    // INVARIANT: read again, under the lock: what is edited is what the last change left.
    let mut keyring = read(path)?;
    let answer = edit(&mut keyring).map_err(at)?;
    write(path, &keyring, Existing::Replace).map_err(at)?;
    Ok(answer)
}

fn write(path: &Path, keyring: &Keyring, existing: Existing) -> Result<(), Problem> {
    let content = json::render(keyring).ok_or(ChangeProblem::Clock)?;
    // INVARIANT: a keyring that can be read is only ever replaced by one that can be read.
    json::parse(&content)?;
    durable::write(path, &content, existing).map_err(|source| match (existing, source.kind()) {
        (Existing::Refuse, io::ErrorKind::AlreadyExists) => ChangeProblem::Exists.into(),
        _ => FileProblem::Io { doing: "write", source }.into(),
    })
}

fn writable(now: SystemTime) -> Result<SystemTime, ChangeProblem> {
    if json::is_writable_time(now) { Ok(now) } else { Err(ChangeProblem::Clock) }
}
