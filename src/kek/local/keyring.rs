//! The keyring: versions of one KEK, one of them current.
//!
//! INVARIANT: ids and materials are unique, and the current version is there and enabled: the one door,
//! [`Keyring::assemble`], and every change keep it so. Refuses to know: files, JSON, the clock.
//! Key material has no `Debug`, `Clone` or `Serialize`, and is wiped when it is dropped.

use super::json::ContentProblem;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::port::Entropy;
use std::path::Path;
use std::time::SystemTime;
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Bytes of key material: AES-256.
pub(super) const MATERIAL_LEN: usize = 32;
/// Versions at most, so that reading stays cheap and the file far under its limit: a rotation a month for 21 years.
pub(super) const VERSIONS_MAX: usize = 256;
/// Hex digits of a version's uuid that must be given at least.
const PREFIX_MIN: usize = 4;

/// Whether a version unwraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It unwraps, and may become current.
    Enabled,
    /// Its material is kept; unwraps fail with `kek-disabled` until it is reinstated.
    Retired,
}

impl State {
    /// The word as it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Retired => "retired",
        }
    }
}

/// Why a change was refused; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ChangeProblem {
    /// `init` on a path that is taken.
    #[error("there is already something at that path")]
    Exists,
    /// The lock is taken.
    #[error("it is being changed: its lock is held by another process")]
    Held,
    /// Not the beginning of a uuid.
    #[error("a version is named by its uuid, or by its first {PREFIX_MIN} or more hex digits")]
    PrefixInvalid,
    /// No uuid begins so.
    #[error("it has no such version")]
    VersionUnknown,
    /// Several uuids begin so.
    #[error("{matches} of its versions begin with those digits")]
    VersionAmbiguous {
        /// How many.
        matches: usize,
    },
    /// A retired version cannot become current.
    #[error("version {0} is retired")]
    Retired(Uuid),
    /// `promote` has nothing to do.
    #[error("version {0} is the current one already")]
    AlreadyCurrent(Uuid),
    /// The version that wraps cannot be retired.
    #[error("version {0} is the current one")]
    IsCurrent(Uuid),
    /// `retire` has nothing to do.
    #[error("version {0} is retired already")]
    AlreadyRetired(Uuid),
    /// `reinstate` has nothing to do.
    #[error("version {0} is not retired")]
    NotRetired(Uuid),
    /// No room for another version.
    #[error("it has {VERSIONS_MAX} versions, and no keyring has more")]
    Full,
    /// A moment that RFC 3339 cannot write.
    #[error("the system's clock is before 1970 or after 9999")]
    Clock,
    /// No randomness, or none that deserves the name.
    #[error("no key could be drawn")]
    Entropy(#[source] Fault),
}

impl ChangeProblem {
    pub(super) fn hint(&self, path: &Path) -> String {
        match self {
            Self::Exists => {
                format!("use the keyring at {}, or name another path; nothing is ever overwritten", path.display())
            }
            Self::Held => "wait for the other `kube-kms keyring` command to end, then try again".to_owned(),
            Self::PrefixInvalid | Self::VersionUnknown => "see the versions with `kube-kms keyring list`".to_owned(),
            Self::VersionAmbiguous { .. } => "give more digits; see `kube-kms keyring list`".to_owned(),
            Self::Retired(id) => format!("undo the retirement first: `kube-kms keyring reinstate {id}`"),
            Self::AlreadyCurrent(_) | Self::AlreadyRetired(_) => "there is nothing to do".to_owned(),
            Self::IsCurrent(_) => "promote another version first; `kube-kms keyring add` makes one".to_owned(),
            Self::NotRetired(_) => "to make it current, use `kube-kms keyring promote`".to_owned(),
            Self::Full => {
                "make a new keyring at another path with `kube-kms keyring init` and keep this one under `read` in the configuration"
                    .to_owned()
            }
            Self::Clock => "set the system's clock, then try again".to_owned(),
            Self::Entropy(_) => "the operating system's random number generator is at fault; do not go on".to_owned(),
        }
    }

    /// 1 failed, 2 usage, 5 refused.
    pub(super) const fn exit_status(&self) -> u8 {
        match self {
            Self::Clock | Self::Entropy(_) => 1,
            Self::PrefixInvalid | Self::VersionUnknown | Self::VersionAmbiguous { .. } => 2,
            _ => 5,
        }
    }
}

/// 32 bytes of AES key, on the heap so that moving them around leaves no copy behind.
pub(super) struct Material(Box<Zeroizing<[u8; MATERIAL_LEN]>>);

impl Material {
    /// Filled in place by `fill`.
    pub(super) fn build<E>(fill: impl FnOnce(&mut [u8; MATERIAL_LEN]) -> Result<(), E>) -> Result<Self, E> {
        let mut bytes = Box::new(Zeroizing::new([0; MATERIAL_LEN]));
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key itself. SECURITY: for the cipher and for the file, and for nothing else.
    pub(super) fn expose_bytes(&self) -> &[u8; MATERIAL_LEN] {
        &self.0
    }

    fn same_as(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

/// One generation of the KEK.
pub(super) struct Version {
    pub(super) id: Uuid,
    pub(super) created: SystemTime,
    pub(super) state: State,
    pub(super) material: Material,
}

impl Version {
    /// A new one, enabled, its material drawn in place.
    pub(super) fn generate(created: SystemTime, entropy: &dyn Entropy) -> Result<Self, ChangeProblem> {
        let material = Material::build(|bytes| entropy.fill(bytes)).map_err(ChangeProblem::Entropy)?;
        Ok(Self { id: Uuid::new_v4(), created, state: State::Enabled, material })
    }
}

/// All versions, in the order in which they were made.
pub(super) struct Keyring {
    id: Uuid,
    current: Uuid,
    versions: Vec<Version>,
}

impl Keyring {
    /// A keyring with one version, which is current.
    pub(super) fn new(first: Version) -> Self {
        Self { id: Uuid::new_v4(), current: first.id, versions: vec![first] }
    }

    /// The one door for what comes from outside.
    pub(super) fn assemble(id: Uuid, current: Uuid, versions: Vec<Version>) -> Result<Self, ContentProblem> {
        if versions.len() > VERSIONS_MAX {
            return Err(ContentProblem::TooManyVersions);
        }
        let mut before: &[Version] = &[];
        for (index, version) in versions.iter().enumerate() {
            if before.iter().any(|other| other.id == version.id) {
                return Err(ContentProblem::IdTwice(version.id));
            }
            // SECURITY: the same key under two names would outlive the retirement of one of them.
            if let Some(other) = before.iter().find(|other| other.material.same_as(&version.material)) {
                return Err(ContentProblem::MaterialTwice(other.id, version.id));
            }
            before = versions.get(..=index).unwrap_or_default();
        }
        match versions.iter().find(|version| version.id == current).map(|version| version.state) {
            None => Err(ContentProblem::CurrentMissing(current)),
            Some(State::Retired) => Err(ContentProblem::CurrentRetired(current)),
            Some(State::Enabled) => Ok(Self { id, current, versions }),
        }
    }

    pub(super) const fn id(&self) -> Uuid {
        self.id
    }

    pub(super) const fn current_id(&self) -> Uuid {
        self.current
    }

    pub(super) fn versions(&self) -> &[Version] {
        &self.versions
    }

    pub(super) fn find(&self, id: Uuid) -> Option<&Version> {
        self.versions.iter().find(|version| version.id == id)
    }

    /// `local:` and the keyring's uuid.
    pub(super) fn kek(&self) -> Result<KekRef, Fault> {
        KekRef::new(KekKind::LOCAL, &self.id.hyphenated().to_string())
    }

    pub(super) fn kek_version(&self, version: Uuid) -> Result<KekVersion, Fault> {
        Ok(KekVersion { kek: self.kek()?, version: version.hyphenated().to_string() })
    }

    /// The one version whose uuid begins so.
    pub(super) fn resolve(&self, prefix: &str) -> Result<Uuid, ChangeProblem> {
        let prefix = prefix.to_ascii_lowercase();
        let digits = prefix.bytes().filter(u8::is_ascii_hexdigit).count();
        if digits < PREFIX_MIN || !prefix.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Err(ChangeProblem::PrefixInvalid);
        }
        let begins = |id: &Uuid| match prefix.contains('-') {
            true => id.hyphenated().to_string().starts_with(&prefix),
            false => id.simple().to_string().starts_with(&prefix),
        };
        let mut matching = self.versions.iter().map(|version| version.id).filter(begins);
        match (matching.next(), matching.count()) {
            (None, _) => Err(ChangeProblem::VersionUnknown),
            (Some(id), 0) => Ok(id),
            (Some(_), others) => Err(ChangeProblem::VersionAmbiguous { matches: others.saturating_add(1) }),
        }
    }

    /// Takes another version, which does not become current.
    pub(super) fn add(&mut self, version: Version) -> Result<(), ChangeProblem> {
        if self.versions.len() >= VERSIONS_MAX {
            return Err(ChangeProblem::Full);
        }
        if self.versions.iter().any(|other| other.id == version.id || other.material.same_as(&version.material)) {
            let cause = "the same bytes were drawn twice";
            return Err(ChangeProblem::Entropy(Fault::caused_by(Reason::Entropy, cause)));
        }
        self.versions.push(version);
        Ok(())
    }

    /// Makes a version the one that wraps.
    pub(super) fn promote(&mut self, id: Uuid) -> Result<(), ChangeProblem> {
        if id == self.current {
            return Err(ChangeProblem::AlreadyCurrent(id));
        }
        match self.find(id).ok_or(ChangeProblem::VersionUnknown)?.state {
            State::Retired => Err(ChangeProblem::Retired(id)),
            State::Enabled => {
                self.current = id;
                Ok(())
            }
        }
    }

    /// Stops a version from unwrapping.
    pub(super) fn retire(&mut self, id: Uuid) -> Result<(), ChangeProblem> {
        if id == self.current {
            return Err(ChangeProblem::IsCurrent(id));
        }
        self.turn(id, State::Retired, ChangeProblem::AlreadyRetired(id))
    }

    /// Undoes [`Keyring::retire`].
    pub(super) fn reinstate(&mut self, id: Uuid) -> Result<(), ChangeProblem> {
        self.turn(id, State::Enabled, ChangeProblem::NotRetired(id))
    }

    fn turn(&mut self, id: Uuid, to: State, already: ChangeProblem) -> Result<(), ChangeProblem> {
        let version = self.versions.iter_mut().find(|version| version.id == id).ok_or(ChangeProblem::VersionUnknown)?;
        if version.state == to {
            return Err(already);
        }
        version.state = to;
        Ok(())
    }
}
