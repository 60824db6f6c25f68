//! The background: probes the writing KEK, replaces DEKs, notices rotation and revocation, publishes what requests see.
//!
//! One task, so nothing here races. Each round makes a [`Candidate`]; the pure functions of `core::rotation` and
//! `core::health` decide what becomes of it and what is published. Guarantees: a key_id is on disk before it is
//! reported, or the disk stalls and that is said; a state begins at its moment, whatever a probe does; a failed reload
//! changes nothing.

use crate::kek_set::KekSet;
use crate::plugin::{Plugin, Previous, Published};
use crate::prepare::{Candidate, prepare, probe};
use crate::recovery;
use crate::rhythm::{at_change, later, wait_after};
use crate::saver::{Disk, Saver};
use crate::settings::Settings;
use crate::state_file::Remembered;
use crate::write_state::WriteState;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::health::{self, Holdings, Record, State, Testimony, judge};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::Moment;
use kube_kms_core::rotation::{Decision, Reported, Sightings, decide};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

/// How long an Encrypt is answered from the write state that its own connection was told of before a rotation: kube-apiserver
/// sends it right after the Status.
const TOLD_FOR_NANOS: u64 = 5_000_000_000;
/// What the operator should settle is said again after this time, and not with every probe.
const REMIND: Duration = Duration::from_secs(3600);

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
    saver: Saver,
    is_displaced: IsDisplaced,
    remembered: Remembered,
    /// What this node remembers, when the disk was too slow to say so at the start.
    late: Option<JoinHandle<Remembered>>,
    /// When a refused KEK version was last spoken of.
    reminded: Option<Moment>,
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
    pub fn new(plugin: Arc<Plugin>, disk: impl Disk + 'static, remembered: Remembered) -> Self {
        Self {
            plugin,
            saver: Saver::new(Box::new(disk)),
            is_displaced: Box::new(|| false),
            remembered,
            late: None,
            reminded: None,
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

    /// With what this node remembers still to be read. Nothing is written until it is there.
    #[must_use]
    pub fn with_late_memory(mut self, late: Option<JoinHandle<Remembered>>) -> Self {
        if late.is_some() {
            self.saver.hold();
        }
        Self { late, ..self }
    }

    /// Runs until `reloads` is closed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the supervision; what is published stays as it is.
    pub async fn run(mut self, mut reloads: mpsc::Receiver<Reload>) {
        loop {
            self.round().await;
            let ended = Instant::now();
            let mut due = later(ended, self.next_wait());
            let plugin = Arc::clone(&self.plugin);
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    () = plugin.wake().notified() => break,
                    // A KMS that throttles us answers: asked as often as one that is well, and not more.
                    () = plugin.answered().notified() => {
                        due = due.min(later(ended, self.jittered(plugin.settings().probe_interval)));
                    }
                    () = at_change(self.next_change()) => {
                        self.refresh(&plugin.settings(), None);
                        due = due.min(later(Instant::now(), self.next_wait()));
                    }
                    _ = self.saver.landed() => {}
                    known = finished(&mut self.late) => self.recall(known),
                    reload = reloads.recv() => match reload {
                        Some(reload) => {
                            self.reload(reload).await;
                            break;
                        }
                        None => return,
                    },
                }
            }
        }
    }

    /// One probe and what follows from it.
    async fn round(&mut self) {
        // What could not be written is tried again, so that a restart after the disk is back does not go back to an older key_id
        // (tested by `a_key_id_that_could_not_be_remembered_is_remembered_when_the_disk_is_back`).
        self.saver.go_on();
        let settings = self.plugin.settings();
        let keks = self.plugin.keks();
        let write = self.plugin.published().write.clone();
        let probed = self.meanwhile(&settings, probe(&self.plugin, &keks, &settings, write.as_deref())).await;
        self.observing = false;
        self.plugin.probed(probed.as_ref().map_err(|(fault, _)| fault));
        match probed {
            Ok(candidate) => self.consider(candidate, &keks, &settings).await,
            Err((fault, says)) => self.failed(&fault, says, &settings),
        }
        self.refresh(&settings, None);
    }

    /// The outcome of this work; a state that begins while it lasts begins at its moment.
    async fn meanwhile<T>(&self, settings: &Settings, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = at_change(self.next_change()) => self.refresh(settings, None),
            }
        }
    }

    fn next_change(&self) -> Option<Duration> {
        health::next_change(&self.record, &self.plugin.settings().policy, self.plugin.clock().now())
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
                // The KEK is well from now on, however long the disk and the recovery KEKs take.
                self.refresh(settings, None);
                if let Err(fault) = self.adopt(candidate, keks, settings).await {
                    self.failed(&fault, Testimony::Silent, settings);
                }
            }
            Decision::RefuseRetired => self.refused(&candidate.key_id),
        }
    }

    /// The KMS is well and our data key is well: what is wrong is for the operator to settle, and no outage.
    fn refused(&mut self, key_id: &KeyId) {
        self.succeeded();
        let now = self.plugin.clock().now();
        self.record = Record::after_refusal(Reason::KeyIdRetired, now);
        if self.reminded.is_none_or(|last| now.since(last) >= REMIND) {
            self.reminded = Some(now);
            tracing::warn!(
                target: "kube_kms::rotation", reason = Reason::KeyIdRetired.label(), answered = %key_id,
                "the KMS answers with a KEK version that this node reported before and left: {}",
                Reason::KeyIdRetired.phrase()
            );
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
            // INVARIANT: on disk before it is reported, or the disk stalls and that is said (tested by
            // `a_key_id_is_on_disk_before_it_is_reported`). The file is a help, never a need.
            self.saver.save(&self.remembered).await;
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

    /// The disk has said, late, what this node remembers. What was reported meanwhile stays reported.
    fn recall(&mut self, known: Result<Remembered, JoinError>) {
        self.late = None;
        let earlier = known.unwrap_or_default();
        let reported = self.remembered.key_id.clone();
        if reported.as_ref().is_some_and(|key_id| earlier.left.contains(key_id)) {
            tracing::warn!(
                target: "kube_kms::state",
                "this node reports a key_id again that it had left: the state file could not be read when it started"
            );
        }
        self.remembered = self.remembered.and_earlier(earlier);
        tracing::info!(target: "kube_kms::state", left = self.remembered.left.len(), "the state file has been read");
        self.saver.release(reported.is_some().then_some(&self.remembered));
        self.refresh(&self.plugin.settings(), None);
    }

    fn succeeded(&mut self) {
        if let Some(reason) = self.record.trouble() {
            tracing::info!(target: "kube_kms::health", was = reason.label(), "the KEK can be used again");
        }
        self.record = Record::after_success(self.plugin.clock().now());
    }

    fn failed(&mut self, fault: &Fault, says: Testimony, settings: &Settings) {
        self.record = self.record.after_failure(fault.reason(), says, self.plugin.clock().now(), &settings.policy);
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
        let published = published.and_history(self.record.refused(), self.record.began());
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
        let (plugin, before) = (Arc::clone(&self.plugin), self.plugin.settings());
        let preparing = prepare(keks.write(), &settings, plugin.clock(), plugin.entropy(), plugin.observer());
        let made = self.meanwhile(&before, preparing).await;
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
        let published = self.plugin.published();
        self.jittered(wait_after(&self.record, &published.state, self.observing, settings.probe_interval))
    }

    fn jittered(&self, wait: Duration) -> Duration {
        let span = health::JITTER_MOST - health::JITTER_LEAST;
        wait.mul_f64(health::JITTER_LEAST + span * self.plugin.random_fraction())
    }
}

async fn finished(late: &mut Option<JoinHandle<Remembered>>) -> Result<Remembered, JoinError> {
    match late {
        Some(late) => late.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
