//! What a drill on a cluster has done, in a file: so that it can be resumed, or ended in words.
//!
//! Guarantees: written as a whole, 0600, after every step and before anything is made in the cluster, so that whatever
//! the drill made is named here; no secret, no credential. Refuses to know the cluster.

use crate::claim::StepReport;
use crate::live::plan::{LiveError, LivePlan};
use crate::timeline::Seen;
use kube_kms_etcd::tally::Tally;
use kube_kms_etcd::verdict::{is_named, key_id_hash};
use kube_kms_os::durable::{self, Existing};
use kube_kms_os::wall_clock;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::time::UNIX_EPOCH;

const VERSION: u8 = 1;

/// A key_id, or the hash of one that only kube-apiserver has told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key(String);

impl Key {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The metric label.
    pub(crate) fn hash(&self) -> String {
        if self.0.starts_with("sha256:") { self.0.clone() } else { key_id_hash(&self.0) }
    }

    /// Whether this key_id, or this hash, is it.
    pub(crate) fn is(&self, key_id: &str) -> bool {
        is_named(key_id, &self.0) || self.hash() == key_id
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key_id that a hash is of, when something in etcd is under it.
    pub(crate) fn learn(&mut self, tally: &Tally) {
        if let Some(group) = tally.groups().into_iter().find(|group| self.is(&group.key_id)) {
            self.0.clone_from(&group.key_id);
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object that the drill has made or was about to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Made {
    /// Its path in the API.
    pub(crate) path: String,
    /// Its key in etcd may be one of these.
    pub(crate) keys: Vec<String>,
    /// Whether it was written after the rotation.
    pub(crate) is_new: bool,
}

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct State {
    version: u8,
    /// Of this drill; part of the names of what it makes.
    pub(crate) id: String,
    /// RFC 3339.
    pub(crate) began: String,
    began_unix: u64,
    /// Plugins and API servers that it began with.
    nodes: Vec<String>,
    /// Why there is nothing to resume.
    pub(crate) ended: Option<String>,
    /// Steps that went to their end, the first ones of the script.
    pub(crate) steps: Vec<Done>,
    pub(crate) timeline: Vec<Seen>,
    pub(crate) providers: Vec<String>,
    pub(crate) old: Option<Key>,
    pub(crate) new: Option<Key>,
    /// Resources that had objects under the old key.
    pub(crate) resources: Vec<String>,
    /// The KMS was asked to rotate: it is not asked twice, whatever became of the drill.
    pub(crate) asked_kms: bool,
    /// On the drill's clock.
    pub(crate) rotated_ms: u64,
    pub(crate) rotated_unix: u64,
    /// Every API server has moved.
    pub(crate) converged: bool,
    /// Nothing is under the old key.
    pub(crate) migrated: bool,
    pub(crate) objects: Vec<Made>,
    /// Paths of StorageVersionMigrations.
    pub(crate) migrations: Vec<String>,
}

/// A step that was played.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Done {
    /// It went to its end and nothing failed: it is not played again.
    pub(crate) complete: bool,
    pub(crate) report: StepReport,
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    wall_clock().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn nodes_of(plan: &LivePlan) -> Vec<String> {
    let sockets = plan.sockets.iter().map(|(name, _)| name.clone());
    let servers = plan.cluster.iter().flat_map(|cluster| cluster.servers.iter().cloned());
    sockets.chain(servers).collect()
}

impl State {
    pub(crate) fn new(plan: &LivePlan) -> Self {
        let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
        Self {
            version: VERSION,
            id,
            began: humantime::format_rfc3339_seconds(wall_clock()).to_string(),
            began_unix: now_unix(),
            nodes: nodes_of(plan),
            ended: None,
            steps: Vec::new(),
            timeline: Vec::new(),
            providers: plan.providers.clone(),
            old: None,
            new: None,
            resources: Vec::new(),
            asked_kms: false,
            rotated_ms: 0,
            rotated_unix: 0,
            converged: false,
            migrated: false,
            objects: Vec::new(),
            migrations: Vec::new(),
        }
    }

    /// What is in the file, if there is one.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, LiveError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LiveError::State(format!("{}: {error}", path.display()))),
        };
        let wrong = |why: String| LiveError::State(format!("{}: {why}", path.display()));
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        match state.version {
            VERSION => Ok(Some(state)),
            other => Err(wrong(format!("version {other}; this program writes {VERSION}"))),
        }
    }

    /// For a new drill: there must be none under way.
    pub(crate) fn begin(plan: &LivePlan) -> Result<Self, LiveError> {
        match Self::read(&plan.state)? {
            Some(state) if state.ended.is_none() && !plan.dry_run => Err(LiveError::UnderWay(state.began)),
            _ => Ok(Self::new(plan)),
        }
    }

    /// For a drill that goes on.
    pub(crate) fn resume(plan: &LivePlan) -> Result<Self, LiveError> {
        let state = Self::read(&plan.state)?;
        let mut state = state.ok_or_else(|| LiveError::Nothing(format!("{} is not there", plan.state.display())))?;
        if let Some(end) = &state.ended {
            return Err(LiveError::Ended(end.clone()));
        }
        if state.nodes != nodes_of(plan) {
            return Err(LiveError::Other(state.nodes.join(", ")));
        }
        let complete = state.steps.iter().take_while(|done| done.complete).count();
        state.steps.truncate(complete);
        Ok(state)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), LiveError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| LiveError::State(error.to_string()))?;
        durable::write(path, &text, Existing::Replace).map_err(LiveError::Unwritable)
    }

    /// How old the drill is.
    pub(crate) fn age_ms(&self) -> u64 {
        now_unix().saturating_sub(self.began_unix).saturating_mul(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_name_and_by_its_hash() {
        let (by_id, by_hash) = (Key::new("k1-a"), Key::new(&key_id_hash("k1-a")));
        for key in [&by_id, &by_hash] {
            assert!(key.is("k1-a") && key.is(&key_id_hash("k1-a")), "{key}");
            assert!(!key.is("k1-b") && !key.is(&key_id_hash("k1-b")), "{key}");
        }
        assert_eq!(by_id.hash(), by_hash.hash());
    }
}
