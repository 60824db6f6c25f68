//! The background: probes the writing KEK, replaces DEKs, notices rotation and revocation, publishes what requests see.
//!
//! One task, so nothing here races. Each round makes a [`Candidate`]; the pure functions of `core::rotation` and
//! `core::health` decide what becomes of it and what is published. Guarantees: a key_id is on disk before it is
//! reported; a failed reload changes nothing.

use crate::core::fault::{Class, Fault, Reason};
use crate::core::health::{Holdings, Record, State, judge};
use crate::core::key_id::KeyId;
use crate::core::port::Moment;
use crate::core::rotation::{Decision, Reported, Sightings, decide};
use crate::service::kek_set::KekSet;
use crate::service::plugin::{Plugin, Previous, Published};
use crate::service::prepare::{Candidate, prepare, unwrap_again};
use crate::service::recovery;
use crate::service::settings::Settings;
use crate::service::state_file::{Remembered, StateFile};
use crate::service::write_state::WriteState;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long an Encrypt is answered from the write state that its own connection was told of before a rotation: kube-apiserver
/// sends it right after the Status.
const TOLD_FOR_NANOS: u64 = 5_000_000_000;
/// A changed KEK version is asked for again after this time.
const OBSERVE_AGAIN: Duration = Duration::from_secs(2);
/// Failed probes are repeated after this time, doubled each time, up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// So that recovery is noticed within 10 s (docs/conformance.md, item 28): the last probe before it may have hung for
/// `probe.timeout`, 2 s by default, and this is what follows, with a tenth of jitter.
const RETRY_LONGEST: Duration = Duration::from_secs(6);
/// A KMS that throttles us is asked less often than when all is well, not more.
const THROTTLED_FACTOR: u32 = 2;

/// A new configuration, to be prepared and verified before it replaces the old one.
#[derive(Debug)]
pub struct Reload {
    /// The KEKs.
    pub keks: KekSet,
    /// The settings.
    pub settings: Settings,
    /// Told how it went; on `Err` the old configuration stays.
    pub reply: oneshot::Sender<Result<KeyId, Fault>>,
}

/// Says whether another process has taken this one's place on this node. Asked when the KEK has rotated; must not block.
pub type IsDisplaced = Box<dyn Fn() -> bool + Send + Sync>;

/// See the module.
pub struct Supervisor {
    plugin: Arc<Plugin>,
    state_file: StateFile,
    is_displaced: IsDisplaced,
    remembered: Remembered,
    /// What is remembered is not on disk.
    unsaved: bool,
    record: Record,
    sightings: Sightings,
    observing: bool,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("remembered", &self.remembered).finish_non_exhaustive()
    }
}

impl Supervisor {
    /// For a plugin that starts with what this node remembers.
    #[must_use]
    pub fn new(plugin: Arc<Plugin>, state_file: StateFile, remembered: Remembered) -> Self {
        Self {
            plugin,
            state_file,
            is_displaced: Box::new(|| false),
            remembered,
            unsaved: false,
            record: Record::default(),
            sightings: Sightings::default(),
            observing: false,
        }
    }

    /// With a way to know of a successor.
    #[must_use]
    pub fn with_successors(self, is_displaced: IsDisplaced) -> Self {
        Self { is_displaced, ..self }
    }

    /// Runs until `reloads` is closed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the supervision; what is published stays as it is.
    pub async fn run(mut self, mut reloads: mpsc::Receiver<Reload>) {
        loop {
            self.round().await;
            let wait = self.next_wait();
            let plugin = Arc::clone(&self.plugin);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = plugin.wake().notified() => {}
                reload = reloads.recv() => match reload {
                    Some(reload) => self.reload(reload).await,
                    None => return,
                },
            }
        }
    }

    /// One probe and what follows from it.
    async fn round(&mut self) {
        if self.unsaved {
            self.save().await;
        }
        let settings = self.plugin.settings();
        let keks = self.plugin.keks();
        let plugin = Arc::clone(&self.plugin);
        let made = prepare(keks.write(), &settings, plugin.clock(), plugin.entropy(), plugin.observer()).await;
        self.observing = false;
        match made {
            Ok(candidate) => self.consider(candidate, &keks, &settings).await,
            Err(fault) => {
                let fault = self.proven(fault, &keks, &settings).await;
                self.failed(&fault, &settings);
            }
        }
        self.refresh(&settings, None);
    }

    /// A probe that says *dead* may speak of another key than the one that our DEK is under: an alias that was pointed at a
    /// disabled key. So ours is asked to unwrap that DEK, and while it does, the answer does not count.
    async fn proven(&self, fault: Fault, keks: &KekSet, settings: &Settings) -> Fault {
        let write = self.plugin.published().write.clone();
        let (Class::KekDead, Some(write)) = (fault.class(), write) else { return fault };
        match unwrap_again(&write, keks, settings, self.plugin.clock(), self.plugin.observer()).await {
            Ok(()) => Fault::caused_by(Reason::KekUnusable, fault),
            // Refused is not dead: a policy can forbid us the old KEK on the day the alias is pointed at a dead one.
            Err(unproven) if unproven.class().is_transient() || unproven.class() == Class::KekDenied => unproven,
            Err(_) => fault,
        }
    }

    async fn consider(&mut self, candidate: Candidate, keks: &KekSet, settings: &Settings) {
        let now = self.plugin.clock().now();
        self.sightings = std::mem::take(&mut self.sightings).after(&candidate.key_id);
        let write = self.plugin.published().write.clone();
        let due = write.as_ref().is_none_or(|w| w.is_due(now, settings));
        let reported = Reported { current: self.remembered.key_id.as_ref(), left: &self.remembered.left };
        match decide(reported, &candidate.key_id, &self.sightings, settings.observations, due) {
            Decision::Keep => self.succeeded(),
            Decision::ObserveAgain => {
                tracing::info!(
                    target: "kube_kms::rotation", key_id = %candidate.key_id,
                    "the KMS answers with another KEK version; asking again before it is believed"
                );
                self.observing = true;
                self.succeeded();
            }
            // INVARIANT: a key_id that was left is never reported again by this node, and the successor may not have seen the
            // rotation yet: whoever moves from here to there must not see the key_id go back (tests/process/take_over.rs).
            Decision::Publish if self.is_left_to_a_successor(&candidate.key_id) => {
                tracing::info!(
                    target: "kube_kms::rotation", key_id = %candidate.key_id,
                    "another instance has taken over; it follows the KEK version, and this one stays as it is until it is stopped"
                );
                self.succeeded();
            }
            Decision::RenewDek | Decision::Publish => {
                self.succeeded();
                if let Err(fault) = self.adopt(candidate, keks, settings).await {
                    self.failed(&fault, settings);
                }
            }
            Decision::RefuseRetired => {
                let fault = Fault::caused_by(
                    Reason::KeyIdRetired,
                    format!("the KMS answers with {}, which this node reported before and left", candidate.key_id),
                );
                self.failed(&fault, settings);
            }
        }
    }

    /// Whether reporting this key_id would be a change, and another process is the one to make it.
    fn is_left_to_a_successor(&self, key_id: &KeyId) -> bool {
        self.remembered.key_id.as_ref().is_some_and(|current| current != key_id) && (self.is_displaced)()
    }

    /// Makes the candidate the write state: wrap its DEK for recovery, remember, then publish.
    ///
    /// # Errors
    /// `memory`; nothing is changed then.
    async fn adopt(&mut self, candidate: Candidate, keks: &KekSet, settings: &Settings) -> Result<(), Fault> {
        let recovery = recovery::wrap_under_all(&self.plugin, keks, candidate.bytes(), settings).await;
        for (number, fault) in (1..).zip(&recovery).filter_map(|(n, r): (usize, _)| Some((n, r.as_ref().err()?))) {
            tracing::error!(
                target: "kube_kms::recovery", recovery = number, reason = fault.reason().label(), error = fault.known_causes(),
                "the recovery KEK did not wrap the new data key; what is sealed under it opens by the primary KEK only"
            );
        }
        let write = Arc::new(candidate.into_write_state(&recovery, self.plugin.clock(), settings)?);
        let rotated = self.remembered.key_id.as_ref().is_some_and(|old| old != write.key_id());
        let digest = hex::encode(keks.write().context.digest());
        if self.remembered.context_digest.as_ref().is_some_and(|old| *old != digest) {
            tracing::warn!(
                target: "kube_kms::state",
                "the KEK's `context` differs from the one used before; values wrapped under the old one open only while \
                 an entry under `read` has it"
            );
        }
        let remembered = self.remembered.after(write.key_id(), digest).under(&write.version().kek, settings.epoch);
        if remembered != self.remembered {
            self.remembered = remembered;
            self.save().await;
        }
        tracing::info!(
            target: "kube_kms::rotation", key_id = %write.key_id(), key_id_hash = write.key_id().metric_hash(), rotated,
            kek = %write.version().kek, kek_version = write.version().version, "a new data key is in use"
        );
        // The DEK that is replaced stays readable from the keyring without an unwrap.
        self.plugin.keyring().insert(write.annotations(), Arc::clone(write.dek()), self.plugin.clock().now());
        self.plugin.observer().published(rotated);
        self.refresh(settings, Some(write));
        Ok(())
    }

    /// INVARIANT: on disk before it is reported. A disk that fails is a warning: the file is a help, never a need. It is tried
    /// again with every probe, so that a restart after the disk is back does not go back to an older key_id (tested by
    /// `a_key_id_that_could_not_be_remembered_is_remembered_when_the_disk_is_back`).
    async fn save(&mut self) {
        let (file, remembered) = (self.state_file.clone(), self.remembered.clone());
        // fsync may take long; it must not hold up requests on the same thread.
        let saved = tokio::task::spawn_blocking(move || file.save(&remembered)).await;
        let was_unsaved = std::mem::replace(&mut self.unsaved, !matches!(saved, Ok(Ok(()))));
        let error = match saved {
            Ok(Ok(())) if was_unsaved => {
                tracing::info!(target: "kube_kms::state", path = %self.state_file.path().display(), "the state file is written again");
                return;
            }
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        if !was_unsaved {
            tracing::warn!(
                target: "kube_kms::state", path = %self.state_file.path().display(), error,
                "the state file cannot be written; after a restart this node will have forgotten the key_id that it reports"
            );
        }
    }

    fn succeeded(&mut self) {
        if let Some(reason) = self.record.trouble() {
            tracing::info!(target: "kube_kms::health", was = reason.label(), "the KEK can be used again");
        }
        self.record = Record::after_success(self.plugin.clock().now());
    }

    fn failed(&mut self, fault: &Fault, settings: &Settings) {
        self.record = self.record.after_failure(fault.reason(), self.plugin.clock().now(), &settings.policy);
        tracing::warn!(
            target: "kube_kms::health", reason = fault.reason().label(), failures = self.record.failures(),
            error = fault.known_causes(), "the probe of the KEK failed: {}", fault.reason().phrase()
        );
    }

    /// Judges anew and publishes. `write` replaces the write state.
    fn refresh(&self, settings: &Settings, write: Option<Arc<WriteState>>) {
        let before = self.plugin.published().clone();
        let write = write.or_else(|| before.write.clone());
        let holdings = Holdings { write_state: write.is_some(), known_key_id: self.remembered.key_id.is_some() };
        let state = judge(&self.record, holdings, &settings.policy, self.plugin.clock().now());
        let known = self.remembered.key_id.clone();
        let last_good = self.record.last_good();
        let published = if let State::Revoked { .. } = state {
            let revoked = write.as_ref().map(|w| w.version().kek.clone()).or_else(|| before.revoked.clone());
            Published::new(state, None, known, revoked, last_good)
        } else {
            let previous = self.previous(&before, write.as_deref());
            Published::new(state, write, known, None, last_good).and_previous(previous)
        };
        if published.state.label() != before.state.label() {
            tracing::info!(
                target: "kube_kms::health", state = published.state.label(), was = before.state.label(),
                reason = published.state.because().map_or("none", Reason::label), "state changed"
            );
        }
        let revoked = published.revoked.clone();
        let is_new = matches!(published.state, State::Revoked { .. }) && !matches!(before.state, State::Revoked { .. });
        self.plugin.publish(published);
        // SECURITY: first nobody can seal or open any more, then the DEKs are wiped.
        if let Some(kek) = revoked.filter(|kek| before.revoked.as_ref() != Some(kek)) {
            self.plugin.keyring().wipe(&kek);
            tracing::error!(target: "kube_kms::health", %kek, "the KEK is dead; the data keys under it were wiped");
        } else if is_new {
            // Without a write state nobody knows which KEK that was: whatever reads have brought in must be unwrapped anew.
            let keks = self.plugin.keks();
            self.plugin.keyring().wipe_unless(|kek| !keks.write().kek.may_unwrap(kek));
            tracing::error!(target: "kube_kms::health", "the KEK is dead; the data keys that it may unwrap were wiped");
        }
    }

    /// The write state before a rotation, for a few seconds. A replaced DEK under the same key_id needs none.
    fn previous(&self, before: &Published, write: Option<&WriteState>) -> Option<Previous> {
        let now = self.plugin.clock().now();
        match &before.write {
            Some(old) if write.is_some_and(|new| new.key_id() != old.key_id()) => {
                let until = Moment(now.0.saturating_add(TOLD_FOR_NANOS));
                Some(Previous { write: Arc::clone(old), until })
            }
            _ => before.previous.clone().filter(|previous| now < previous.until),
        }
    }

    /// Prepares and verifies the new KEK, then swaps everything; on any failure the old configuration stays.
    async fn reload(&mut self, reload: Reload) {
        let Reload { keks, settings, reply } = reload;
        let plugin = Arc::clone(&self.plugin);
        let made = prepare(keks.write(), &settings, plugin.clock(), plugin.entropy(), plugin.observer()).await;
        let outcome = match made {
            // What the operator configures is believed at once; only going back to an id that was left is refused.
            Ok(candidate) if self.remembered.left.contains(&candidate.key_id) => Err(Reason::KeyIdRetired.into()),
            // As with a rotation that a probe has seen: the successor has read the same file, and is the one to follow.
            Ok(candidate) if self.is_left_to_a_successor(&candidate.key_id) => {
                let cause = "another instance has taken over and follows the configuration; this one stays as it is";
                Err(Fault::caused_by(Reason::ShuttingDown, cause))
            }
            Ok(candidate) => {
                let key_id = candidate.key_id.clone();
                self.sightings = Sightings::default().after(&key_id);
                self.succeeded();
                let adopted = self.adopt(candidate, &keks, &settings).await;
                adopted.map(|()| self.plugin.reconfigure(keks, settings)).map(|()| key_id)
            }
            Err(fault) => Err(fault),
        };
        // The one who asked may have gone; the reload holds all the same.
        let _ = reply.send(outcome);
    }

    fn next_wait(&self) -> Duration {
        let settings = self.plugin.settings();
        let has_write_state = self.plugin.published().write.is_some();
        // 0.9 to 1.1: many nodes that were started together do not ask together.
        let jitter = 0.9 + 0.2 * self.plugin.random_fraction();
        wait_after(&self.record, has_write_state, self.observing, settings.probe_interval).mul_f64(jitter)
    }
}

/// How long after a round the next one begins, before jitter.
fn wait_after(record: &Record, has_write_state: bool, observing: bool, interval: Duration) -> Duration {
    let retry = RETRY_FIRST
        .saturating_mul(1_u32.checked_shl(record.failures().saturating_sub(1)).unwrap_or(u32::MAX))
        .min(RETRY_LONGEST);
    match record.trouble() {
        None if observing && !has_write_state => RETRY_FIRST,
        None if observing => OBSERVE_AGAIN.min(interval),
        None => interval,
        Some(Reason::KmsThrottled) if has_write_state => interval.saturating_mul(THROTTLED_FACTOR),
        Some(_) => retry,
    }
}

#[cfg(test)]
mod tests;
