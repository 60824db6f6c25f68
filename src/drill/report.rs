//! The outcome of a drill: every claim, what was measured, and what it is worth.

use crate::claim::{StepReport, Verdict};
use crate::tempo::Setting;
use crate::timeline::Seen;
use serde::Serialize;

/// How many claims ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Held.
    pub held: usize,
    /// Did not hold.
    pub did_not_hold: usize,
    /// Could not be tried.
    pub not_tried: usize,
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `rehearse` or `run`.
    pub drill: &'static str,
    /// Of kube-kms.
    pub version: &'static str,
    /// When it began, RFC 3339.
    pub began: String,
    /// How long it took.
    pub took_ms: u64,
    /// The kind of KEK, `local` or `aws`; for a drill on a cluster who rotates it.
    pub kek: &'static str,
    /// How many objects were sealed at first.
    pub objects: usize,
    /// Whether no claim failed.
    pub passed: bool,
    /// The claims, counted.
    pub totals: Totals,
    /// The key_id before the rotation.
    pub old_key_id: Option<String>,
    /// The key_id after it.
    pub new_key_id: Option<String>,
    /// The settings of the sandbox.
    pub settings: Vec<Setting>,
    /// The ten steps.
    pub steps: Vec<StepReport>,
    /// Every change of what the plugins' Status, and the API servers of a cluster, said.
    pub timeline: Vec<Seen>,
    /// Where the sandbox is, when it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// What this proves.
    pub proves: Vec<&'static str>,
    /// What this does not prove.
    pub does_not_prove: Vec<&'static str>,
}

impl Totals {
    /// Of all claims of these steps.
    #[must_use]
    pub fn of(steps: &[StepReport]) -> Self {
        let count = |verdict| steps.iter().flat_map(|s| &s.claims).filter(|c| c.verdict == verdict).count();
        Self {
            held: count(Verdict::Held),
            did_not_hold: count(Verdict::DidNotHold),
            not_tried: count(Verdict::NotTried),
        }
    }
}

/// What a rehearsal proves.
pub(crate) const PROVES: [&str; 3] = [
    "this binary, with this kind of KEK and on this machine, follows a rotation without losing an object or a write, \
     survives a kill, an outage and the retirement of the old key, and says so in its Status",
    "kube-apiserver's rules for KMS v2 (polling, seeds, staleness, expiry) were played by a simulator of it, which the \
     tests of kube-kms hold against kube-apiserver's own code",
    "which error users see while an object is under a retired key, and that reinstating the key brings it back",
];

/// What it does not.
pub(crate) const DOES_NOT_PROVE: [&str; 4] = [
    "anything about your cluster: its etcd, its API servers and the plugins that serve them were not touched",
    "that your KMS, its permissions and your network let every control-plane node do the same; `kube-kms check` on each node \
     tries its KEK",
    "that no object, and no backup of etcd, is still under the old key: only a scan of your own etcd tells; do not retire a \
     key on the strength of a rehearsal",
    "times under your own settings: those of the sandbox are shorter, as said above",
];

/// What a drill on a cluster proves.
pub(crate) const LIVE_PROVES: [&str; 3] = [
    "which key every plugin and every API server that was asked wrote under, and when each of them moved",
    "which keys the objects in this etcd, under this prefix, needed at the revision of the last scan",
    "that what the drill wrote under the old key was read back through every API server that was asked",
];

/// What it does not.
pub(crate) const LIVE_DOES_NOT_PROVE: [&str; 4] = [
    "anything about backups and snapshots of etcd, which need the old key for as long as they may be restored: \
     `kmsctl scan --snapshot FILE` for each",
    "anything about another etcd or prefix (--etcd-servers-overrides, other clusters under the same KEK)",
    "how the plugins live through an outage, or a kill: that is not tried on a cluster; `kmsctl drill rehearse` tries it",
    "what another program has under the same KEK",
];
