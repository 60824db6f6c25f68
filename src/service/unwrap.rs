//! One unwrap, with its retries: what a [`crate::service::keyring::Flight`] runs in a task of its own.
//!
//! Guarantees: bounded in time and in attempts; only transient faults are retried, with jitter; while the KMS is known
//! to be away there is one attempt only, so that callers hear soon. A denied call is never retried by itself.

use crate::core::annotation::{Annotations, WrappedDek};
use crate::core::dek::Dek;
use crate::core::fault::{Fault, Reason};
use crate::core::port::KekCall;
use crate::core::uid::Uid;
use crate::service::observer::KekOperation;
use crate::service::plugin::Plugin;
use crate::service::prepare::observed;
use std::sync::Arc;
use std::time::Duration;

/// The whole of it, however long the caller waits: a slow KMS still fills the keyring for the next caller.
const LIFETIME: Duration = Duration::from_secs(12);
/// The first attempt may take this long, each further one twice as long.
const FIRST_ATTEMPT: Duration = Duration::from_millis(1500);
/// An attempt while the KMS is known to be away.
const OUTAGE_ATTEMPT: Duration = Duration::from_millis(750);
/// The first pause between attempts, doubled each time, with jitter of half of it.
const FIRST_PAUSE: Duration = Duration::from_millis(40);
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// Unwraps the DEK that these annotations name.
///
/// # Errors
/// `kek-not-configured`; those of the provider.
pub(super) async fn unwrap_dek(plugin: &Plugin, annotations: &Annotations, uid: &Uid) -> Result<Arc<Dek>, Fault> {
    let wrapped = WrappedDek::parse(annotations.wrapped_dek().to_vec())?;
    let clock = plugin.clock();
    let began = clock.now();
    let mut attempt: u32 = 0;
    loop {
        let outage = plugin.is_outage();
        let remaining = LIFETIME.saturating_sub(clock.now().since(began));
        let patience = FIRST_ATTEMPT.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX));
        let timeout = if outage { OUTAGE_ATTEMPT } else { patience.min(remaining) };
        let call = KekCall { timeout, uid: Some(uid.clone()) };
        let turn = plugin.pace().turn().await;
        let outcome = ask_each_reader(plugin, annotations, &wrapped, &call).await;
        drop(turn);
        let fault = match outcome {
            Ok(dek) => {
                plugin.pace().speed_up();
                return Ok(dek);
            }
            Err(fault) => fault,
        };
        if fault.reason() == Reason::KmsThrottled {
            plugin.pace().slow_down();
        }
        tracing::warn!(
            target: "kube_kms::unwrap", %uid, kek = %annotations.kek(), reason = fault.reason().label(),
            attempt, error = fault.causes(), "unwrapping a data key failed"
        );
        if fault.class().is_transient() && !outage {
            plugin.suspect_outage();
        }
        let pause = jittered(plugin, pause_after(attempt));
        let is_over = clock.now().since(began).saturating_add(pause) >= LIFETIME;
        if !fault.class().is_transient() || is_over || (outage && fault.reason() != Reason::KmsThrottled) {
            return Err(fault);
        }
        tokio::time::sleep(pause).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Most often there is one reader. Two entries for one KEK differ in their context, and only the KMS knows which was
/// used, so the next one is asked when the first does not fit.
async fn ask_each_reader(
    plugin: &Plugin,
    annotations: &Annotations,
    wrapped: &WrappedDek,
    call: &KekCall,
) -> Result<Arc<Dek>, Fault> {
    let keks = plugin.keks();
    let mut last = Fault::new(Reason::KekNotConfigured);
    for entry in keks.readers(annotations.kek()) {
        let asking = entry.kek.unwrap_dek(annotations.kek(), wrapped, &entry.context, call);
        match observed(&*entry.kek, KekOperation::Unwrap, plugin.clock(), plugin.observer(), asking).await {
            Ok(unwrapped) => return Ok(Arc::new(Dek::new(&unwrapped.dek)?)),
            Err(fault) if fault.reason() == Reason::WrappedDekRejected => last = fault,
            Err(fault) => return Err(fault),
        }
    }
    Err(last)
}

fn pause_after(attempt: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(LONGEST_PAUSE)
}

/// Between half of it and one and a half.
fn jittered(plugin: &Plugin, pause: Duration) -> Duration {
    pause.mul_f64(0.5 + plugin.random_fraction())
}
