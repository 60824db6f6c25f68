//! Tests of Decrypt in bad weather, on paused time: blips, throttling, and floods of forged blobs.

use super::*;
use crate::decrypt_fixture::{FORGED, Line, ScriptedKek, annotations, decrypt, decrypt_under, plugin, supervise};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_millis(2750);
const AT_ONCE: Line = Line::Unwrap(Duration::ZERO);
const TTL: Duration = Duration::from_secs(60);

/// The probe runs, and fails in the same blip.
#[tokio::test(start_paused = true)]
async fn a_blip_of_up_to_a_second_fails_no_unknown_decrypt() {
    for fault in [Reason::KmsUnreachable, Reason::KmsThrottled] {
        for blip in [100, 300, 1000].map(Duration::from_millis) {
            let kek = ScriptedKek::new("k", &[AT_ONCE]);
            kek.say(AT_ONCE);
            let plugin = plugin(&[&kek], |_| {});
            let _supervised = supervise(&plugin).await;
            for n in 0..16 {
                kek.say(Line::Fail(fault));
                let heals = async {
                    tokio::time::sleep(blip).await;
                    kek.say(AT_ONCE);
                };
                let (opened, ()) = tokio::join!(decrypt(&plugin, n, PATIENCE), heals);
                assert_eq!(
                    opened.map(|o| o.source).map_err(|f| f.reason()),
                    Ok(DekSource::Unwrapped),
                    "{fault:?} {blip:?}"
                );
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_kms_fails_in_any_way_only_the_first_expired_dek_is_waited_for() {
    let fails = [Reason::KmsThrottled, Reason::KmsUnreachable, Reason::PolicyDenied].map(Line::Fail);
    for line in fails.into_iter().chain([Line::Hang]) {
        let kek = ScriptedKek::new("k", &[AT_ONCE]);
        let plugin = plugin(&[&kek], |settings| settings.cache_ttl = TTL);
        for n in 0..20 {
            decrypt(&plugin, n, PATIENCE).await.unwrap();
        }
        tokio::time::sleep(TTL).await;
        kek.say(line);
        let before = kek.calls();
        for pass in 0..3 {
            for n in 0..20 {
                let began = Instant::now();
                let opened = decrypt(&plugin, n, PATIENCE).await.unwrap();
                assert_eq!(opened.source, DekSource::Expired);
                let is_first = (pass, n) == (0, 0);
                let limit = if is_first { OUTAGE_PATIENCE } else { Duration::ZERO };
                assert!(began.elapsed() <= limit, "{line:?}: {pass} {n}: {:?}", began.elapsed());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        // 30 s: asked again and again, but not by each of the sixty.
        let asked = kek.calls() - before;
        assert!((2..=40).contains(&asked), "{line:?}: {asked} calls");
        kek.say(AT_ONCE);
        tokio::time::sleep(Duration::from_secs(5)).await;
        decrypt(&plugin, 0, PATIENCE).await.unwrap();
        tokio::time::sleep(Duration::from_secs(11)).await;
        let opened = decrypt(&plugin, 1, PATIENCE).await.unwrap();
        assert_eq!(opened.source, DekSource::Unwrapped, "{line:?}: that it is back is noticed by reads alone");
    }
}

/// A KMS of 20 ms: 800 calls a second.
const QUICK: Duration = Duration::from_millis(20);
/// 246 calls a second: more wait than it answers within a deadline.
const SLOW: Duration = Duration::from_millis(65);

/// So many callers who read forged blobs without end, with this key_id or one of their own each.
fn flood(plugin: &Arc<Plugin>, callers: u32, key_id: Option<&'static str>) -> tokio::task::JoinSet<()> {
    let mut crowd = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let plugin = Arc::clone(plugin);
        crowd.spawn(async move {
            let own = format!("id-{caller}");
            for nth in 0_u32.. {
                let forged = annotations("k", FORGED + nth * callers + caller);
                let refused = decrypt_under(&plugin, key_id.unwrap_or(&own), &forged, PATIENCE).await;
                assert!(refused.is_err());
                // One that is refused at once is not asked for again at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    crowd
}

/// `known`: something with the key_id of the genuine ones has opened before.
async fn genuine_ones_open(callers: u32, call: Duration, forged: Option<&'static str>, is_known: bool) {
    let kek = ScriptedKek::new("k", &[Line::Judge(call)]);
    let plugin = plugin(&[&kek], |_| {});
    if is_known {
        decrypt(&plugin, 1000, PATIENCE).await.unwrap();
    }
    let _crowd = flood(&plugin, callers, forged);
    tokio::time::sleep(Duration::from_secs(4)).await;
    for n in 0..4 {
        let began = Instant::now();
        let opened = decrypt(&plugin, n, PATIENCE).await.map_err(|fault| fault.reason());
        let took = began.elapsed();
        assert!(opened.is_ok(), "{callers} {call:?} {forged:?} {is_known}: {n}: {opened:?} after {took:?}");
    }
    assert!(kek.calls() > 800, "the flood is at the KMS: {}", kek.calls());
}

#[tokio::test(start_paused = true)]
async fn genuine_cold_values_open_within_their_deadline_in_a_flood_of_1800_forged_ones() {
    genuine_ones_open(1800, QUICK, None, false).await;
    genuine_ones_open(1800, QUICK, Some("some-id"), true).await;
}

#[tokio::test(start_paused = true)]
async fn values_of_a_key_id_that_is_known_open_in_a_flood_that_the_kms_cannot_answer() {
    genuine_ones_open(1800, SLOW, None, true).await;
    // More than may wait.
    genuine_ones_open(4500, SLOW, Some("another-id"), true).await;
}
