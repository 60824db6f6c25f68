//! The plugin: what the three RPCs share, Status and Encrypt. Decrypt is in [`crate::decrypt`].
//!
//! Guarantees: Status and Encrypt read memory only, and both read the same [`Published`], which is swapped as a whole, so
//! they can never disagree; no lock is held across an await. Refuses to know who calls and how.

use crate::kek_set::KekSet;
use crate::keyring::Keyring;
use crate::lane::Proven;
use crate::observer::Observer;
use crate::pace::Pace;
use crate::prepare::Candidate;
use crate::reach::{Reach, Word};
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::write_state::WriteState;
use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::health::{State, StatusRule};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Clock, Entropy, Moment};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// What all requests see at one moment.
#[derive(Debug)]
pub struct Published {
    /// The state of the writing KEK.
    pub state: State,
    /// What Status answers.
    pub status: Result<StatusAnswer, Fault>,
    /// What Encrypt seals with.
    pub write: Option<Arc<WriteState>>,
    /// What it sealed with before a rotation, for the moments in which a caller was told of it but not yet of the new one.
    pub previous: Option<Previous>,
    /// The key_id that is reported, also before there is a write state.
    pub key_id: Option<KeyId>,
    /// The KEK whose DEKs may not be used any more.
    pub revoked: Option<KekRef>,
    /// When a probe last went well.
    pub last_good: Option<Moment>,
    /// Why the outcome of the last probe is refused although the KEK is well.
    pub refused: Option<Reason>,
    /// When what is wrong now began.
    pub began: Option<Moment>,
    encoded: OnceLock<Bytes>,
}

/// A write state that was replaced by one with another key_id.
#[derive(Clone, Debug)]
pub struct Previous {
    /// The write state.
    pub write: Arc<WriteState>,
    /// When it is of no use any more.
    pub until: Moment,
}

/// StatusResponse, but for the version, which is always `v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusAnswer {
    /// `ok`, or a short reason.
    pub healthz: String,
    /// The key_id.
    pub key_id: KeyId,
}

impl Published {
    /// Puts together what belongs together.
    #[must_use]
    pub fn new(
        state: State,
        write: Option<Arc<WriteState>>,
        known: Option<KeyId>,
        revoked: Option<KekRef>,
        last_good: Option<Moment>,
    ) -> Self {
        let key_id = write.as_ref().map(|w| w.key_id().clone()).or(known);
        let status = match (state.status(), &key_id) {
            (StatusRule::Answer { healthz }, Some(key_id)) => Ok(StatusAnswer { healthz, key_id: key_id.clone() }),
            // INVARIANT: never an empty key_id; kube-apiserver would count it as an error of ours.
            (StatusRule::Answer { .. }, None) => Err(Fault::new(Reason::Starting).with_detail(state.because())),
            (StatusRule::Fail(fault), _) => Err(fault),
        };
        let (previous, refused, began, encoded) = (None, None, None, OnceLock::new());
        Self { state, status, write, previous, key_id, revoked, last_good, refused, began, encoded }
    }

    /// What Status answers, and the same as `encode` puts it on the wire, which happens once.
    ///
    /// # Errors
    /// As [`Plugin::status`].
    pub fn status_encoded(
        &self,
        encode: impl FnOnce(&StatusAnswer) -> Bytes,
    ) -> Result<(&StatusAnswer, Bytes), &Fault> {
        let answer = self.status.as_ref()?;
        Ok((answer, self.encoded.get_or_init(|| encode(answer)).clone()))
    }

    /// The same with the write state before a rotation.
    #[must_use]
    pub fn and_previous(self, previous: Option<Previous>) -> Self {
        Self { previous, ..self }
    }

    /// The same with what else is to be said of the probes: why the outcome of the last one is refused, and when what is wrong
    /// began.
    #[must_use]
    pub fn and_history(self, refused: Option<Reason>, began: Option<Moment>) -> Self {
        Self { refused, began, ..self }
    }
}

/// An EncryptResponse in parts: the ciphertext, and the write state with the rest.
#[derive(Debug)]
pub struct Encrypted {
    /// EncryptResponse.ciphertext.
    pub ciphertext: Vec<u8>,
    /// Where key_id and annotations come from.
    pub write: Arc<WriteState>,
}

/// What the plugin is made of.
#[derive(Debug)]
pub struct Parts {
    /// The KEKs.
    pub keks: KekSet,
    /// The operator's settings.
    pub settings: Settings,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Who counts.
    pub observer: Arc<dyn Observer>,
}

/// See the module.
#[derive(Debug)]
pub struct Plugin {
    published: ArcSwap<Published>,
    keks: ArcSwap<KekSet>,
    settings: ArcSwap<Settings>,
    keyring: Arc<Keyring>,
    pace: Pace,
    proven: Proven,
    reach: Reach,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    observer: Arc<dyn Observer>,
    wake: Notify,
    answered: Notify,
}

impl Plugin {
    /// In state `starting`, or `starting-known` with the key_id of last time. The supervisor does the rest.
    #[must_use]
    pub fn new(parts: Parts, known: Option<KeyId>) -> Self {
        let Parts { keks, settings, clock, entropy, observer } = parts;
        let state =
            if known.is_some() { State::StartingKnown { because: None } } else { State::Starting { because: None } };
        let keyring = Arc::new(Keyring::new(settings.cache_capacity, settings.cache_ttl, Arc::clone(&observer)));
        Self {
            published: ArcSwap::from_pointee(Published::new(state, None, known, None, None)),
            keks: ArcSwap::from_pointee(keks),
            settings: ArcSwap::from_pointee(settings),
            keyring,
            pace: Pace::new(),
            proven: Proven::default(),
            reach: Reach::default(),
            clock,
            entropy,
            observer,
            wake: Notify::new(),
            answered: Notify::new(),
        }
    }

    /// Status: from memory.
    ///
    /// # Errors
    /// `starting` without a key_id to report; `outage-too-long`; why the KEK is dead.
    pub fn status(&self) -> Result<StatusAnswer, Fault> {
        self.published.load().status.clone()
    }

    /// Encrypt: from memory.
    ///
    /// # Errors
    /// As Status, and whenever there is no write state; `plaintext-empty`, `plaintext-too-long`; `dek-exhausted`.
    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Encrypted, Fault> {
        let published = self.published.load();
        published.state.may_seal()?;
        self.seal(published.write.as_ref().ok_or(Reason::Starting)?, plaintext)
    }

    /// Seals with this write state, which is the current one or was it a moment ago.
    pub(super) fn seal(&self, write: &Arc<WriteState>, plaintext: &[u8]) -> Result<Encrypted, Fault> {
        let sealed = write.seal(&*self.entropy, plaintext)?;
        if sealed.renewal_due {
            self.wake.notify_one();
        }
        Ok(Encrypted { ciphertext: sealed.ciphertext, write: Arc::clone(write) })
    }

    /// What can be said now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let published = self.published.load();
        let now = self.clock.now();
        let write = published.write.as_deref();
        let outage = match published.state {
            State::Coasting { .. } | State::Degraded { .. } | State::Stopped { .. } => {
                published.last_good.map(|when| now.since(when))
            }
            _ => None,
        };
        Snapshot {
            state: published.state.label(),
            because: published.state.because().or(published.refused),
            since: published.began.map(|when| now.since(when)),
            is_ok: published.status.as_ref().is_ok_and(|s| s.healthz == "ok"),
            outage,
            key_id: published.key_id.clone(),
            kek: write.map(|w| w.version().clone()),
            recovery: write.map(|w| w.recovery().to_vec()).unwrap_or_default(),
            dek_age: write.map(|w| now.since(w.born())),
            dek_uses: write.map(WriteState::uses),
            last_good_probe: published.last_good.map(|when| now.since(when)),
            deletion: self.keks.load().write().kek.deletion_date(),
            keyring_entries: self.keyring.len(),
            keyring_capacity: self.settings.load().cache_capacity,
        }
    }

    /// Wipes every DEK: for the end of the process.
    pub fn wipe(&self) {
        let state = State::Starting { because: Some(Reason::ShuttingDown) };
        self.published.store(Arc::new(Published::new(state, None, None, None, None)));
        self.keyring.wipe_unless(|_| false);
    }

    /// What all requests see now.
    #[must_use]
    pub fn published(&self) -> Guard<Arc<Published>> {
        self.published.load()
    }

    /// The KEKs of the current configuration.
    #[must_use]
    pub fn keks(&self) -> Arc<KekSet> {
        self.keks.load_full()
    }

    /// The settings of the current configuration.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub(super) fn publish(&self, published: Published) {
        self.published.store(Arc::new(published));
    }

    pub(super) fn reconfigure(&self, keks: KekSet, settings: Settings) {
        self.keyring.configure(settings.cache_capacity, settings.cache_ttl);
        self.keyring.wipe_unless(|kek| keks.may_unwrap(kek));
        self.keks.store(Arc::new(keks));
        self.settings.store(Arc::new(settings));
        self.reach.forget();
    }

    pub(super) const fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    pub(super) const fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(super) const fn proven(&self) -> &Proven {
        &self.proven
    }

    pub(super) const fn reach(&self) -> &Reach {
        &self.reach
    }

    /// What a probe of the writing KEK says about it. Only that it answers or not: a probe wraps too, so a denial or a dead answer
    /// may be of the key that an alias points at, or of wrapping, and unwraps under our KEK are asked for themselves.
    pub(super) fn probed(&self, made: Result<&Candidate, &Fault>) {
        let write = self.published.load().write.clone();
        let (kek, word) = match made {
            Ok(candidate) => (Some(&candidate.version().kek), Some(Word::Good)),
            Err(fault) => (write.as_ref().map(|write| &write.version().kek), Word::of(fault, &self.settings().policy)),
        };
        if let (Some(kek), Some(word @ (Word::Good | Word::Silence | Word::Throttled))) = (kek, word) {
            self.reach.note(kek, word, self.clock.now());
        }
    }

    /// Whether calls under that KEK are known to have no answer, so that waiting for one is hardly worth it.
    pub(super) fn is_away(&self, kek: &KekRef) -> bool {
        if self.reach.is_away(kek, self.clock.now()) {
            return true;
        }
        // Before the first write state a probe cannot say which KEK it was that did not answer.
        let published = self.published.load();
        published.write.is_none() && published.state.is_outage() && self.keks.load().write().kek.may_unwrap(kek)
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(super) fn entropy(&self) -> &dyn Entropy {
        &*self.entropy
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Wakes the supervisor before its time: a DEK is used up, or an outage is suspected.
    pub(super) const fn wake(&self) -> &Notify {
        &self.wake
    }

    /// An unwrap failed in a way that an outage would explain: the supervisor looks now and not at the next interval, so
    /// that expired DEKs serve at once and callers hear soon.
    pub(super) fn suspect_outage(&self, kek: &KekRef) {
        if self.keks.load().write().kek.may_unwrap(kek) {
            self.wake.notify_one();
        }
    }

    /// The writing KEK has unwrapped something: when it was thought to be away, it is back or nearly.
    pub(super) fn kek_answers(&self, kek: &KekRef) {
        let is_away = matches!(
            self.published.load().state,
            State::Coasting { .. } | State::Degraded { .. } | State::Stopped { .. }
        );
        if is_away && self.keks.load().write().kek.may_unwrap(kek) {
            self.answered.notify_one();
        }
    }

    /// Tells the supervisor of such an answer.
    pub(super) const fn answered(&self) -> &Notify {
        &self.answered
    }

    /// A number from 0 (inclusive) to 1, for jitter; 0.5 when there is no randomness.
    pub(super) fn random_fraction(&self) -> f64 {
        let mut bytes = [0_u8; 2];
        match self.entropy.fill(&mut bytes) {
            Ok(()) => f64::from(u16::from_be_bytes(bytes)) / f64::from(u16::MAX),
            Err(_) => 0.5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{settings, write_state};
    use crate::probe_fixture::{HandClock, Remembering, ScriptedKek, key_id_of, plugin};
    use kube_kms_core::kek_ref::KekKind;
    use std::time::Duration;

    const AGE: Duration = Duration::from_secs(7200);
    const REASON: Reason = Reason::KmsUnreachable;

    fn plugin_in(state: State, write: bool, known: bool) -> Arc<Plugin> {
        let plugin = plugin(
            &ScriptedKek::new("A"),
            settings(),
            &Arc::new(HandClock::default()),
            &Arc::new(Remembering::default()),
            None,
        );
        let write = write.then(|| Arc::new(write_state(&settings())));
        plugin.publish(Published::new(state, write, known.then(|| key_id_of("B", 0)), None, Some(Moment(0))));
        plugin
    }

    /// A state, with what Status and Encrypt answer when there is a write state: healthz or a reason, and a reason.
    type Row = (State, Result<&'static str, Reason>, Result<(), Reason>);

    fn states() -> [Row; 7] {
        let because = REASON;
        [
            (State::Starting { because: Some(because) }, Err(Reason::Starting), Err(Reason::Starting)),
            (State::StartingKnown { because: Some(because) }, Ok("starting: kms-unreachable"), Err(Reason::Starting)),
            (State::Ready, Ok("ok"), Ok(())),
            (State::Coasting { because, age: AGE }, Ok("ok"), Ok(())),
            (State::Degraded { because, age: AGE }, Ok("kms-unreachable for 120 min, serving from memory"), Ok(())),
            (State::Stopped { because, age: AGE }, Err(Reason::OutageTooLong), Err(Reason::OutageTooLong)),
            (State::Revoked { because: Reason::KekGone }, Err(Reason::KekGone), Err(Reason::KekGone)),
        ]
    }

    #[test]
    fn status_and_encrypt_answer_in_every_state_as_the_policy_says_and_agree_on_the_key_id() {
        assert_eq!(states().map(|(state, ..)| state.label()), State::LABELS);
        for (state, status, encrypt) in states() {
            let plugin = plugin_in(state.clone(), true, true);
            let answer = plugin.status();
            let sealed = plugin.encrypt(b"seed");
            assert_eq!(answer.as_ref().map(|a| a.healthz.as_str()).map_err(Fault::reason), status, "{state:?}");
            assert_eq!(sealed.as_ref().map(|_| ()).map_err(Fault::reason), encrypt, "{state:?}");
            if let (Ok(answer), Ok(sealed)) = (answer, sealed) {
                assert_eq!(answer.key_id, *sealed.write.key_id());
                assert_ne!(answer.key_id, key_id_of("B", 0), "the write state goes before what is remembered");
            }
        }
    }

    #[test]
    fn without_a_write_state_nothing_is_sealed_and_without_a_key_id_nothing_is_reported() {
        for (state, ..) in states() {
            let plugin = plugin_in(state.clone(), false, false);
            assert!(plugin.encrypt(b"seed").is_err(), "{state:?}");
            assert!(plugin.status().is_err(), "never an empty key_id: {state:?}");
        }
        let known = plugin_in(State::StartingKnown { because: None }, false, true);
        assert_eq!(known.status().unwrap().key_id, key_id_of("B", 0));
        assert!(known.encrypt(b"seed").is_err());
    }

    #[test]
    fn a_snapshot_says_what_status_says_and_how_long_the_kms_has_been_away() {
        for (state, status, _) in states() {
            let snapshot = plugin_in(state.clone(), true, true).snapshot();
            assert_eq!(snapshot.state, state.label());
            assert_eq!(snapshot.because, state.because());
            assert_eq!(snapshot.is_ok, status == Ok("ok"), "{state:?}");
            let is_away = matches!(state, State::Coasting { .. } | State::Degraded { .. } | State::Stopped { .. });
            assert_eq!(snapshot.outage.is_some(), is_away, "{state:?}");
        }
    }

    #[tokio::test]
    async fn the_seal_that_uses_up_a_dek_wakes_the_supervisor_and_no_other_does() {
        let plugin = plugin_in(State::Ready, false, false);
        let few = Settings { dek_max_uses: 2, ..settings() };
        let write = Some(Arc::new(write_state(&few)));
        plugin.publish(Published::new(State::Ready, write, None, None, None));
        let is_woken = || async { tokio::time::timeout(Duration::ZERO, plugin.wake().notified()).await.is_ok() };
        plugin.encrypt(b"seed").unwrap();
        assert!(!is_woken().await);
        plugin.encrypt(b"seed").unwrap();
        assert!(is_woken().await);
        plugin.encrypt(b"seed").unwrap();
        assert!(!is_woken().await);
    }

    #[test]
    fn of_a_probe_that_failed_only_silence_is_held_against_the_kek_that_writes() {
        for (reason, is_silent) in [(Reason::KmsUnreachable, true), (Reason::PolicyDenied, false)] {
            let plugin = plugin_in(State::Ready, true, true);
            let kek = plugin.published().write.as_ref().unwrap().version().kek.clone();
            plugin.probed(Err(&Fault::new(reason)));
            assert_eq!(plugin.reach().is_silent(&kek, plugin.clock().now()), is_silent, "{reason}");
        }
    }

    #[tokio::test]
    async fn the_supervisor_is_woken_by_the_silence_of_the_writing_kek_and_told_when_it_answers_in_an_outage() {
        let [writing, other] = ["kek", "gone"].map(|name| KekRef::new(KekKind::LOCAL, name).unwrap());
        let has_come = |notify: &'static str, plugin: &Arc<Plugin>| {
            let plugin = Arc::clone(plugin);
            async move {
                let notify = if notify == "wake" { plugin.wake() } else { plugin.answered() };
                tokio::time::timeout(Duration::ZERO, notify.notified()).await.is_ok()
            }
        };
        let ready = plugin_in(State::Ready, true, true);
        ready.suspect_outage(&other);
        assert!(!has_come("wake", &ready).await);
        ready.suspect_outage(&writing);
        assert!(has_come("wake", &ready).await);
        ready.kek_answers(&writing);
        assert!(!has_come("answered", &ready).await, "nobody thought it away");
        let away = plugin_in(State::Coasting { because: REASON, age: AGE }, true, true);
        away.kek_answers(&other);
        assert!(!has_come("answered", &away).await);
        away.kek_answers(&writing);
        assert!(has_come("answered", &away).await);
    }

    #[test]
    fn jitter_is_spread_over_all_of_its_range() {
        let plugin = plugin_in(State::Ready, true, true);
        let drawn: Vec<_> = (0..1000).map(|_| plugin.random_fraction()).collect();
        assert!(drawn.iter().all(|fraction| (0.0..=1.0).contains(fraction)));
        assert!(drawn.iter().any(|fraction| *fraction < 0.25) && drawn.iter().any(|fraction| *fraction > 0.75));
    }

    #[test]
    fn malformed_plaintexts_are_refused_and_the_limits_are_those_of_the_format() {
        let plugin = plugin_in(State::Ready, true, true);
        assert_eq!(plugin.encrypt(b"").unwrap_err().reason(), Reason::PlaintextEmpty);
        assert_eq!(plugin.encrypt(&[0; 996]).unwrap_err().reason(), Reason::PlaintextTooLong);
        assert_eq!(plugin.encrypt(&[0; 995]).unwrap().ciphertext.len(), 1024);
    }

    #[test]
    fn after_the_wipe_at_the_end_nothing_seals_and_nothing_is_held() {
        let plugin = plugin_in(State::Ready, true, true);
        let write = plugin.encrypt(b"seed").unwrap().write;
        plugin.keyring().insert(write.annotations(), Arc::clone(write.dek()), Moment(0));
        plugin.wipe();
        assert!(plugin.keyring().is_empty() && plugin.published().write.is_none());
        assert_eq!(plugin.encrypt(b"seed").unwrap_err().reason(), Reason::Starting);
        assert!(plugin.status().is_err());
    }

    #[test]
    fn a_reconfiguration_drops_the_deks_of_keks_that_are_gone_and_keeps_the_others() {
        let plugin = plugin_in(State::Ready, true, true);
        for identity in ["kek", "gone"] {
            let kek = KekRef::new(KekKind::LOCAL, identity).unwrap();
            let wrapped = kube_kms_core::annotation::WrappedDek::parse(identity.as_bytes().to_vec()).unwrap();
            let annotations = kube_kms_core::annotation::Annotations::new(&kek, &wrapped);
            plugin.keyring().insert(&annotations, Arc::clone(write_state(&settings()).dek()), Moment(0));
        }
        assert_eq!(plugin.keyring().len(), 2);
        plugin.reconfigure((*plugin.keks()).clone(), Settings { epoch: 9, ..settings() });
        assert_eq!((plugin.keyring().len(), plugin.settings().epoch), (1, 9));
    }
}
