//! Tests of who opens a value: the write state, the KEK that wrapped its DEK, or a recovery KEK. On paused time.

use super::*;
use crate::decrypt_fixture::{Line, ScriptedKek, annotations, begin_outage, decrypt_under, entry, plugin, plugin_over};
use crate::fixture::{settings, write_state};
use crate::kek_set::KekSet;
use crate::plugin::Published;
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::health::{OnDenied, OnUnusable, State};
use kube_kms_core::kek_ref::KekKind;
use kube_kms_os::OsEntropy;

const PATIENCE: Duration = Duration::from_millis(2750);
const AT_ONCE: Line = Line::Unwrap(Duration::ZERO);

fn key_id(name: &str) -> KeyId {
    KeyId::parse(name.to_owned()).unwrap()
}

/// A plugin that writes, under the KEK `k`.
fn writing() -> (Arc<Plugin>, Arc<WriteState>) {
    let plugin = plugin(&[&ScriptedKek::new("k", &[Line::Panic])], |_| {});
    let write = Arc::new(write_state(&settings()));
    plugin.publish(Published::new(State::Ready, Some(Arc::clone(&write)), None, None, None));
    (plugin, write)
}

/// Whatever a value is bound to, its additional data is computed from what was passed back and not taken from the write state.
#[tokio::test(start_paused = true)]
async fn the_dek_that_seals_now_opens_from_the_write_state_whatever_its_values_are_bound_to() {
    let (plugin, write) = writing();
    let mut more = write.annotations().all().clone();
    more.insert("more.example".to_owned(), b"x".to_vec());
    let own = write.key_id().as_str();
    for (id, all) in [
        (own, write.annotations().all().clone()),
        ("before", write.annotations().all().clone()),
        (own, more.clone()),
        ("before", more),
    ] {
        let aad = AdditionalData::bind(&key_id(id), &all);
        let ciphertext = write.dek().seal(&OsEntropy, &aad, b"value").unwrap();
        let uid = Uid::parse("u");
        let annotations = all.clone();
        let input =
            DecryptInput { ciphertext: &ciphertext, key_id: id.to_owned(), annotations, uid: &uid, patience: PATIENCE };
        let opened = plugin.decrypt(input).await.unwrap();
        assert_eq!((&**opened.plaintext, opened.source), (&b"value"[..], DekSource::WriteState), "{id} {all:?}");
    }
}

#[test]
fn the_write_states_key_id_and_kek_have_a_lane_together_and_neither_has_one_alone() {
    let (plugin, write) = writing();
    let (uid, own, other) = (Uid::parse("u"), annotations("k", 1), annotations("other", 1));
    let lane = |key_id: &KeyId, annotations: &Annotations| plugin.lane(&Caller { key_id, annotations, uid: &uid });
    assert_eq!(lane(write.key_id(), &other), Lane::Stranger);
    assert_eq!(lane(&key_id("other"), &own), Lane::Stranger);
    assert!(matches!(lane(write.key_id(), &own), Lane::Proven(_)));
}

/// What a Decrypt came to, and how often the primary and the recovery KEK were asked.
struct Asked {
    said: Result<DekSource, Reason>,
    primary: usize,
    recovery: usize,
}

/// Reads a value under the KEK `k` that has a recovery wrap, while the recovery KEK is well.
async fn asked(primary: Line, break_glass: bool, is_revoked: bool) -> Asked {
    asked_under(OnUnusable::Coast, primary, break_glass, is_revoked).await
}

async fn asked_under(on_unusable: OnUnusable, primary: Line, break_glass: bool, is_revoked: bool) -> Asked {
    let (kek, recovery) = (ScriptedKek::new("k", &[primary]), ScriptedKek::new("recovery", &[AT_ONCE]));
    let keks = KekSet::new(entry(&kek), Vec::new()).with_recovery(vec![entry(&recovery)], break_glass);
    let plugin = plugin_over(keks, |settings| settings.policy.on_unusable = on_unusable);
    let wrap = RecoveryWrap {
        kek: KekRef::new(KekKind::LOCAL, "recovery").unwrap(),
        dek: WrappedDek::parse(1_u32.to_be_bytes().to_vec()).unwrap(),
    };
    let value = annotations("k", 1).and_recovery(1, &wrap);
    if is_revoked {
        let state = State::Revoked { because: Reason::KekGone };
        plugin.publish(Published::new(state, None, None, Some(value.kek().clone()), None));
    }
    let opened = decrypt_under(&plugin, "some-id", &value, PATIENCE).await;
    let said = opened.map(|opened| opened.source).map_err(|fault| fault.reason());
    Asked { said, primary: kek.calls(), recovery: recovery.calls() }
}

#[tokio::test(start_paused = true)]
async fn a_recovery_kek_stands_in_for_a_silent_primary_and_for_a_dead_one_only_when_glass_may_be_broken() {
    for reason in Reason::ALL {
        for break_glass in [false, true] {
            let asked = asked(Line::Fail(*reason), break_glass, false).await;
            let class = reason.class();
            let is_lost = matches!(class, Class::KekDead | Class::KekDenied | Class::KekUnknown);
            let recovers = class.is_transient() || (break_glass && is_lost);
            let expected = if recovers { Ok(DekSource::Recovered) } else { Err(*reason) };
            assert_eq!((asked.said, asked.recovery), (expected, usize::from(recovers)), "{reason} {break_glass}");
            assert!(asked.primary > 0, "{reason}: it is asked first");
        }
    }
    let well = asked(AT_ONCE, true, false).await;
    assert_eq!((well.said, well.primary, well.recovery), (Ok(DekSource::Unwrapped), 1, 0));
}

/// Closing the key store is meant, to this operator: the recovery KEK is not the way around it.
#[tokio::test(start_paused = true)]
async fn a_key_store_that_is_closed_on_purpose_is_not_opened_around_unless_glass_may_be_broken() {
    for reason in [Reason::KeyStoreUnavailable, Reason::KeyStateUnknown] {
        for break_glass in [false, true] {
            let asked = asked_under(OnUnusable::Revoke, Line::Fail(reason), break_glass, false).await;
            let expected = if break_glass { Ok(DekSource::Recovered) } else { Err(reason) };
            assert_eq!((asked.said, asked.recovery), (expected, usize::from(break_glass)), "{reason} {break_glass}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_primary_is_not_asked_and_glass_has_to_be_broken() {
    let kept = asked(AT_ONCE, false, true).await;
    assert_eq!((kept.said, kept.primary, kept.recovery), (Err(Reason::KekGone), 0, 0));
    let broken = asked(AT_ONCE, true, true).await;
    assert_eq!((broken.said, broken.primary, broken.recovery), (Ok(DekSource::Recovered), 0, 1));
}

#[test]
fn what_did_not_come_in_time_is_unreachable_when_its_kek_is_silent_or_away_and_late_otherwise() {
    let kek = annotations("k", 1).kek().clone();
    let silent = plugin(&[&ScriptedKek::new("k", &[AT_ONCE])], |_| {});
    assert_eq!(silent.why_nothing_came(&kek).reason(), Reason::Deadline);
    silent.reach().note(&kek, Word::Silence, silent.clock().now());
    assert_eq!(silent.why_nothing_came(&kek).reason(), Reason::KmsUnreachable);
    let away = plugin(&[&ScriptedKek::new("k", &[AT_ONCE])], |_| {});
    begin_outage(&away);
    assert_eq!(away.why_nothing_came(&kek).reason(), Reason::KmsUnreachable);
}

#[tokio::test(start_paused = true)]
async fn a_denial_that_lasts_longer_than_the_operator_allows_serves_nothing_that_is_past_its_time() {
    let allowed = Duration::from_secs(30);
    let kek = ScriptedKek::new("k", &[AT_ONCE, Line::Fail(Reason::PolicyDenied)]);
    let plugin = plugin(&[&kek], |settings| {
        settings.cache_ttl = Duration::from_secs(60);
        settings.policy.on_denied = OnDenied::CoastFor(allowed);
    });
    let value = annotations("k", 1);
    let read = || async {
        let opened = decrypt_under(&plugin, "some-id", &value, PATIENCE).await;
        opened.map(|opened| opened.source).map_err(|fault| fault.reason())
    };
    assert_eq!(read().await, Ok(DekSource::Unwrapped));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(read().await, Ok(DekSource::Expired));
    tokio::time::sleep(allowed).await;
    assert_eq!(read().await, Err(Reason::PolicyDenied));
}

/// The additional data of the request that opened first is remembered, and serves requests like it only.
#[tokio::test(start_paused = true)]
async fn a_dek_in_the_keyring_opens_values_of_every_key_id_and_annotation_that_it_sealed() {
    let plugin = plugin(&[&ScriptedKek::new("k", &[AT_ONCE])], |_| {});
    for id in ["one", "two", "one"] {
        assert!(decrypt_under(&plugin, id, &annotations("k", 1), PATIENCE).await.is_ok(), "{id}");
    }
}

#[test]
fn the_log_calls_each_source_of_a_dek_by_its_name() {
    use DekSource::{Expired, Joined, Keyring, Recovered, Unwrapped};
    assert_eq!(
        [DekSource::WriteState, Keyring, Unwrapped, Joined, Expired, Recovered].map(DekSource::label),
        ["write-state", "keyring", "unwrapped", "joined", "expired", "recovered"]
    );
}
