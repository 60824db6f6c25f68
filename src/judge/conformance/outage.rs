//! An outage of the KMS on demand: items 20, 28, 40, 59 and 60.
//!
//! Guarantees: the KMS is restored whatever was seen meanwhile.

use super::Error;
use super::control::{Act, ControlError};
use super::session::{
    Caller, Check, Sealed, Session, Stop, altered, decrypt_request, failed, not_applicable, random, uid,
};
use super::wire::{Call, DECRYPT, ENCRYPT, Trouble};
use kms_v2_api::v2::{DecryptResponse, EncryptRequest, EncryptResponse};
use kube_kms_os::Stopwatch;
use std::time::Duration;

/// How long it lasts.
const LASTS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// Polls at most, while a recovery is waited for.
const POLLS: u32 = 900;
/// A refusal that takes more of the deadline than this share comes at the deadline and not before it.
const SHARE: (u32, u32) = (19, 20);

/// How one kind of call went.
#[derive(Clone, Debug)]
enum Went {
    Served,
    Refused(String),
    Badly(String),
}

/// The Decrypt of what was just encrypted, or of something else.
type Opened = (Result<Vec<u8>, Trouble>, Duration);

/// What an outage showed.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    status: Went,
    healthz: String,
    encrypt: Went,
    known: Went,
    unknown: Went,
    back_after: Option<Duration>,
}

async fn outage(session: &mut Session) -> Result<Seen, Stop> {
    if let Some(seen) = &session.outage {
        return Ok(seen.clone());
    }
    let Some(control) = session.control.clone() else { return not_applicable("needs --kms-control") };
    // Sealed now: what an earlier item did to an older value is not about the outage.
    let value = session.new_value().await?;
    let caller = session.caller().await?;
    let key_id = caller.status().await.or_else(|t| failed(format!("Status before the outage: {t}")))?.key_id;
    (session.waiting)("an outage of the KMS");
    if let Err(error) = control.act(Act::Outage).await {
        // It may have been done in part.
        let _ = control.act(Act::Restore).await;
        return Err(Stop::of_control(error));
    }
    let (status, healthz) = poll(&caller, &key_id).await;
    let encrypt = encrypt(&caller).await;
    let known = judge(&caller, decrypt(&caller, &value.sealed).await, &value.plaintext);
    let unknown = judge(&caller, decrypt(&caller, &altered(&value.sealed)).await, &value.plaintext);
    if let Err(ControlError::Declined(why) | ControlError::NotRun(why)) = control.act(Act::Restore).await {
        return Err(Stop::Aborted(Error::NotRestored(why)));
    }
    let limit = session.bounds.recovery;
    (session.waiting)(&format!("the recovery ({limit:?} at most)"));
    let back_after = recovery(&caller, &value, limit).await;
    if back_after.is_none() {
        session.spoilt = Some((28, "the outage is not over for it".to_owned()));
    }
    let seen = Seen { status, healthz, encrypt, known, unknown, back_after };
    session.outage = Some(seen.clone());
    Ok(seen)
}

/// Status, for as long as it lasts; and the last healthz.
async fn poll(caller: &Caller, key_id: &str) -> (Went, String) {
    let watch = Stopwatch::start();
    let mut healthz = String::new();
    while watch.elapsed() < LASTS {
        match caller.status().await {
            Err(trouble) => return (Went::Badly(format!("Status: {trouble}")), healthz),
            Ok(status) if status.key_id != key_id => {
                return (Went::Badly("Status.key_id changed".to_owned()), status.healthz);
            }
            Ok(status) => healthz = status.healthz,
        }
        tokio::time::sleep(POLL).await;
    }
    (Went::Served, healthz)
}

async fn encrypt(caller: &Caller) -> Went {
    let plaintext = random(32);
    let request = EncryptRequest { plaintext: plaintext.clone(), uid: uid() };
    let watch = Stopwatch::start();
    let sealed: Result<EncryptResponse, _> = caller.call(&Call::new(ENCRYPT, &request).within(caller.timeout)).await;
    let took = watch.elapsed();
    match sealed {
        Err(trouble) => refused(caller, &trouble, took),
        Ok(sealed) => match judge(caller, decrypt(caller, &sealed).await, &plaintext) {
            Went::Served => Went::Served,
            Went::Refused(why) | Went::Badly(why) => {
                Went::Badly(format!("Encrypt returned a value, and Decrypt of that: {why}"))
            }
        },
    }
}

/// With the deadline that kube-apiserver sends, so that the plugin may know how long it has.
async fn decrypt(caller: &Caller, sealed: &EncryptResponse) -> Opened {
    let call = Call::new(DECRYPT, &decrypt_request(sealed)).within(caller.timeout);
    let watch = Stopwatch::start();
    let answer = caller.call::<DecryptResponse>(&call).await;
    (answer.map(|mut opened| std::mem::take(&mut opened.plaintext)), watch.elapsed())
}

fn judge(caller: &Caller, (answer, took): Opened, plaintext: &[u8]) -> Went {
    match answer {
        Ok(opened) if opened == plaintext => Went::Served,
        Ok(opened) => Went::Badly(format!("it returned {} other bytes", opened.len())),
        Err(trouble) => refused(caller, &trouble, took),
    }
}

fn refused(caller: &Caller, trouble: &Trouble, took: Duration) -> Went {
    let prompt = caller.timeout.saturating_mul(SHARE.0).checked_div(SHARE.1).unwrap_or_default();
    let (took, limit) = (took.as_millis(), caller.timeout.as_millis());
    if !trouble.is_refusal() {
        return Went::Badly(trouble.to_string());
    }
    if took > prompt.as_millis() {
        return Went::Badly(format!("refused only at the deadline, after {took} of {limit} ms: {trouble}"));
    }
    Went::Refused(format!("after {took} of {limit} ms: {trouble}"))
}

async fn recovery(caller: &Caller, value: &Sealed, limit: Duration) -> Option<Duration> {
    let watch = Stopwatch::start();
    let every = limit.checked_div(POLLS).unwrap_or_default().max(POLL);
    while watch.elapsed() < limit {
        let ok = caller.status().await.is_ok_and(|status| status.healthz == "ok");
        if ok && caller.encrypt(&value.plaintext).await.is_ok() && caller.opens(value).await.is_ok() {
            return Some(watch.elapsed());
        }
        tokio::time::sleep(every).await;
    }
    None
}

/// Item 20.
pub(super) async fn status_goes_on(session: &mut Session) -> Check {
    let seen = outage(session).await?;
    match seen.status {
        Went::Served => Ok(format!("for 5 s; key_id unchanged, healthz {:?}", seen.healthz)),
        Went::Refused(why) | Went::Badly(why) => failed(format!("with the KMS away: {why}")),
    }
}

/// Item 28.
pub(super) async fn ok_again(session: &mut Session) -> Check {
    match outage(session).await?.back_after {
        Some(after) => Ok(format!("{:.1} s after the KMS was restored", after.as_secs_f64())),
        None => {
            let limit = session.bounds.recovery;
            failed(format!("{limit:?} after the KMS was restored it is not ok, or does not encrypt and decrypt"))
        }
    }
}

/// Items 40 and 59.
fn served_or_refused(went: Went) -> Check {
    match went {
        Went::Served => Ok("served, and it opens".to_owned()),
        Went::Refused(why) => Ok(format!("refused {why}")),
        Went::Badly(why) => failed(format!("with the KMS away: {why}")),
    }
}

/// Item 40.
pub(super) async fn encrypt_makes_nothing_up(session: &mut Session) -> Check {
    served_or_refused(outage(session).await?.encrypt)
}

/// Item 59.
pub(super) async fn seen_before(session: &mut Session) -> Check {
    served_or_refused(outage(session).await?.known)
}

/// Item 60: a value that is not quite the one that was seen.
pub(super) async fn not_seen_before(session: &mut Session) -> Check {
    match outage(session).await?.unknown {
        Went::Refused(why) => Ok(format!("refused {why}")),
        Went::Served => failed("a value that was tampered with was opened"),
        Went::Badly(why) => failed(format!("with the KMS away: {why}")),
    }
}
