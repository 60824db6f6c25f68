//! What an operator does with a keyring: `init`, `list`, `add`, `promote`, `retire`, `reinstate`.
//!
//! Guarantees: a change is all or nothing and on disk when it returns; two changes never mix (a lock beside the file, never
//! waited for); no material is ever thrown away; what is about to be written is read back first. Nothing is printed, and
//! the time is passed in. A running plugin notices changes at its next wrap or unwrap.

use super::error::{KeyringError, Problem};
use super::file::{self, FileProblem};
use super::json::{self, ContentProblem};
use super::keyring::{ChangeProblem, Keyring, State, Version};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::Entropy;
use kube_kms_os::durable::{self, Existing};
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

/// A promotion that has not been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// Would wrap.
    pub to: Uuid,
    /// The key_id that plugins would report.
    pub key_id: KeyId,
    /// The version was made before the one that is current: it may have been current itself.
    pub goes_back: bool,
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
/// key_id again that it has left. [`foresee`] tells.
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

/// What [`promote`] would do; changes nothing. `key_id` as it would be under this `epoch`.
///
/// # Errors
/// As [`promote`].
pub fn foresee(path: &Path, version: &str, epoch: u64) -> Result<Promotion, KeyringError> {
    let at = |problem: Problem| KeyringError::new(path, problem);
    let mut keyring = read(path)?;
    let to = keyring.resolve(version).map_err(|p| at(p.into()))?;
    let place = |id| keyring.versions().iter().position(|version| version.id == id);
    let goes_back = place(to) < place(keyring.current_id());
    keyring.promote(to).map_err(|p| at(p.into()))?;
    let invalid = |_| at(ContentProblem::IdInvalid("id").into());
    let key_id = KeyId::derive(&keyring.kek_version(to).map_err(invalid)?, epoch);
    Ok(Promotion { to, key_id, goes_back })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{
        Counting, Dry, KEYRING, OTHER, Stuck, VERSION, assert_no_canary, file_of, file_with, known_file, moment, put,
        set_mode,
    };
    use kube_kms_core::fault::Reason;
    use kube_kms_os::OsEntropy;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    fn change_problem(error: &KeyringError) -> &ChangeProblem {
        assert_no_canary(&format!("{error} {error:?} {}", error.hint()));
        assert!(!error.hint().is_empty());
        match error.problem() {
            Problem::Change(problem) => problem,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn init_makes_a_private_keyring_and_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/keyring.json");
        let made = init(&path, moment(1_000_000_000), &OsEntropy).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(dir.path().join("new")).unwrap().permissions().mode() & 0o777, 0o700);
        let error = init(&path, moment(0), &OsEntropy).unwrap_err();
        assert!(matches!(change_problem(&error), ChangeProblem::Exists));
        assert_eq!((error.exit_status(), error.path()), (5, path.as_path()));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        let listing = list(&path, 0).unwrap();
        assert_eq!(listing.keyring, made.keyring);
        assert_eq!(listing.kek.as_str(), format!("local:{}", made.keyring));
        assert_eq!(listing.versions.len(), 1);
        let only = &listing.versions[0];
        assert_eq!(
            (only.version, only.created, only.state, only.current),
            (made.version, moment(1_000_000_000), State::Enabled, true)
        );
        // A link that leads nowhere is something, too.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert!(matches!(change_problem(&init(&link, moment(0), &OsEntropy).unwrap_err()), ChangeProblem::Exists));
    }

    #[test]
    fn the_key_id_is_that_of_the_vectors() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/format1.json")).unwrap();
        let all = vectors["key_id"].as_array().unwrap();
        let vector = all.iter().find(|vector| vector["kind"] == "local").unwrap();
        assert_eq!((vector["identity"].as_str(), vector["version"].as_str()), (Some(KEYRING), Some(VERSION)));
        let (_dir, path) = file_with(&known_file());
        let listed = list(&path, vector["epoch"].as_u64().unwrap()).unwrap();
        assert_eq!(listed.versions[0].key_id.as_str(), vector["key_id"].as_str().unwrap());
        assert_ne!(listed.versions[1].key_id, listed.versions[0].key_id);
        assert_ne!(list(&path, 1).unwrap().versions[0].key_id, listed.versions[0].key_id);
    }

    #[test]
    fn a_version_lives_from_add_to_retire_and_back() {
        let (_dir, path) = file_with(&known_file());
        let new = add(&path, moment(5), &OsEntropy).unwrap();
        let state = |path: &Path| -> Vec<(State, bool)> {
            list(path, 0).unwrap().versions.iter().map(|v| (v.state, v.current)).collect()
        };
        let (on, off) = (State::Enabled, State::Retired);
        assert_eq!(state(&path), [(on, true), (on, false), (on, false)]);
        let promoted = promote(&path, &new.to_string()).unwrap();
        assert_eq!(promoted, Promoted { from: VERSION.parse().unwrap(), to: new });
        assert_eq!(state(&path), [(on, false), (on, false), (on, true)]);
        assert_eq!(retire(&path, &VERSION[..8]).unwrap().to_string(), VERSION);
        assert_eq!(state(&path), [(off, false), (on, false), (on, true)]);
        for (error, status) in [
            (promote(&path, VERSION).unwrap_err(), 5),
            (retire(&path, VERSION).unwrap_err(), 5),
            (retire(&path, &new.to_string()).unwrap_err(), 5),
            (promote(&path, &new.to_string()).unwrap_err(), 5),
            (reinstate(&path, OTHER).unwrap_err(), 5),
        ] {
            change_problem(&error);
            assert_eq!(error.exit_status(), status, "{error}");
        }
        assert!(matches!(change_problem(&promote(&path, VERSION).unwrap_err()), ChangeProblem::Retired(_)));
        assert!(matches!(change_problem(&retire(&path, VERSION).unwrap_err()), ChangeProblem::AlreadyRetired(_)));
        let new = new.to_string();
        assert!(matches!(change_problem(&retire(&path, &new).unwrap_err()), ChangeProblem::IsCurrent(_)));
        assert!(matches!(change_problem(&promote(&path, &new).unwrap_err()), ChangeProblem::AlreadyCurrent(_)));
        assert!(matches!(change_problem(&reinstate(&path, OTHER).unwrap_err()), ChangeProblem::NotRetired(_)));
        reinstate(&path, VERSION).unwrap();
        assert_eq!(state(&path), [(on, false), (on, false), (on, true)]);
    }

    #[test]
    fn a_promotion_is_foreseen_with_its_key_id_and_changes_nothing() {
        let (_dir, path) = file_with(&known_file());
        let new = add(&path, moment(5), &OsEntropy).unwrap().to_string();
        let before = std::fs::read(&path).unwrap();
        let key_id = |path: &Path, nth: usize| list(path, 7).unwrap().versions[nth].key_id.clone();
        let foreseen = foresee(&path, &new, 7).unwrap();
        assert_eq!((foreseen.to.to_string(), foreseen.goes_back), (new.clone(), false));
        assert_eq!((foreseen.key_id, std::fs::read(&path).unwrap()), (key_id(&path, 2), before));
        // What `promote` would refuse is refused.
        assert!(matches!(change_problem(&foresee(&path, VERSION, 7).unwrap_err()), ChangeProblem::AlreadyCurrent(_)));
        promote(&path, &new).unwrap();
        for (nth, version) in [VERSION, OTHER].into_iter().enumerate() {
            let foreseen = foresee(&path, version, 7).unwrap();
            assert_eq!((foreseen.goes_back, foreseen.key_id), (true, key_id(&path, nth)));
        }
    }

    #[test]
    fn a_prefix_names_exactly_one_version() {
        let (_dir, path) = file_with(&known_file());
        for good in [OTHER, &OTHER[..5], "2F2B0", "2f2b0000-00", &OTHER.replace('-', "")] {
            assert_eq!(retire(&path, good).unwrap().to_string(), OTHER, "{good}");
            reinstate(&path, good).unwrap();
        }
        for bad in ["", "2f2", "2f-2", "xyzw", "2f2b ", "-----"] {
            let error = promote(&path, bad).unwrap_err();
            assert!(matches!(change_problem(&error), ChangeProblem::PrefixInvalid), "{bad}");
            assert_eq!(error.exit_status(), 2);
        }
        for unknown in ["ffff", "2f2b0001", &format!("{OTHER}0"), "2f2b-0000"] {
            let error = promote(&path, unknown).unwrap_err();
            assert!(matches!(change_problem(&error), ChangeProblem::VersionUnknown), "{unknown}");
        }
        let error = promote(&path, "2f2b").unwrap_err();
        assert!(matches!(change_problem(&error), ChangeProblem::VersionAmbiguous { matches: 2 }));
    }

    #[test]
    fn a_change_while_another_is_going_on_is_refused_and_changes_nothing() {
        let (_dir, path) = file_with(&known_file());
        let held = file::try_lock(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for error in [
                    add(&path, moment(0), &OsEntropy).unwrap_err(),
                    promote(&path, OTHER).unwrap_err(),
                    retire(&path, OTHER).unwrap_err(),
                    reinstate(&path, OTHER).unwrap_err(),
                ] {
                    assert!(matches!(change_problem(&error), ChangeProblem::Held));
                    assert!(error.to_string().contains("held by another process"));
                    assert_eq!(error.exit_status(), 5);
                }
            });
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), known_file());
        drop(held);
        add(&path, moment(0), &OsEntropy).unwrap();
    }

    #[test]
    fn no_version_is_lost_when_many_add_at_once() {
        // Large, so that reading takes long and others change the file between a first look and the lock.
        let (_dir, path) = file_with(&file_of(200));
        let start = Barrier::new(8);
        let added: Vec<Uuid> = std::thread::scope(|scope| {
            let run = || {
                start.wait();
                std::iter::repeat_with(|| add(&path, moment(0), &OsEntropy)).flatten().take(4).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let listed: Vec<Uuid> = list(&path, 0).unwrap().versions.iter().map(|v| v.version).collect();
        assert_eq!((listed.len(), added.len()), (232, 32));
        assert!(added.iter().all(|id| listed.contains(id)));
    }

    #[test]
    fn bad_randomness_and_a_bad_clock_make_no_key() {
        let (dir, path) = file_with(&known_file());
        let new = dir.path().join("new.json");
        let before_1970 = SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1);
        for error in [init(&new, moment(0), &Dry).unwrap_err(), add(&path, moment(0), &Dry).unwrap_err()] {
            assert!(matches!(change_problem(&error), ChangeProblem::Entropy(f) if f.reason() == Reason::Entropy));
            assert_eq!(error.exit_status(), 1);
        }
        for error in
            [init(&new, before_1970, &OsEntropy).unwrap_err(), add(&path, before_1970, &OsEntropy).unwrap_err()]
        {
            assert!(matches!(change_problem(&error), ChangeProblem::Clock));
        }
        assert!(!new.exists());
        // 0x80 to 0x9f again, the known material; and the same twice.
        let again = add(&path, moment(0), &Counting::from(0x80)).unwrap_err();
        assert!(matches!(change_problem(&again), ChangeProblem::Entropy(_)));
        add(&path, moment(0), &Stuck).unwrap();
        assert!(matches!(change_problem(&add(&path, moment(0), &Stuck).unwrap_err()), ChangeProblem::Entropy(_)));
    }

    #[test]
    fn a_full_keyring_takes_no_more() {
        let (_dir, path) = file_with(&file_of(255));
        add(&path, moment(0), &OsEntropy).unwrap();
        let error = add(&path, moment(0), &OsEntropy).unwrap_err();
        assert!(matches!(change_problem(&error), ChangeProblem::Full));
        assert_eq!(list(&path, 0).unwrap().versions.len(), 256);
    }

    #[test]
    fn a_file_that_is_not_safe_is_neither_read_nor_changed_nor_locked() {
        let (dir, path) = file_with(&known_file());
        set_mode(&path, 0o640);
        for error in [list(&path, 0).unwrap_err(), add(&path, moment(0), &OsEntropy).unwrap_err()] {
            assert!(matches!(error.problem(), Problem::File(FileProblem::OpenToOthers { mode: 0o640 })));
            assert_eq!((error.reason(), error.exit_status()), (Reason::KekFileRefused, 5));
            assert!(error.hint().contains("chmod 600"));
        }
        set_mode(&path, 0o600);
        put(&path, r#"{"format":"x","version":1}"#);
        assert!(list(&path, 0).unwrap_err().hint().contains("belongs to something else"));
        let error = list(&dir.path().join("x".repeat(300)), 0).unwrap_err();
        assert!(
            std::error::Error::source(&error).is_some() && error.to_fault().causes().contains("too long"),
            "{error:?}"
        );
        put(&path, "canary");
        let error = promote(&path, VERSION).unwrap_err();
        assert_eq!((error.reason(), error.exit_status()), (Reason::KekFileRefused, 5));
        let error = retire(&dir.path().join("none"), VERSION).unwrap_err();
        assert_eq!((error.reason(), error.exit_status()), (Reason::KmsUnreachable, 4));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
