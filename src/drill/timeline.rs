//! Every change of what each plugin's Status says, from the first step to the last, on one clock.
//!
//! Guarantees: one connection and one task for each plugin, which asks every 50 ms or as told; they end with this. A plugin that is
//! not there is an entry too.

use crate::claim::millis;
use crate::task::Tasks;
use kms_v2_client::kms::{KmsClient, Target};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::MonotonicClock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(50);
/// Entries that are kept: one for each Status would be 20 a second.
const KEPT: usize = 5000;

/// From this moment on the Status of that plugin was this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Milliseconds since the drill began.
    pub at_ms: u64,
    /// Which plugin.
    pub node: String,
    /// Status.key_id, when it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Status.healthz, when it answered; else the gRPC code.
    pub health: String,
}

/// What is kept, and apart from it what everybody said last: that is never what another process has seen, nor out of date because
/// no more is kept.
#[derive(Debug, Default)]
struct Log {
    all: Vec<Seen>,
    last: BTreeMap<String, Seen>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Timeline {
    seen: Arc<Mutex<Log>>,
    clock: Arc<MonotonicClock>,
    /// What the drill is older than the clock: it was resumed.
    before_ms: u64,
    every: Duration,
    tasks: Tasks,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self::resumed(Vec::new(), 0, EVERY)
    }

    /// Goes on with what was seen before, asking this often.
    pub(crate) fn resumed(seen: Vec<Seen>, before_ms: u64, every: Duration) -> Self {
        let seen = Arc::new(Mutex::new(Log { all: seen, last: BTreeMap::new() }));
        Self { seen, clock: Arc::new(MonotonicClock::new()), before_ms, every, tasks: Tasks::default() }
    }

    /// Milliseconds since the drill began.
    pub(crate) fn now_ms(&self) -> u64 {
        millis(self.clock.now().since(Moment(0))).saturating_add(self.before_ms)
    }

    /// Watches one more plugin.
    pub(crate) fn watch(&mut self, node: &str, target: Target, timeout: Duration) {
        let (node, seen, clock) = (node.to_owned(), Arc::clone(&self.seen), Arc::clone(&self.clock));
        let (before_ms, every) = (self.before_ms, self.every);
        self.tasks.spawn(async move {
            let mut client: Option<KmsClient> = None;
            loop {
                if client.is_none() {
                    client = KmsClient::connect(target.clone(), timeout).await.ok();
                }
                let answer = match &mut client {
                    Some(client) => client.status().await.map_err(|status| format!("{:?}", status.code())),
                    None => Err("not there".to_owned()),
                };
                let (key_id, health) = match answer {
                    Ok(status) => (Some(status.key_id), status.healthz),
                    Err(code) => (None, code),
                };
                let at_ms = millis(clock.now().since(Moment(0))).saturating_add(before_ms);
                note(&seen, Seen { at_ms, node: node.clone(), key_id, health });
                tokio::time::sleep(every).await;
            }
        });
    }

    /// What somebody else has seen, now.
    pub(crate) fn note(&self, node: &str, key_id: Option<String>, health: String) {
        note(&self.seen, Seen { at_ms: self.now_ms(), node: node.to_owned(), key_id, health });
    }

    /// The last word of that plugin.
    pub(crate) fn last(&self, node: &str) -> Option<Seen> {
        locked(&self.seen).last.get(node).cloned()
    }

    /// The key_ids of that plugin, in order, from this moment on; the one that it had then is the first.
    pub(crate) fn key_ids(&self, node: &str, since_ms: u64) -> Vec<String> {
        let seen = locked(&self.seen);
        let all: Vec<(u64, &String)> =
            seen.all.iter().filter(|s| s.node == node).filter_map(|s| Some((s.at_ms, s.key_id.as_ref()?))).collect();
        let before = all.iter().rposition(|(at, _)| *at <= since_ms).unwrap_or(0);
        let mut ids: Vec<String> = all.iter().skip(before).map(|(_, id)| (*id).clone()).collect();
        ids.dedup();
        ids
    }

    /// When that plugin named this key_id first.
    pub(crate) fn changed_at(&self, node: &str, key_id: &str) -> Option<u64> {
        let seen = locked(&self.seen);
        seen.all.iter().find(|s| s.node == node && s.key_id.as_deref() == Some(key_id)).map(|s| s.at_ms)
    }

    /// What that plugin said other than this health and key_id, since this moment.
    pub(crate) fn deviations(&self, node: &str, since_ms: u64, key_id: &str) -> Vec<Seen> {
        let seen = locked(&self.seen);
        let ours = seen.all.iter().filter(|s| s.node == node && s.at_ms >= since_ms);
        ours.filter(|s| s.health != "ok" || s.key_id.as_deref() != Some(key_id)).cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Seen> {
        locked(&self.seen).all.clone()
    }
}

fn locked(seen: &Mutex<Log>) -> std::sync::MutexGuard<'_, Log> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(log: &Mutex<Log>, new: Seen) {
    let mut log = locked(log);
    let last = log.last.get(&new.node);
    let is_same = last.is_some_and(|last| last.key_id == new.key_id && last.health == new.health);
    if !is_same && log.all.len() < KEPT {
        log.all.push(new.clone());
    }
    log.last.insert(new.node.clone(), new);
}

/// The first key_id that comes again after another one.
pub(crate) fn came_back(ids: &[String]) -> Option<&String> {
    ids.iter().enumerate().find(|(at, id)| ids.iter().take(*at).any(|before| before == *id)).map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at_ms: u64, node: &str, key_id: Option<&str>, health: &str) -> Seen {
        Seen { at_ms, node: node.to_owned(), key_id: key_id.map(str::to_owned), health: health.to_owned() }
    }

    #[test]
    fn only_changes_are_kept_and_each_plugin_has_its_own() {
        let timeline = Timeline::new();
        for entry in [
            seen(1, "a", Some("k1"), "ok"),
            seen(2, "b", Some("k1"), "ok"),
            seen(3, "a", Some("k1"), "ok"),
            seen(4, "a", None, "Unavailable"),
            seen(5, "a", Some("k2"), "ok"),
            seen(6, "b", Some("k1"), "tired"),
        ] {
            note(&timeline.seen, entry);
        }
        assert_eq!(timeline.all().len(), 5);
        assert_eq!(timeline.key_ids("a", 0), ["k1", "k2"]);
        assert_eq!(timeline.key_ids("a", 4), ["k1", "k2"], "the one that it had then");
        assert_eq!(timeline.key_ids("a", 5), ["k2"]);
        assert_eq!(timeline.changed_at("a", "k2"), Some(5));
        assert_eq!(timeline.deviations("b", 0, "k1"), [seen(6, "b", Some("k1"), "tired")]);
        assert_eq!(timeline.last("b").unwrap().health, "tired");
    }

    #[test]
    fn what_another_process_has_seen_is_nobodys_last_word() {
        let timeline = Timeline::resumed(vec![seen(1, "a", Some("k2"), "ok")], 1000, EVERY);
        assert_eq!(timeline.last("a"), None);
        assert_eq!(timeline.changed_at("a", "k2"), Some(1));
        assert!(timeline.now_ms() >= 1000);
        timeline.note("a", Some("k1".to_owned()), "ok".to_owned());
        assert_eq!(timeline.last("a").unwrap().key_id.unwrap(), "k1");
        assert_eq!(timeline.key_ids("a", 0), ["k2", "k1"]);
    }

    #[test]
    fn a_return_is_seen() {
        let ids = |text: &str| text.chars().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(came_back(&ids("abc")), None);
        assert_eq!(came_back(&ids("aba")), Some(&"a".to_owned()));
    }
}
