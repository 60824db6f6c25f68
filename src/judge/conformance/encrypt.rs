//! Section C: Encrypt, items 31 to 44.

use super::meter::Meter;
use super::session::{Caller, Check, Sealed, Session, Stop, failed, not_applicable, random};
use super::wire::{Call, ENCRYPT};
use kms_v2_api::v2::{EncryptRequest, EncryptResponse};
use kms_v2_client::limit::{self, Violation};
use kube_kms_core::limit::CIPHERTEXT_MAX;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use tokio::task::JoinSet;

const DISTINCT: usize = 1000;
const AT_ONCE: usize = 50;

/// Ciphertext, key_id, annotations.
type Triple = (Vec<u8>, String, BTreeMap<String, Vec<u8>>);

/// One Encrypt, for checks on what it returns.
async fn sealed(caller: &Caller) -> Result<Sealed, Stop> {
    let plaintext = random(32);
    match caller.encrypt(&plaintext).await {
        Ok(sealed) => Ok(Sealed { plaintext, sealed }),
        Err(trouble) => not_applicable(format!("Encrypt does not work (item 31): {trouble}")),
    }
}

/// Item 31. One rotation may fall between the two calls of a pair, not two.
pub(super) async fn key_id_is_that_of_status(session: &mut Session) -> Check {
    let caller = session.caller().await?;
    let mut misses = 0_u32;
    for _ in 0..5 {
        let status = caller.status().await.or_else(|trouble| failed(format!("Status: {trouble}")))?;
        let sealed = caller.encrypt(&random(32)).await.or_else(|trouble| failed(format!("Encrypt: {trouble}")))?;
        misses = misses.saturating_add(u32::from(sealed.key_id != status.key_id));
    }
    if misses > 1 {
        return failed(format!("Encrypt.key_id was not the Status.key_id right before it, {misses} times of 5"));
    }
    Ok(if misses == 0 { "5 of 5 pairs" } else { "4 of 5 pairs; a rotation fell into one" }.to_owned())
}

/// Items 32, 33 and 34: `mine` picks the rules of the item.
pub(super) async fn limits(session: &mut Session, mine: fn(&Violation) -> bool) -> Check {
    let caller = session.caller().await?;
    let Sealed { sealed, .. } = sealed(&caller).await?;
    let broken = limit::check_sealed(&sealed.key_id, &sealed.ciphertext, &sealed.annotations);
    let broken: Vec<String> = broken.iter().filter(|v| mine(v)).map(|v| v.describe("Encrypt")).collect();
    if broken.is_empty() {
        let (bytes, names) = (limit::annotations_size(&sealed.annotations), sealed.annotations.len());
        return Ok(format!("ciphertext {} bytes, {names} annotations of {bytes} bytes", sealed.ciphertext.len()));
    }
    failed(broken.join("; "))
}

pub(super) const fn is_about_ciphertext(violation: &Violation) -> bool {
    matches!(violation, Violation::CiphertextEmpty | Violation::CiphertextTooLong(_))
}

pub(super) const fn is_about_names(violation: &Violation) -> bool {
    matches!(violation, Violation::AnnotationName(_))
}

pub(super) const fn is_about_size(violation: &Violation) -> bool {
    matches!(violation, Violation::AnnotationsTooLarge(_))
}

/// Item 35.
pub(super) async fn twice(session: &mut Session) -> Check {
    session.value().await?;
    let caller = session.caller().await?;
    let first = sealed(&caller).await?;
    let again = caller.encrypt(&first.plaintext).await.or_else(|t| failed(format!("the second Encrypt: {t}")))?;
    let differ = if again == first.sealed { "two equal values" } else { "two values" };
    let second = Sealed { plaintext: first.plaintext.clone(), sealed: again };
    for (which, value) in [("first", &first), ("second", &second)] {
        if let Err(Stop::Failed(why)) = caller.opens(value).await {
            return failed(format!("the {which} value of a plaintext that was sealed twice: {why}"));
        }
    }
    Ok(format!("{differ}, and both open"))
}

/// Item 36, with a thousand.
pub(super) async fn distinct(session: &mut Session) -> Check {
    session.value().await?;
    let caller = session.caller().await?;
    let mut seen: HashSet<Triple> = HashSet::new();
    for _ in 0..DISTINCT.div_euclid(AT_ONCE) {
        let mut calls = JoinSet::new();
        for _ in 0..AT_ONCE {
            let caller = caller.clone();
            calls.spawn(async move { caller.encrypt(&random(32)).await });
        }
        for answer in calls.join_all().await {
            let sealed: EncryptResponse = answer.or_else(|t| failed(format!("one of {DISTINCT} Encrypts: {t}")))?;
            if !seen.insert((sealed.ciphertext, sealed.key_id, sealed.annotations)) {
                return failed("two plaintexts gave one and the same value");
            }
        }
    }
    Ok(format!("{} values of {DISTINCT} plaintexts, all distinct", seen.len()))
}

/// Item 37, as far as the answer goes.
pub(super) async fn plaintext_is_not_in_the_answer(session: &mut Session) -> Check {
    let caller = session.caller().await?;
    let Sealed { plaintext, sealed } = sealed(&caller).await?;
    let half = plaintext.get(..16).unwrap_or_default();
    let inside = |bytes: &[u8]| bytes.windows(16).any(|w| w == half);
    let places = [("ciphertext", &sealed.ciphertext)].into_iter();
    let places = places.chain(sealed.annotations.values().map(|value| ("an annotation", value)));
    for (place, bytes) in places {
        if inside(bytes) {
            return failed(format!("the plaintext is in {place}"));
        }
    }
    Ok("not in the answer; logs, metrics and memory were not looked at".to_owned())
}

/// Item 38.
pub(super) async fn empty_uid(session: &mut Session) -> Check {
    session.value().await?;
    let caller = session.caller().await?;
    let request = EncryptRequest { plaintext: random(32), uid: String::new() };
    match caller.call::<EncryptResponse>(&Call::new(ENCRYPT, &request)).await {
        Ok(_) => Ok("served".to_owned()),
        Err(trouble) if trouble.is_refusal() => Ok(format!("refused, {trouble}")),
        Err(trouble) => failed(format!("Encrypt with an empty uid: {trouble}")),
    }
}

/// Item 39.
pub(super) async fn sizes(session: &mut Session) -> Check {
    session.value().await?;
    let caller = session.caller().await?;
    let mut refused = Vec::new();
    // kube-apiserver sends 32 bytes and nothing else: other sizes may be refused, but not be made something of.
    for size in [0, 1, 16, 32, 64] {
        let plaintext = random(size);
        match caller.encrypt(&plaintext).await {
            Ok(sealed) if sealed.ciphertext.len() > CIPHERTEXT_MAX => {
                let n = sealed.ciphertext.len();
                return failed(format!("{size} bytes gave a ciphertext of {n} bytes as success; 1024 are taken"));
            }
            Ok(sealed) => caller.opens(&Sealed { plaintext, sealed }).await?,
            Err(trouble) if trouble.is_refusal() && size != 32 => refused.push(size.to_string()),
            Err(trouble) => return failed(format!("Encrypt of {size} bytes: {trouble}")),
        }
    }
    if refused.is_empty() {
        return Ok("0, 1, 16, 32 and 64 bytes all work".to_owned());
    }
    Ok(format!("of 0, 1, 16, 32 and 64 bytes, {} are refused", refused.join(" and ")))
}

/// Item 42, in short.
pub(super) async fn mismatch_loop(session: &mut Session) -> Check {
    session.value().await?;
    let caller = session.caller().await?;
    let meter = Meter::start(session).await?;
    for n in 0..20 {
        if let Err(trouble) = caller.encrypt(&random(32)).await {
            return failed(format!("Encrypt number {n} of 20 in a row: {trouble}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    meter.check(session, "20 Encrypts in a row", "20 in a second", 0).await
}

/// Item 44: three connections stand for three API servers.
pub(super) async fn three_clients(session: &mut Session) -> Check {
    session.value().await?;
    let mut callers = Vec::new();
    for _ in 0..3 {
        callers.push(session.new_caller().await?);
    }
    let mut values = Vec::new();
    for _ in 0..10 {
        for caller in &callers {
            let plaintext = random(32);
            let sealed = caller.encrypt(&plaintext).await.or_else(|t| failed(format!("Encrypt: {t}")))?;
            values.push(Sealed { plaintext, sealed });
        }
    }
    for value in &values {
        for caller in &callers {
            if let Err(Stop::Failed(why)) = caller.opens(value).await {
                return failed(format!("a value that another of three connections sealed: {why}"));
            }
        }
    }
    Ok("what each of three sealed opens for all; replicas were not asked".to_owned())
}
