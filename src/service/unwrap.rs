//! One unwrap, with its retries: what a [`crate::keyring::Flight`] runs in a task of its own.
//!
//! Guarantees: bounded in time and in attempts; only transient faults are retried, with jitter; while the KEK is known
//! to be away there is one attempt only, so that callers hear soon. A denied call is never retried by itself. What each attempt
//! came to is noted for the KEK ([`crate::reach`]).

use crate::keyring::Flight;
use crate::lane::Lane;
use crate::observer::KekOperation;
use crate::plugin::Plugin;
use crate::prepare::observed;
use crate::reach::Word;
use kube_kms_core::annotation::{DekName, WrappedDek};
use kube_kms_core::dek::Dek;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::port::KekCall;
use kube_kms_core::uid::Uid;
use std::sync::Arc;
use std::time::Duration;

/// The whole of it, however long the caller waits: a slow KMS still fills the keyring for the next caller.
const LIFETIME: Duration = Duration::from_secs(12);
/// The first attempt may take this long, and twice as long after each that took all of its time.
const FIRST_ATTEMPT: Duration = Duration::from_millis(1500);
/// An attempt while the KEK is known to be away.
const OUTAGE_ATTEMPT: Duration = Duration::from_millis(750);
/// The first pause between attempts, doubled each time, with jitter of half of it.
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
/// Most failures are over in a second, and callers wait for 1.4 s: in that time the pauses stay short, so that they hear of its end.
const BLIP: Duration = Duration::from_millis(1400);
const LONGEST_PAUSE_IN_A_BLIP: Duration = Duration::from_millis(120);

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// The KEKs of `kek` and `read`: for the DEK that the annotations name first.
    Primary,
    /// Those of `recovery.keks` as well: for the same DEK under a recovery KEK.
    Recovery,
}

/// Unwraps the DEK of that name, when it is the turn of that lane.
///
/// # Errors
/// `kek-not-configured`; those of the provider; `overloaded`.
pub(super) async fn unwrap_dek<'a>(
    plugin: &Plugin,
    name: impl Into<DekName<'a>>,
    readers: Readers,
    lane: Lane,
    uid: &Uid,
    flight: &Flight,
) -> Result<Arc<Dek>, Fault> {
    let DekName { kek, wrapped } = name.into();
    let wrapped = WrappedDek::parse(wrapped.to_vec())?;
    let (clock, reach, policy) = (plugin.clock(), plugin.reach(), plugin.settings());
    // What nobody waits for any more would keep those waiting who still do. Known ones are asked about for themselves.
    let mut turn = plugin.pace().turn(lane, || lane == Lane::Known || flight.is_awaited()).await?;
    // Its life begins with its first turn: in a long queue it would else be over before anybody was asked.
    let began = clock.now();
    // Who has something else to serve waits a second, and the next one is to know better.
    let first = if lane == Lane::Known { OUTAGE_ATTEMPT } else { FIRST_ATTEMPT };
    let (mut attempt, mut timed_out, mut is_scout): (u32, u32, bool) = (0, 0, false);
    loop {
        let is_away = plugin.is_away(kek);
        is_scout = is_scout || (is_away && reach.scouts(kek, clock.now()));
        let is_hasty = is_away && !is_scout;
        let remaining = LIFETIME.saturating_sub(clock.now().since(began));
        // More time for a KMS that was slow, and not for one that failed at once: sixteen calls that hang on a connection which died
        // would hold all places for as long, after the KMS is back.
        let patience = first.saturating_mul(1_u32.checked_shl(timed_out).unwrap_or(u32::MAX));
        let timeout = if is_hasty { OUTAGE_ATTEMPT } else { patience.min(remaining) };
        let call = KekCall { timeout, uid: Some(uid.clone()) };
        let outcome = ask_each_reader(plugin, kek, readers, &wrapped, &call).await;
        let word = outcome.as_ref().map_or_else(|fault| Word::of(fault, &policy.policy), |_| Some(Word::Good));
        if let Some(word) = word {
            reach.note(kek, word, clock.now());
        }
        let fault = match outcome {
            Ok(dek) => {
                plugin.pace().speed_up();
                plugin.kek_answers(kek);
                return Ok(dek);
            }
            Err(fault) => fault,
        };
        if word == Some(Word::Throttled) {
            plugin.pace().slow_down();
        }
        tracing::warn!(
            target: "kube_kms::unwrap", %uid, %kek, reason = fault.reason().label(),
            attempt, error = fault.known_causes(), "unwrapping a data key failed"
        );
        // A KMS that throttles us is there, and a probe more is the last thing that it needs.
        let is_noticed = plugin.published().state.is_outage();
        if word == Some(Word::Silence) && !is_away && !is_noticed && readers == Readers::Primary {
            plugin.suspect_outage(kek);
        }
        let has_timed_out = fault.reason() == Reason::Deadline;
        timed_out = timed_out.saturating_add(u32::from(has_timed_out));
        let fault = unanswered(fault);
        let age = clock.now().since(began);
        let pause = jittered(plugin, pause_after(attempt, age));
        let is_over = age.saturating_add(pause) >= LIFETIME;
        let is_throttled = word == Some(Word::Throttled);
        // What can be served without an answer is asked about again when it is read again. A KMS that is only slow has more time.
        let is_spared = lane == Lane::Known && !has_timed_out;
        let is_hopeless = is_away && !is_throttled && !(is_scout && has_timed_out);
        let is_enough = is_spared || is_hopeless;
        if !fault.class().is_transient() || is_over || is_enough {
            return Err(fault);
        }
        flight.attempt_failed(&fault, clock.now());
        // Throttled, it keeps its place: the pace says when it is its turn again. Else others go first.
        if is_throttled {
            turn.again().await?;
        } else {
            drop(turn);
            tokio::time::sleep(pause).await;
            turn = plugin.pace().turn(lane, || true).await?;
        }
        // A call without any time would cost the KMS as much as another one, and its failure would look like an outage.
        if clock.now().since(began) >= LIFETIME {
            return Err(fault);
        }
        attempt = attempt.saturating_add(1);
    }
}

/// Most often there is one reader. Two entries for one KEK differ in their context, and only the KMS knows which was
/// used, so the next one is asked when the first does not fit.
async fn ask_each_reader(
    plugin: &Plugin,
    kek: &KekRef,
    readers: Readers,
    wrapped: &WrappedDek,
    call: &KekCall,
) -> Result<Arc<Dek>, Fault> {
    let keks = plugin.keks();
    let entries: Vec<_> = match readers {
        Readers::Primary => keks.readers(kek).collect(),
        Readers::Recovery => keks.recovery_readers(kek).collect(),
    };
    let mut last = Fault::new(Reason::KekNotConfigured);
    for entry in entries {
        let asking = entry.kek.unwrap_dek(kek, wrapped, &entry.context, call);
        match observed(&*entry.kek, KekOperation::Unwrap, plugin.clock(), plugin.observer(), asking).await {
            Ok(unwrapped) => return Ok(Arc::new(Dek::new(&unwrapped.dek)?)),
            Err(fault) if fault.reason() == Reason::WrappedDekRejected => last = fault,
            Err(fault) => return Err(fault),
        }
    }
    Err(last)
}

/// An attempt that ran out of its own time says that the KMS does not answer, not that the caller's deadline has passed.
pub(super) fn unanswered(fault: Fault) -> Fault {
    if fault.reason() == Reason::Deadline { Fault::caused_by(Reason::KmsUnreachable, fault) } else { fault }
}

fn pause_after(attempt: u32, age: Duration) -> Duration {
    let longest = if age < BLIP { LONGEST_PAUSE_IN_A_BLIP } else { LONGEST_PAUSE };
    FIRST_PAUSE.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(longest)
}

/// Between half of it and one and a half.
fn jittered(plugin: &Plugin, pause: Duration) -> Duration {
    pause.mul_f64(0.5 + plugin.random_fraction())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decrypt_fixture::{Line, ScriptedKek, annotations, begin_outage, dek, plugin};
    use crate::keyring::Joined;
    use kube_kms_core::annotation::Annotations;
    use tokio::time::Instant;

    const AT_ONCE: Line = Line::Unwrap(Duration::ZERO);

    /// One unwrap by a plugin with these KEKs; how it ended, and after how long.
    async fn run(keks: &[&Arc<ScriptedKek>], outage: bool) -> (Result<(), Reason>, Duration) {
        let plugin = plugin(keks, |_| {});
        if outage {
            begin_outage(&plugin);
        }
        let annotations = annotations("k", 1);
        let Joined::Started(flight, _waiting) = plugin.keyring().join(&annotations).unwrap() else {
            panic!("not started")
        };
        let began = Instant::now();
        let outcome = asked(&plugin, &annotations, &flight).await;
        (outcome.map(|_| ()).map_err(|fault| fault.reason()), began.elapsed())
    }

    async fn asked(plugin: &Plugin, annotations: &Annotations, flight: &Flight) -> Result<Arc<Dek>, Fault> {
        unwrap_dek(plugin, annotations, Readers::Primary, Lane::Stranger, &Uid::parse("u"), flight).await
    }

    #[tokio::test(start_paused = true)]
    async fn only_transient_faults_are_asked_again() {
        for reason in Reason::ALL {
            let kek = ScriptedKek::new("k", &[Line::Fail(*reason), AT_ONCE]);
            let (outcome, _) = run(&[&kek], false).await;
            if reason.class().is_transient() {
                assert_eq!((outcome, kek.calls()), (Ok(()), 2), "{reason}");
            } else {
                assert_eq!((outcome, kek.calls()), (Err(*reason), 1), "{reason}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_jitter_and_attempts_end_when_the_kek_has_been_silent_for_a_second() {
        let kek = ScriptedKek::new("k", &[Line::Fail(Reason::KmsUnreachable)]);
        let (outcome, took) = run(&[&kek], false).await;
        assert_eq!(outcome, Err(Reason::KmsUnreachable));
        assert!((Duration::from_secs(1)..Duration::from_millis(1400)).contains(&took), "{took:?}");
        let times: Vec<_> = kek.heard().into_iter().map(|(when, _)| when).collect();
        assert!((7..22).contains(&times.len()), "{} attempts", times.len());
        for (n, pair) in times.windows(2).enumerate() {
            let pause = pair[1].duration_since(pair[0]);
            let middle = pause_after(u32::try_from(n).unwrap(), pair[0].duration_since(times[0]));
            // A timer of the runtime has milliseconds.
            let late = Duration::from_millis(2);
            assert!(pause + late >= middle / 2 && pause <= middle * 3 / 2 + late, "{n}: {pause:?} of {middle:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_take_no_time_give_the_next_attempt_no_more_of_it() {
        let fails = Line::Fail(Reason::KmsUnreachable);
        let kek = ScriptedKek::new("k", &[fails, fails, fails, Line::Hang, Line::Hang, AT_ONCE]);
        assert_eq!(run(&[&kek], false).await.0, Ok(()));
        let given: Vec<_> = kek.heard().into_iter().map(|(_, timeout)| timeout).collect();
        assert_eq!(given[..5], [FIRST_ATTEMPT, FIRST_ATTEMPT, FIRST_ATTEMPT, FIRST_ATTEMPT, FIRST_ATTEMPT * 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kms_that_hangs_gets_more_time_each_time_and_is_called_unreachable() {
        let kek = ScriptedKek::new("k", &[Line::Hang]);
        let (outcome, took) = run(&[&kek], false).await;
        assert_eq!(outcome, Err(Reason::KmsUnreachable));
        assert!(took <= LIFETIME + Duration::from_secs(1), "{took:?}");
        let given: Vec<_> = kek.heard().into_iter().map(|(_, timeout)| timeout).collect();
        assert_eq!(given[..3], [FIRST_ATTEMPT, FIRST_ATTEMPT * 2, FIRST_ATTEMPT * 4]);
        assert!(given.len() == 4 && given[3] < FIRST_ATTEMPT, "what is left of its life: {given:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_kek_is_away_there_is_one_short_attempt_unless_the_kms_throttles() {
        let kek = ScriptedKek::new("k", &[Line::Hang]);
        assert_eq!(run(&[&kek], true).await, (Err(Reason::KmsUnreachable), OUTAGE_ATTEMPT));
        assert_eq!(kek.heard()[0].1, OUTAGE_ATTEMPT);
        let kek = ScriptedKek::new("k", &[Line::Fail(Reason::KmsUnreachable), AT_ONCE]);
        assert_eq!(run(&[&kek], true).await, (Err(Reason::KmsUnreachable), Duration::ZERO));
        let kek = ScriptedKek::new("k", &[Line::Fail(Reason::KmsThrottled), AT_ONCE]);
        assert_eq!(run(&[&kek], true).await.0, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_who_ask_a_kek_that_hangs_one_in_ten_seconds_has_time_for_a_slow_one() {
        let kek = ScriptedKek::new("k", &[Line::Hang]);
        let plugin = plugin(&[&kek], |_| {});
        let ask = |n: u32| {
            let plugin = Arc::clone(&plugin);
            async move {
                let annotations = annotations("k", n);
                let Joined::Started(flight, _waiting) = plugin.keyring().join(&annotations).unwrap() else {
                    panic!("joined")
                };
                let began = Instant::now();
                assert!(asked(&plugin, &annotations, &flight).await.is_err());
                began.elapsed()
            }
        };
        let took = tokio::join!(ask(0), ask(1), ask(2));
        let mut took = [took.0, took.1, took.2];
        took.sort();
        assert!(took[1] < LIFETIME / 2 && took[2] >= LIFETIME - LONGEST_PAUSE, "{took:?}");
        kek.say(Line::Unwrap(Duration::from_secs(5)));
        assert_eq!(ask(3).await, OUTAGE_ATTEMPT);
        tokio::time::sleep(Duration::from_secs(9)).await;
        let annotations = annotations("k", 4);
        let Joined::Started(flight, _waiting) = plugin.keyring().join(&annotations).unwrap() else { panic!("joined") };
        assert!(asked(&plugin, &annotations, &flight).await.is_ok(), "slow, and not away");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_reader_is_asked_when_the_blob_is_not_of_the_first_and_only_then() {
        for reason in Reason::ALL.iter().filter(|reason| !reason.class().is_transient()) {
            let first = ScriptedKek::new("k", &[Line::Fail(*reason)]);
            let (elsewhere, second) = (ScriptedKek::new("x", &[Line::Panic]), ScriptedKek::new("k", &[AT_ONCE]));
            let (outcome, _) = run(&[&first, &elsewhere, &second], false).await;
            let fits = *reason == Reason::WrappedDekRejected;
            assert_eq!(outcome, if fits { Ok(()) } else { Err(*reason) }, "{reason}");
            assert_eq!((elsewhere.calls(), second.calls()), (0, usize::from(fits)), "{reason}");
        }
        let both = ScriptedKek::new("k", &[Line::Fail(Reason::WrappedDekRejected)]);
        assert_eq!(run(&[&both, &both], false).await.0, Err(Reason::WrappedDekRejected));
        assert_eq!(both.calls(), 2);
        let none = ScriptedKek::new("x", &[AT_ONCE]);
        assert_eq!(run(&[&none], false).await.0, Err(Reason::KekNotConfigured));
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_slows_the_pace_of_all_and_the_dek_is_the_right_one() {
        let kek = ScriptedKek::new("k", &[Line::Fail(Reason::KmsThrottled), AT_ONCE]);
        let plugin = plugin(&[&kek], |_| {});
        let annotations = annotations("k", 1);
        let Joined::Started(flight, _waiting) = plugin.keyring().join(&annotations).unwrap() else {
            panic!("not started")
        };
        let found = asked(&plugin, &annotations, &flight).await.unwrap();
        let began = Instant::now();
        for _ in 0..10 {
            drop(plugin.pace().turn(Lane::Stranger, || true).await.unwrap());
        }
        assert!(began.elapsed() >= Duration::from_millis(80), "{:?}", began.elapsed());
        let aad = kube_kms_core::annotation::AdditionalData::bind(
            &kube_kms_core::key_id::KeyId::parse("k".to_owned()).unwrap(),
            annotations.all(),
        );
        let sealed = dek(1).seal(&kube_kms_os::OsEntropy, &aad, b"seed").unwrap();
        let envelope = kube_kms_core::envelope::Envelope::parse(&sealed).unwrap();
        assert_eq!(**found.open(envelope, &aad).unwrap(), *b"seed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_supervisor_is_woken_by_a_silence_that_nobody_knew_of_and_not_for_a_recovery_kek() {
        let (silent, throttled) = (Reason::KmsUnreachable, Reason::KmsThrottled);
        for (reason, readers, is_away, wakes) in [
            (silent, Readers::Primary, false, true),
            (silent, Readers::Primary, true, false),
            (silent, Readers::Recovery, false, false),
            (throttled, Readers::Primary, false, false),
        ] {
            let kek = ScriptedKek::new("k", &[Line::Fail(reason)]);
            let plugin = plugin(&[&kek], |_| {});
            if is_away {
                begin_outage(&plugin);
            }
            let annotations = annotations("k", 1);
            let Joined::Started(flight, _waiting) = plugin.keyring().join(&annotations).unwrap() else {
                panic!("not started")
            };
            let uid = Uid::parse("u");
            unwrap_dek(&plugin, &annotations, readers, Lane::Known, &uid, &flight).await.unwrap_err();
            let is_woken = tokio::time::timeout(Duration::ZERO, plugin.wake().notified()).await.is_ok();
            assert_eq!(is_woken, wakes, "{reason} {readers:?} {is_away}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_when_its_turn_comes_is_asked_only_when_it_is_known() {
        for (lane, calls) in [(Lane::Known, 1), (Lane::Stranger, 0)] {
            let kek = ScriptedKek::new("k", &[AT_ONCE]);
            let plugin = plugin(&[&kek], |_| {});
            let annotations = annotations("k", 1);
            let Joined::Started(flight, waiting) = plugin.keyring().join(&annotations).unwrap() else {
                panic!("not started")
            };
            drop(waiting);
            let mut held = Vec::new();
            for _ in 0..kube_kms_core::limit::UNWRAPS_IN_FLIGHT_MAX {
                held.push(plugin.pace().turn(Lane::Stranger, || true).await.unwrap());
            }
            let in_the_door = async { drop(plugin.pace().turn(Lane::Stranger, || true).await.unwrap()) };
            let uid = Uid::parse("u");
            let asking = unwrap_dek(&plugin, &annotations, Readers::Primary, lane, &uid, &flight);
            let letting_go = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                held.clear();
            };
            let ((), outcome, ()) = tokio::join!(in_the_door, asking, letting_go);
            assert_eq!((outcome.is_ok(), kek.calls()), (calls == 1, calls), "{lane:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_for_its_turn_is_no_part_of_its_life() {
        let kek = ScriptedKek::new("k", &[AT_ONCE]);
        let plugin = plugin(&[&kek], |_| {});
        let annotations = annotations("k", 1);
        let Joined::Started(flight, _waiting) = plugin.keyring().join(&annotations).unwrap() else {
            panic!("not started")
        };
        let mut held = Vec::new();
        for _ in 0..kube_kms_core::limit::UNWRAPS_IN_FLIGHT_MAX {
            held.push(plugin.pace().turn(Lane::Stranger, || true).await.unwrap());
        }
        let asking = asked(&plugin, &annotations, &flight);
        let letting_go = async {
            tokio::time::sleep(LIFETIME * 2).await;
            held.clear();
        };
        let (outcome, ()) = tokio::join!(asking, letting_go);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(kek.heard()[0].1, FIRST_ATTEMPT, "with the time of any other");
    }
}
