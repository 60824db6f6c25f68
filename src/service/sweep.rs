//! What becomes of data keys past their time that nobody reads: the keyring gives up those whose KEK is dead.
//!
//! Guarantees: what is past its time under a KEK that has said *dead* is wiped within a minute, read or not; a KEK that has data keys
//! past their time is asked about one of them once a minute, so that a dead one says so though nobody reads. What its KEK unwraps is
//! fresh again, and what a KEK that does not answer has wrapped is kept: it may be the last copy in reach. Refuses to judge a KEK:
//! that is the supervisor's, and what is within its time stays (ARCHITECTURE.md, decision 5).

use crate::lane::Lane;
use crate::plugin::Plugin;
use crate::unwrap::Readers;
use kube_kms_core::annotation::DekName;
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::port::Moment;
use kube_kms_core::uid::Uid;
use std::sync::Arc;
use std::time::Duration;

/// Three looks a minute, so that a minute is kept on a busy machine too.
const EVERY: Duration = Duration::from_secs(20);
/// A KEK is asked by the sweep once in this time.
const ASKED_EVERY: Duration = Duration::from_secs(60);

/// Sweeps until it is dropped.
///
/// # Cancel safety
/// Dropping the future ends the sweeping.
pub async fn sweep(plugin: Arc<Plugin>) {
    let mut asked: Vec<(KekRef, Moment)> = Vec::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = plugin.clock().now();
        let (wiped, stale) = plugin.keyring().sweep(now, |kek| plugin.reach().given_up_until(kek, now));
        if wiped > 0 {
            tracing::info!(
                target: "kube_kms::keyring", wiped,
                "data keys past `cache.ttl` were wiped: their KEK has said that it is dead, or not for us"
            );
        }
        asked.retain(|(kek, when)| now.since(*when) < ASKED_EVERY && stale.iter().any(|(other, _)| kek == other));
        for (kek, wrapped) in stale {
            if asked.iter().all(|(other, _)| *other != kek) {
                // Whoever may unwrap it: a data key past its time may have come by a recovery wrap. Too busy, it is asked the next time.
                let name = DekName { kek: &kek, wrapped: &wrapped };
                drop(plugin.ask(name, Readers::Recovery, Lane::Known, &Uid::parse("")));
                asked.push((kek, now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decrypt_fixture::{Line, ScriptedKek, annotations, decrypt_under, plugin};
    use kube_kms_core::fault::Reason;

    const TTL: Duration = Duration::from_secs(600);
    const AT_ONCE: Line = Line::Unwrap(Duration::ZERO);
    const MINUTE: Duration = Duration::from_secs(60);
    const PATIENCE: Duration = Duration::from_secs(2);

    /// A plugin that holds five DEKs under each of two read KEKs and is swept.
    async fn swept() -> (Arc<Plugin>, [Arc<ScriptedKek>; 2]) {
        let [write, one, other] = ["w", "one", "other"].map(|name| ScriptedKek::new(name, &[AT_ONCE]));
        let plugin = plugin(&[&write, &one, &other], |settings| settings.cache_ttl = TTL);
        tokio::spawn(sweep(Arc::clone(&plugin)));
        for n in 0..10 {
            read(&plugin, n).await.unwrap();
        }
        (plugin, [one, other])
    }

    async fn read(plugin: &Arc<Plugin>, n: u32) -> Result<(), Reason> {
        let value = annotations(if n < 5 { "one" } else { "other" }, n);
        decrypt_under(plugin, "some-id", &value, PATIENCE).await.map(|_| ()).map_err(|fault| fault.reason())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_kek_that_nobody_reads_loses_what_is_past_its_time_within_two_minutes_and_no_other_does() {
        let (plugin, [one, other]) = swept().await;
        one.say(Line::Fail(Reason::KekDisabled));
        tokio::time::sleep(TTL - Duration::from_secs(1)).await;
        assert_eq!(
            (plugin.keyring().len(), one.calls()),
            (10, 5),
            "within its time nothing is asked and nothing wiped"
        );
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!(plugin.keyring().len(), 5);
        let asked = other.calls() - 5;
        assert!((1..=3).contains(&asked), "once a minute: {asked}");
        // As long as it takes to have all of them fresh again.
        tokio::time::sleep(4 * MINUTE).await;
        assert_eq!((plugin.keyring().len(), other.calls()), (5, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn from_its_first_dead_answer_a_minute_is_enough() {
        let (plugin, [one, _]) = swept().await;
        tokio::time::sleep(TTL).await;
        one.say(Line::Fail(Reason::KekPendingDeletion));
        assert_eq!(read(&plugin, 0).await, Err(Reason::KekPendingDeletion));
        assert!(plugin.keyring().len() >= 9, "only what it was asked about goes at once");
        tokio::time::sleep(MINUTE).await;
        assert_eq!(plugin.keyring().len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kek_that_does_not_answer_loses_nothing_and_asking_costs_one_call_a_minute() {
        for reason in [Reason::KmsUnreachable, Reason::KmsThrottled, Reason::PolicyDenied] {
            let (plugin, [one, other]) = swept().await;
            one.say(Line::Fail(reason));
            other.say(Line::Hang);
            tokio::time::sleep(TTL + 60 * MINUTE).await;
            assert_eq!(plugin.keyring().len(), 10, "{reason}");
            for n in 0..10 {
                assert_eq!(read(&plugin, n).await, Ok(()), "{reason}");
            }
            let asks = plugin.keyring().find(&annotations("other", 7), plugin.clock().now());
            assert!(matches!(asks, crate::keyring::Found::Expired(_)), "{asks:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_past_its_time_while_a_kek_that_said_dead_is_silent_is_asked_about_itself_before_it_serves() {
        let (plugin, [one, _]) = swept().await;
        one.say(Line::Fail(Reason::KekDisabled));
        // A sixth DEK, of a version that is retired, say.
        assert_eq!(read_new(&plugin).await, Err(Reason::KekDisabled));
        one.say(Line::Fail(Reason::KmsUnreachable));
        assert_eq!(read_new(&plugin).await, Err(Reason::KmsUnreachable));
        tokio::time::sleep(TTL + 5 * MINUTE).await;
        assert_eq!(plugin.keyring().len(), 10, "nobody could be asked");
        one.say(Line::Fail(Reason::KekDisabled));
        // Nobody has asked for so long that its silence excuses any.
        tokio::time::sleep(Duration::from_secs(11)).await;
        for n in 0..5 {
            assert_eq!(read(&plugin, n).await, Err(Reason::KekDisabled), "{n}: each was asked about");
        }
    }

    async fn read_new(plugin: &Arc<Plugin>) -> Result<(), Reason> {
        let value = annotations("one", 77);
        decrypt_under(plugin, "some-id", &value, PATIENCE).await.map(|_| ()).map_err(|fault| fault.reason())
    }
}
