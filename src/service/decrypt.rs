//! Decrypt: find the DEK by its wrapped form, open. The network is asked only for a wrapped DEK never seen before.
//!
//! Guarantees: never wrong bytes (everything is authenticated, key_id and annotations included); one unwrap per distinct
//! wrapped DEK however many callers wait; while a KEK does not answer, everything known under it goes on serving, and nothing
//! else does past its time (docs/failure-modes.md has the table, `decrypt/revocation.rs` tries each row). SPEC: kube-apiserver
//! caches a wrong answer for a day, so an error is always better; docs/format.md.

#[cfg(test)]
mod outage;
#[cfg(test)]
mod revocation;
#[cfg(test)]
mod route;
mod word;

use crate::keyring::{Entry, Found, Joined, Progress};
use crate::lane::Lane;
use crate::observer::KeyringEvent;
use crate::plugin::Plugin;
use crate::reach::Word;
use crate::unwrap::{self, Readers};
use crate::write_state::WriteState;
use kube_kms_core::annotation::{AdditionalData, Annotations, DekName, RecoveryWrap};
use kube_kms_core::envelope::Envelope;
use kube_kms_core::fault::{Class, Fault, Reason};
use kube_kms_core::health::Policy;
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::key_id::KeyId;
use kube_kms_core::uid::Uid;
use kube_kms_span as span;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument;
use word::{first_word, last_word};
use zeroize::Zeroizing;

/// How long an unwrap is waited for while its KEK is known to be away, or while there is something else to serve.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(1);

/// What kube-apiserver passes back.
#[derive(Debug)]
pub struct DecryptInput<'a> {
    /// DecryptRequest.ciphertext.
    pub ciphertext: &'a [u8],
    /// DecryptRequest.key_id.
    pub key_id: String,
    /// DecryptRequest.annotations.
    pub annotations: BTreeMap<String, Vec<u8>>,
    /// DecryptRequest.uid.
    pub uid: &'a Uid,
    /// How long the caller waits.
    pub patience: Duration,
}

/// Where the DEK came from, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DekSource {
    /// The write state.
    WriteState,
    /// The keyring.
    Keyring,
    /// An unwrap that this call started.
    Unwrapped,
    /// An unwrap that another call had started.
    Joined,
    /// The keyring, past its time, because its KEK does not answer.
    Expired,
    /// A recovery KEK, because the primary is away or dead.
    Recovered,
}

impl DekSource {
    /// As it is spelled in the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::WriteState => "write-state",
            Self::Keyring => "keyring",
            Self::Unwrapped => "unwrapped",
            Self::Joined => "joined",
            Self::Expired => "expired",
            Self::Recovered => "recovered",
        }
    }
}

/// What the keyring says of a DEK.
enum Known {
    /// It can be served.
    Serve(Arc<Entry>, DekSource),
    /// A KEK has to be asked; `expired` is what can be served when it does not answer.
    Ask { expired: Option<Arc<Entry>> },
}

/// Which KEKs are asked for a DEK that memory does not have.
enum Route {
    /// Only the one that wrapped it first.
    Primary,
    /// That one, and a recovery KEK when it fails.
    PrimaryFirst,
    /// It is away: a recovery KEK, and then that one.
    RecoveryFirst,
    /// It is dead, and glass may be broken.
    RecoveryOnly,
}

/// Who wants a DEK.
struct Caller<'a> {
    key_id: &'a KeyId,
    annotations: &'a Annotations,
    uid: &'a Uid,
}

type Obtained = Result<(Arc<Entry>, DekSource), Fault>;

/// A value that opened.
#[derive(Debug)]
pub struct Opened {
    /// Exactly the bytes that were given to Encrypt; wiped on drop.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Where the DEK came from.
    pub source: DekSource,
    /// The key_id that was passed back, parsed.
    pub key_id: KeyId,
}

impl Plugin {
    /// Opens what Encrypt of this or another replica sealed.
    ///
    /// # Errors
    /// Malformed input; `open-failed`, `wrapped-dek-rejected`; `kek-not-configured`; those of the KEK provider;
    /// `deadline`, `overloaded`.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the call; an unwrap that it started goes on and fills the keyring.
    pub async fn decrypt(self: &Arc<Self>, input: DecryptInput<'_>) -> Result<Opened, Fault> {
        let envelope = Envelope::parse(input.ciphertext)?;
        let key_id = KeyId::parse(input.key_id)?;
        let annotations = Annotations::parse(input.annotations)?;
        if let Some(plaintext) = self.open_with_write_state(envelope, &key_id, &annotations)? {
            return Ok(Opened { plaintext, source: DekSource::WriteState, key_id });
        }
        let caller = Caller { key_id: &key_id, annotations: &annotations, uid: input.uid };
        let (entry, source) = self.entry(&caller, input.patience).await?;
        let aad = entry.aad(&key_id, &annotations);
        let plaintext = entry.dek().open(envelope, &aad)?;
        if source != DekSource::Keyring {
            self.proven().note(annotations.kek(), &key_id);
            entry.remember(&key_id, &annotations, aad);
        }
        Ok(Opened { plaintext, source, key_id })
    }

    /// The DEK that seals now opens without a look into the keyring, and whatever its capacity.
    fn open_with_write_state(
        &self,
        envelope: Envelope<'_>,
        key_id: &KeyId,
        annotations: &Annotations,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        let published = self.published();
        if published.revoked.as_ref() == Some(annotations.kek()) {
            if self.keks().break_glass() {
                return Ok(None);
            }
            return Err(published.state.because().map_or_else(|| Reason::KekGone.into(), Fault::new));
        }
        let Some(write) = &published.write else { return Ok(None) };
        if write.annotations().wrapped_dek() != annotations.wrapped_dek() || write.version().kek != *annotations.kek() {
            return Ok(None);
        }
        let same = write.key_id() == key_id && write.annotations() == annotations;
        let aad = if same { *write.aad() } else { AdditionalData::bind(key_id, annotations.all()) };
        let plaintext = write.dek().open(envelope, &aad)?;
        self.observer().keyring(KeyringEvent::Hit);
        Ok(Some(plaintext))
    }

    /// The DEK for these annotations: from the keyring, from its KEK, or from a recovery KEK.
    async fn entry(self: &Arc<Self>, caller: &Caller<'_>, patience: Duration) -> Obtained {
        let expired = match self.known(caller.annotations, Readers::Primary, caller.uid)? {
            Known::Serve(entry, source) => return Ok((entry, source)),
            Known::Ask { expired } => expired,
        };
        let keks = self.keks();
        // Nearly always empty: without recovery KEKs in the configuration nothing is parsed.
        let recovery = if keks.has_recovery() { caller.annotations.recovery() } else { Vec::new() };
        let half = patience.checked_div(2).unwrap_or_default();
        match self.route(caller.annotations.kek(), &recovery) {
            Route::Primary => self.primary(caller, expired, patience).await,
            Route::PrimaryFirst => match self.primary(caller, expired, half).await {
                Err(fault) if may_recover(&fault, &self.settings().policy, keks.break_glass()) => {
                    // The primary's fault is the one to report: it is what an operator must mend.
                    self.recover(caller, &recovery, half).await.map_err(|_| fault)
                }
                outcome => outcome,
            },
            Route::RecoveryFirst => match self.recover(caller, &recovery, half).await {
                Ok(recovered) => Ok(recovered),
                Err(_) => self.primary(caller, expired, half).await,
            },
            Route::RecoveryOnly => self.recover(caller, &recovery, patience).await,
        }
    }

    fn route(&self, primary: &KekRef, recovery: &[RecoveryWrap]) -> Route {
        if recovery.is_empty() {
            Route::Primary
        } else if self.published().revoked.as_ref() == Some(primary) {
            Route::RecoveryOnly
        } else if self.is_away(primary) {
            Route::RecoveryFirst
        } else {
            Route::PrimaryFirst
        }
    }

    /// Looks into the keyring and decides whether anybody has to be asked. A DEK past its time is excused by its own KEK only.
    fn known<'a>(self: &Arc<Self>, name: impl Into<DekName<'a>>, readers: Readers, uid: &Uid) -> Result<Known, Fault> {
        let (name, now) = (name.into(), self.clock().now());
        match self.keyring().find(name, now) {
            Found::Fresh(entry) => {
                self.observer().keyring(KeyringEvent::Hit);
                Ok(Known::Serve(entry, DekSource::Keyring))
            }
            Found::Expired(entry) => {
                let excuse = self.reach().excuse(name.kek, entry.unanswered(), now);
                let Some(excuse) = excuse.filter(|_| !self.is_denied_for_good(name.kek)) else {
                    return Ok(Known::Ask { expired: Some(entry) });
                };
                if excuse.ask_again {
                    // Nobody waits for it: the KEK that is back, or dead, is noticed by those who read next.
                    drop(self.ask(name, readers, Lane::Known, uid));
                }
                self.observer().keyring(KeyringEvent::ServedExpired);
                Ok(Known::Serve(entry, DekSource::Expired))
            }
            Found::Refused(fault) => {
                self.observer().keyring(KeyringEvent::RefusedAgain);
                Err(fault)
            }
            Found::Absent => Ok(Known::Ask { expired: None }),
        }
    }

    /// The DEK from the KEK that wrapped it first.
    async fn primary(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        expired: Option<Arc<Entry>>,
        patience: Duration,
    ) -> Obtained {
        if !self.keks().may_unwrap(caller.annotations.kek()) {
            return Err(Reason::KekNotConfigured.into());
        }
        self.unwrapped(caller, caller.annotations.into(), Readers::Primary, expired, patience).await
    }

    /// The same DEK from the first recovery KEK that has it.
    ///
    /// SECURITY: it is kept under the name of the recovery wrap and not of the primary's, so that an annotation that somebody
    /// exchanged in etcd cannot put a wrong DEK in the place of a right one.
    async fn recover(self: &Arc<Self>, caller: &Caller<'_>, recovery: &[RecoveryWrap], patience: Duration) -> Obtained {
        let mut last = Fault::new(Reason::KekNotConfigured);
        for wrap in recovery {
            if self.keks().recovery_readers(&wrap.kek).next().is_none() {
                continue;
            }
            let found = match self.known(wrap, Readers::Recovery, caller.uid) {
                Ok(Known::Serve(entry, source)) => Ok((entry, source)),
                Ok(Known::Ask { expired }) => {
                    self.unwrapped(caller, wrap.into(), Readers::Recovery, expired, patience).await
                }
                Err(fault) => Err(fault),
            };
            match found {
                Ok((entry, _)) => return Ok((entry, DekSource::Recovered)),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    /// Asks the KEK and waits for it, no longer than `patience`; what is past its time serves when the KEK does not answer.
    async fn unwrapped(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        name: DekName<'_>,
        readers: Readers,
        expired: Option<Arc<Entry>>,
        patience: Duration,
    ) -> Obtained {
        let Some(entry) = expired else {
            // With little hope the caller hears well before its deadline.
            let patience = if self.is_away(name.kek) { patience.min(OUTAGE_PATIENCE) } else { patience };
            let (mut waiting, source) = self.ask(name, readers, self.lane(caller), caller.uid)?;
            let outcome = last_word(&mut waiting, patience).await;
            return outcome.unwrap_or_else(|| Err(self.why_nothing_came(name.kek))).map(|entry| (entry, source));
        };
        let outcome = match self.ask(name, readers, Lane::Known, caller.uid) {
            Ok((mut waiting, source)) => {
                let outcome = first_word(&mut waiting, patience.min(OUTAGE_PATIENCE)).await;
                outcome.unwrap_or_else(|| Err(self.why_nothing_came(name.kek))).map(|entry| (entry, source))
            }
            Err(fault) => Err(fault),
        };
        match outcome {
            Err(fault) if self.may_serve_expired(name.kek, &fault) => {
                self.observer().keyring(KeyringEvent::ServedExpired);
                Ok((entry, DekSource::Expired))
            }
            outcome => outcome,
        }
    }

    /// Where this caller's unwrap waits.
    fn lane(&self, caller: &Caller<'_>) -> Lane {
        let kek = caller.annotations.kek();
        let is_ours = |write: &Arc<WriteState>| write.key_id() == caller.key_id && write.version().kek == *kek;
        if self.published().write.as_ref().is_some_and(is_ours) {
            self.proven().note(kek, caller.key_id);
        }
        self.proven().lane(kek, caller.key_id)
    }

    /// Joins or starts the unwrap, which goes on whether anybody waits for it or not.
    ///
    /// # Errors
    /// `overloaded`.
    pub(super) fn ask(
        self: &Arc<Self>,
        name: DekName<'_>,
        readers: Readers,
        lane: Lane,
        uid: &Uid,
    ) -> Result<(watch::Receiver<Progress>, DekSource), Fault> {
        let (flight, waiting) = match self.keyring().join(name)? {
            Joined::Waiting(waiting) => {
                self.observer().keyring(KeyringEvent::Joined);
                return Ok((waiting, DekSource::Joined));
            }
            Joined::Started(flight, waiting) => (flight, waiting),
        };
        self.observer().keyring(KeyringEvent::Miss);
        let plugin = Arc::clone(self);
        let (kek, wrapped, uid) = (name.kek.clone(), name.wrapped.to_vec(), uid.clone());
        // INVARIANT: a task of its own, so that it outlives the caller (docs/conformance.md, item 58).
        let scope = span::here();
        tokio::spawn(
            async move {
                let unwrapping = async {
                    let name = DekName { kek: &kek, wrapped: &wrapped };
                    let outcome = unwrap::unwrap_dek(&plugin, name, readers, lane, &uid, &flight).await;
                    flight.settle(outcome, plugin.clock().now());
                };
                scope.within(pin!(unwrapping)).await;
            }
            .in_current_span(),
        );
        Ok((waiting, DekSource::Unwrapped))
    }

    /// It may have become known while this call waited in the queue.
    fn why_nothing_came(&self, kek: &KekRef) -> Fault {
        let is_silent = self.reach().is_silent(kek, self.clock().now()) || self.is_away(kek);
        if is_silent { Reason::KmsUnreachable } else { Reason::Deadline }.into()
    }

    fn is_denied_for_good(&self, kek: &KekRef) -> bool {
        self.reach().is_denied_for_good(kek, &self.settings().policy, self.clock().now())
    }

    fn may_serve_expired(&self, kek: &KekRef, fault: &Fault) -> bool {
        match Word::of(fault, &self.settings().policy) {
            Some(Word::Dead) => false,
            Some(Word::Denied) => !self.is_denied_for_good(kek),
            _ => fault.class().is_transient(),
        }
    }
}

/// Whether a recovery KEK may stand in after this fault of the primary. SECURITY: a disabled key is often meant to be, and so is a
/// key store that is closed where the operator says so (`outage.onUnusable: revoke`); that takes the operator's word.
fn may_recover(fault: &Fault, policy: &Policy, break_glass: bool) -> bool {
    let class = fault.class();
    if policy.is_final(fault.reason()) {
        return break_glass;
    }
    class.is_transient() || (break_glass && matches!(class, Class::KekDead | Class::KekDenied | Class::KekUnknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decrypt_fixture::{Line, ScriptedKek, annotations, begin_outage, decrypt, plugin};
    use kube_kms_core::health::{OnDenied, OnUnusable};
    use tokio::time::Instant;

    const PATIENCE: Duration = Duration::from_millis(2750);
    const AT_ONCE: Line = Line::Unwrap(Duration::ZERO);
    const SLOW: Line = Line::Unwrap(Duration::from_millis(500));

    /// How one Decrypt ended, and after how long.
    async fn timed(plugin: &Arc<Plugin>, n: u32) -> (Result<DekSource, Reason>, Duration) {
        let began = Instant::now();
        let outcome = decrypt(plugin, n, PATIENCE).await;
        (outcome.map(|opened| opened.source).map_err(|fault| fault.reason()), began.elapsed())
    }

    async fn source(plugin: &Arc<Plugin>, n: u32) -> Result<DekSource, Reason> {
        timed(plugin, n).await.0
    }

    fn spawn(plugin: &Arc<Plugin>, n: u32) -> tokio::task::JoinHandle<Result<DekSource, Reason>> {
        let plugin = Arc::clone(plugin);
        tokio::spawn(async move { source(&plugin, n).await })
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_callers_of_one_dek_cost_one_unwrap() {
        let kek = ScriptedKek::new("k", &[SLOW]);
        let plugin = plugin(&[&kek], |_| {});
        let callers: Vec<_> = (0..500).map(|_| spawn(&plugin, 1)).collect();
        let mut sources = Vec::new();
        for caller in callers {
            sources.push(caller.await.unwrap().unwrap());
        }
        assert_eq!(kek.calls(), 1);
        assert_eq!(sources.iter().filter(|s| **s == DekSource::Unwrapped).count(), 1);
        assert_eq!(sources.iter().filter(|s| **s == DekSource::Joined).count(), 499);
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Keyring));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unwrap_outlives_the_caller_that_started_it() {
        let kek = ScriptedKek::new("k", &[SLOW]);
        let plugin = plugin(&[&kek], |_| {});
        let (first, second) = (spawn(&plugin, 1), spawn(&plugin, 1));
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(second.await.unwrap(), Ok(DekSource::Joined));
        assert_eq!(kek.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_with_little_time_is_told_at_its_end_and_the_dek_is_there_for_the_next() {
        let kek = ScriptedKek::new("k", &[SLOW]);
        let plugin = plugin(&[&kek], |_| {});
        let began = Instant::now();
        let fault = decrypt(&plugin, 1, Duration::from_millis(45)).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::Deadline);
        assert!(began.elapsed() <= Duration::from_millis(47), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Keyring));
        assert_eq!(kek.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unwrap_that_panics_fails_its_waiters_and_the_next_one_starts_anew() {
        let kek = ScriptedKek::new("k", &[Line::Panic, AT_ONCE]);
        let plugin = plugin(&[&kek], |_| {});
        let callers: Vec<_> = (0..10).map(|_| spawn(&plugin, 1)).collect();
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Err(Reason::Invariant));
        }
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Unwrapped));
        assert_eq!(kek.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_blob_is_not_asked_about_again_for_ten_seconds() {
        let kek = ScriptedKek::new("k", &[Line::Fail(Reason::WrappedDekRejected)]);
        let plugin = plugin(&[&kek], |_| {});
        for _ in 0..100 {
            assert_eq!(source(&plugin, 1).await, Err(Reason::WrappedDekRejected));
        }
        assert_eq!(kek.calls(), 1);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(source(&plugin, 1).await, Err(Reason::WrappedDekRejected));
        assert_eq!(kek.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kms_that_fails_is_called_unreachable_after_a_second_and_a_blip_is_waited_out() {
        for line in [Line::Fail(Reason::KmsUnreachable), Line::Hang] {
            let kek = ScriptedKek::new("k", &[line]);
            let (outcome, after) = timed(&plugin(&[&kek], |_| {}), 1).await;
            assert_eq!(outcome, Err(Reason::KmsUnreachable));
            assert!((Duration::from_secs(1)..PATIENCE * 3 / 5).contains(&after), "{line:?}: {after:?}");
        }
        let blip = [Line::Fail(Reason::KmsUnreachable), Line::Fail(Reason::KmsUnreachable), AT_ONCE];
        let kek = ScriptedKek::new("k", &blip);
        assert_eq!(source(&plugin(&[&kek], |_| {}), 1).await, Ok(DekSource::Unwrapped));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kms_that_throttles_is_waited_for_with_all_of_the_time() {
        let kek = ScriptedKek::new("k", &[Line::Fail(Reason::KmsThrottled)]);
        let (outcome, after) = timed(&plugin(&[&kek], |_| {}), 1).await;
        assert_eq!(outcome, Err(Reason::Deadline));
        assert!(after >= PATIENCE, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn in_an_outage_the_caller_hears_within_a_second() {
        let kek = ScriptedKek::new("k", &[Line::Hang]);
        let plugin = plugin(&[&kek], |_| {});
        begin_outage(&plugin);
        let (outcome, after) = timed(&plugin, 1).await;
        assert_eq!(outcome, Err(Reason::KmsUnreachable));
        assert!(after <= OUTAGE_PATIENCE, "{after:?}");
    }

    /// A plugin whose one DEK has expired, at a KMS that says this from now on.
    async fn expired(line: Line, on_denied: OnDenied, on_unusable: OnUnusable) -> (Arc<Plugin>, Arc<ScriptedKek>) {
        let kek = ScriptedKek::new("k", &[AT_ONCE, line]);
        let plugin = plugin(&[&kek], |settings| {
            settings.cache_ttl = Duration::from_secs(60);
            settings.policy.on_denied = on_denied;
            settings.policy.on_unusable = on_unusable;
        });
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Unwrapped));
        tokio::time::sleep(Duration::from_secs(60)).await;
        (plugin, kek)
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_dek_is_served_while_the_kms_is_away_and_not_when_it_says_no() {
        for reason in Reason::ALL {
            for (on_denied, on_unusable) in [
                (OnDenied::Coast, OnUnusable::Coast),
                (OnDenied::Revoke, OnUnusable::Coast),
                (OnDenied::Coast, OnUnusable::Revoke),
            ] {
                let (plugin, kek) = expired(Line::Fail(*reason), on_denied, on_unusable).await;
                let is_unusable = matches!(reason.label(), "key-store-unavailable" | "key-state-unknown");
                let serves = match reason.class() {
                    _ if is_unusable => on_unusable == OnUnusable::Coast,
                    Class::KekDenied => on_denied == OnDenied::Coast,
                    class => class.is_transient(),
                };
                let said = source(&plugin, 1).await;
                let context = format!("{reason} {on_denied:?} {on_unusable:?}");
                assert_eq!(said.is_ok(), serves, "{context}: {said:?}");
                // One that is transient is asked again, and the caller does not wait for the end of it.
                assert!(said == Ok(DekSource::Expired) || said == Err(*reason) || is_unusable, "{context}: {said:?}");
                assert!(kek.calls() >= 2, "it was asked");
            }
        }
    }

    /// What a probe has heard counts for the DEKs under the KEK that it probes.
    #[tokio::test(start_paused = true)]
    async fn an_expired_dek_is_served_at_once_while_its_kek_is_silent_and_unwrapped_again_when_it_is_not() {
        let (plugin, kek) = expired(AT_ONCE, OnDenied::Coast, OnUnusable::Coast).await;
        plugin.reach().note(annotations("k", 1).kek(), Word::Silence, plugin.clock().now());
        assert_eq!(timed(&plugin, 1).await, (Ok(DekSource::Expired), Duration::ZERO));
        assert_eq!(kek.calls(), 1, "nobody is asked");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(timed(&plugin, 1).await, (Ok(DekSource::Expired), Duration::ZERO));
        tokio::task::yield_now().await;
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Keyring), "it was unwrapped while nobody waited");
        assert_eq!(kek.calls(), 2);
        let (plugin, kek) = expired(AT_ONCE, OnDenied::Coast, OnUnusable::Coast).await;
        begin_outage(&plugin);
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Unwrapped), "the state of the plugin excuses nothing");
        assert_eq!(source(&plugin, 1).await, Ok(DekSource::Keyring));
        assert_eq!(kek.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wipe_during_the_unwrap_does_not_leave_the_dek_behind() {
        let kek = ScriptedKek::new("k", &[SLOW]);
        let plugin = plugin(&[&kek], |_| {});
        let caller = spawn(&plugin, 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        plugin.keyring().wipe(annotations("k", 1).kek());
        assert_eq!(caller.await.unwrap(), Ok(DekSource::Unwrapped));
        assert!(plugin.keyring().is_empty());
    }
}
