//! The key_ids that Status has named, in order, and what their order says about the plugin.
//!
//! SPEC: KEP-3299, "key_id and rotation": a key_id names one generation of a remote KEK, is the same on every replica and
//! after every restart, and is never used again once it has been left.

use crate::apiserver::finding::{FindingCode, milliseconds};
use kube_kms_core::port::Moment;
use serde::Serialize;
use std::collections::HashSet;

/// Changes that are kept; a plugin that changes more often is known well enough.
const KEPT: usize = 10_000;

/// From this moment on Status named this key_id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyIdSeen {
    /// When, in milliseconds of the simulator's clock.
    #[serde(rename = "atMs", serialize_with = "milliseconds")]
    pub at: Moment,
    /// What.
    pub key_id: String,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyHistory {
    order: Vec<KeyIdSeen>,
    current: Option<String>,
    seen: HashSet<String>,
    returns: u32,
    before_restart: Option<String>,
}

/// What one more key_id means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observed {
    /// The one from before.
    Same,
    /// Another one, as after a rotation; or the first.
    New,
    /// Another one, and something is wrong with that.
    Wrong(FindingCode),
}

impl KeyHistory {
    /// The plugin was restarted, and nothing was rotated meanwhile: its next key_id must be its last.
    pub(super) fn plugin_restarted(&mut self) {
        self.before_restart.clone_from(&self.current);
    }

    /// Status named it.
    pub(super) fn observe(&mut self, at: Moment, key_id: &str) -> Observed {
        let before_restart = self.before_restart.take();
        if self.current.as_deref() == Some(key_id) {
            return Observed::Same;
        }
        self.current = Some(key_id.to_owned());
        if self.order.len() < KEPT {
            self.order.push(KeyIdSeen { at, key_id: key_id.to_owned() });
        }
        let is_new = self.seen.insert(key_id.to_owned());
        if before_restart.is_some() {
            return Observed::Wrong(FindingCode::KeyIdUnstableOverRestart);
        }
        if is_new {
            return Observed::New;
        }
        self.returns = self.returns.saturating_add(1);
        // Once may be an operator who went back to an old key; twice is a plugin that cannot make up its mind.
        Observed::Wrong(if self.returns == 1 { FindingCode::KeyIdCameBack } else { FindingCode::KeyIdFlipFlop })
    }

    pub(super) fn order(&self) -> Vec<KeyIdSeen> {
        self.order.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(history: &mut KeyHistory, ids: &str) -> Vec<Observed> {
        ids.chars().map(|id| history.observe(Moment(0), &id.to_string())).collect()
    }

    #[test]
    fn rotations_are_fine_one_return_came_back_and_more_are_a_flip_flop() {
        let (same, new) = (Observed::Same, Observed::New);
        let back = Observed::Wrong(FindingCode::KeyIdCameBack);
        let flip = Observed::Wrong(FindingCode::KeyIdFlipFlop);
        assert_eq!(judge(&mut KeyHistory::default(), "AABBC"), [new, same, new, same, new]);
        assert_eq!(judge(&mut KeyHistory::default(), "ABAAC"), [new, new, back, same, new]);
        assert_eq!(judge(&mut KeyHistory::default(), "ABABA"), [new, new, back, flip, flip]);
    }

    #[test]
    fn a_restart_must_not_change_it_and_a_later_rotation_may() {
        let mut history = KeyHistory::default();
        history.plugin_restarted();
        assert_eq!(judge(&mut history, "A"), [Observed::New]);
        history.plugin_restarted();
        assert_eq!(judge(&mut history, "AB"), [Observed::Same, Observed::New]);
        history.plugin_restarted();
        assert_eq!(judge(&mut history, "C"), [Observed::Wrong(FindingCode::KeyIdUnstableOverRestart)]);
        assert_eq!(history.order().len(), 3);
    }
}
