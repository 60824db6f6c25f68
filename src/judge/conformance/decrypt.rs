//! Section D: Decrypt, items 45 to 62.

use super::meter::Meter;
use super::session::{
    Caller, Check, Sealed, Session, Stop, decrypt_request, failed, not_applicable, opened_to, random,
};
use super::status::{has_credential, has_host};
use super::transport::TIMES;
use super::wire::{Call, DECRYPT, Trouble};
use bytes::{BufMut, Bytes, BytesMut};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptResponse};
use kube_kms_core::limit::CIPHERTEXT_MAX;
use prost::Message;
use prost::encoding::encode_varint;
use tokio::task::JoinSet;

const EQUAL: usize = 500;
const FLIPS: usize = 256;
const OTHERS: usize = 100;

/// Item 45.
pub(super) async fn round_trip(session: &mut Session) -> Check {
    let caller = session.caller().await?;
    let plaintext = random(32);
    match caller.encrypt(&plaintext).await {
        Ok(sealed) if sealed.ciphertext.is_empty() || sealed.ciphertext.len() > CIPHERTEXT_MAX => {
            return not_applicable("kube-apiserver does not take this ciphertext (item 32)");
        }
        Ok(sealed) => caller.opens(&Sealed { plaintext, sealed }).await?,
        Err(trouble) => return not_applicable(format!("Encrypt does not work (item 31): {trouble}")),
    }
    Ok("the same 32 bytes".to_owned())
}

/// What an altered value did.
async fn must_be_refused(caller: &Caller, what: &str, altered: &EncryptResponse) -> Result<(), Stop> {
    match caller.decrypt(altered).await {
        Err(trouble) if trouble.is_refusal() => Ok(()),
        Err(trouble) => failed(format!("{what}: {trouble}")),
        Ok(plaintext) => failed(format!("{what}: Decrypt succeeded with {} bytes", plaintext.len())),
    }
}

/// Item 50.
pub(super) async fn foreign_key_id(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.caller().await?;
    let mut altered = value.sealed.clone();
    // As plausible as can be: only its last character is another.
    let last = altered.key_id.pop();
    altered.key_id.push(if last == Some('0') { '1' } else { '0' });
    must_be_refused(&caller, "a ciphertext under another key_id", &altered).await?;
    Ok("refused".to_owned())
}

/// Item 51: single bits all over the value.
pub(super) async fn flipped_bits(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.caller().await?;
    let names: Vec<&String> = value.sealed.annotations.keys().collect();
    let parts = [value.sealed.ciphertext.len(), value.sealed.key_id.len()];
    let parts = parts.into_iter().chain(value.sealed.annotations.values().map(Vec::len));
    let total = parts.clone().fold(0_usize, usize::saturating_add);
    let step = total.div_ceil(FLIPS).max(1);
    let (mut tried, mut unnoticed) = (0_usize, Vec::new());
    for at in (0..total).step_by(step) {
        let mut inside = at;
        let mut part = 0_usize;
        for len in parts.clone() {
            if inside < len {
                break;
            }
            (inside, part) = (inside.saturating_sub(len), part.saturating_add(1));
        }
        let Some((place, altered)) = flip(&value.sealed, part, inside, at, &names) else { continue };
        tried = tried.saturating_add(1);
        match caller.decrypt(&altered).await {
            Err(trouble) if trouble.is_refusal() => {}
            Err(trouble) => return failed(format!("a flipped bit in {place}: {trouble}")),
            Ok(opened) => {
                unnoticed.push((place, opened != value.plaintext));
            }
        }
    }
    if unnoticed.is_empty() {
        return Ok(format!("{tried} flipped bits, each refused"));
    }
    let wrong = unnoticed.iter().filter(|(_, wrong)| *wrong).count();
    let mut places: Vec<&str> = unnoticed.iter().map(|(place, _)| *place).collect();
    places.dedup();
    let (n, places) = (unnoticed.len(), places.join(", "));
    failed(format!("{n} of {tried} flipped bits were not noticed (in {places}); {wrong} of them gave other bytes"))
}

/// The value with one bit of one byte flipped. Another bit for another place; `None` where it would be no text any more.
fn flip(
    sealed: &EncryptResponse,
    part: usize,
    inside: usize,
    at: usize,
    names: &[&String],
) -> Option<(&'static str, EncryptResponse)> {
    let mut altered = sealed.clone();
    let bit = |width: usize| 1_u8.checked_shl(u32::try_from(at.checked_rem(width)?).ok()?);
    let place = match part {
        0 => {
            *altered.ciphertext.get_mut(inside)? ^= bit(8)?;
            "ciphertext"
        }
        1 => {
            let mut bytes = altered.key_id.into_bytes();
            *bytes.get_mut(inside)? ^= bit(7)?;
            altered.key_id = String::from_utf8(bytes).ok()?;
            "key_id"
        }
        n => {
            let name = names.get(n.checked_sub(2)?)?;
            *altered.annotations.get_mut(*name)?.get_mut(inside)? ^= bit(8)?;
            "annotations"
        }
    };
    Some((place, altered))
}

/// Item 52.
pub(super) async fn annotations(session: &mut Session) -> Check {
    let Sealed { sealed, .. } = session.value().await?;
    let caller = session.caller().await?;
    let mut added = sealed.clone();
    added.annotations.insert("added.conformance.example".to_owned(), vec![1]);
    must_be_refused(&caller, "an annotation added", &added).await?;
    for (name, value) in &sealed.annotations {
        let mut removed = sealed.clone();
        removed.annotations.remove(name);
        must_be_refused(&caller, &format!("annotation {name:?} removed"), &removed).await?;
        let mut renamed = removed;
        renamed.annotations.insert(format!("x.{name}"), value.clone());
        must_be_refused(&caller, &format!("annotation {name:?} renamed"), &renamed).await?;
    }
    Ok(format!("refused, for each of {} annotations", sealed.annotations.len()))
}

/// Item 53.
pub(super) async fn order(session: &mut Session) -> Check {
    let value = session.value().await?;
    if value.sealed.annotations.len() < 2 {
        return not_applicable("it returns fewer than two annotations");
    }
    let caller = session.caller().await?;
    let call = Call { body: reversed(&value.sealed), ..Call::new(DECRYPT, &DecryptRequest::default()) };
    match caller.call::<DecryptResponse>(&call).await {
        Ok(opened) if opened.plaintext == value.plaintext => Ok("backwards is as good".to_owned()),
        Ok(_) => failed("with the annotations in another order Decrypt returned other bytes"),
        Err(trouble) => failed(format!("with the annotations in another order: {trouble}")),
    }
}

/// A request with its annotations backwards, which no library would write. SPEC: protobuf, a map is a repeated message of
/// fields 1 and 2; here it is field 4.
fn reversed(sealed: &EncryptResponse) -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(&DecryptRequest { annotations: Default::default(), ..decrypt_request(sealed) }.encode_to_vec());
    for (name, value) in sealed.annotations.iter().rev() {
        let mut entry = BytesMut::new();
        for (tag, bytes) in [(0x0a, name.as_bytes()), (0x12, value.as_slice())] {
            entry.put_u8(tag);
            encode_varint(u64::try_from(bytes.len()).unwrap_or(0), &mut entry);
            entry.put_slice(bytes);
        }
        body.put_u8(0x22);
        encode_varint(u64::try_from(entry.len()).unwrap_or(0), &mut body);
        body.put_slice(&entry);
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    framed.put_slice(&body);
    framed.freeze()
}

/// Item 54.
pub(super) async fn odd_ciphertexts(session: &mut Session) -> Check {
    let Sealed { sealed, .. } = session.value().await?;
    let caller = session.caller().await?;
    for (what, ciphertext) in
        [("an empty ciphertext", Vec::new()), ("one byte", vec![7]), ("a ciphertext of 1 MiB", vec![7; 1 << 20])]
    {
        // What is far over the limit may be cut off on its stream: kube-apiserver neither takes nor sends it.
        let is_long = ciphertext.len() > CIPHERTEXT_MAX;
        match caller.decrypt(&EncryptResponse { ciphertext, ..sealed.clone() }).await {
            Err(Trouble::Status(..)) => {}
            Err(Trouble::Lost(_) | Trouble::Http(_)) if is_long => {}
            Err(trouble) => return failed(format!("{what}: {trouble}")),
            Ok(plaintext) => {
                return failed(format!("{what}: Decrypt succeeded with {} bytes", plaintext.len()));
            }
        }
        if let Err(trouble) = caller.status().await {
            return failed(format!("Status after {what}: {trouble}"));
        }
    }
    Ok("each refused".to_owned())
}

/// Item 55, over the whole run.
pub(super) fn messages_show_nothing(session: &Session) -> Check {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let witness = session.witness();
    let host = host.trim();
    for message in &witness.messages {
        let lower = message.to_ascii_lowercase();
        let what = if message.len() > 1024 {
            "is longer than 1 KiB"
        } else if message.contains("://") || has_ipv4(message) {
            "has an address in it"
        } else if has_host(message, host) {
            "has the name of this host in it"
        } else if has_credential(message) || ["panicked at", "goroutine "].iter().any(|word| lower.contains(word)) {
            "has a credential or a stack in it"
        } else {
            continue;
        };
        let cut: String = message.chars().take(40).collect();
        return failed(format!("a message that begins {cut:?} {what}"));
    }
    if witness.messages.is_empty() {
        return not_applicable("nothing was refused in this run");
    }
    Ok(format!("{} messages, none with an address, a host name or a credential", witness.messages.len()))
}

fn has_ipv4(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .any(|word| word.trim_matches('.').parse::<std::net::Ipv4Addr>().is_ok())
}

/// Item 57.
pub(super) async fn equal(session: &mut Session) -> Check {
    let value = session.value().await?;
    let mut seen = String::new();
    for _ in 0..TIMES {
        let meter = Meter::start(session).await?;
        let caller = session.new_caller().await?;
        let mut calls = JoinSet::new();
        for _ in 0..EQUAL {
            let (caller, sealed) = (caller.clone(), value.sealed.clone());
            calls.spawn(async move { caller.decrypt(&sealed).await });
        }
        let all = calls.join_all().await;
        let late = all.iter().any(|answer| matches!(answer, Err(Trouble::Late)));
        let opened = all.into_iter().map(|answer| opened_to(answer, &value));
        let bad: Vec<Stop> = opened.filter_map(Result::err).collect();
        let Some(first) = bad.first() else {
            let (what, answered) = (format!("{EQUAL} equal Decrypts"), format!("{EQUAL} answered"));
            return meter.check(session, &what, &answered, 1).await;
        };
        seen = format!("{} of {EQUAL} equal Decrypts at once: {first}", bad.len());
        // Only a clock says that something was late, and the machine may be busy.
        if !late {
            break;
        }
    }
    failed(seen)
}

/// Item 58. The first is taken in before the others are sent, and those before it is cancelled: a Status tells.
pub(super) async fn first_goes_away(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.new_caller().await?;
    let call = Call::new(DECRYPT, &decrypt_request(&value.sealed));
    let first = caller.start(&call).await.or_else(|trouble| failed(format!("Decrypt: {trouble}")))?;
    taken_in(&caller).await?;
    // Two streams are left, for the first and for Status.
    let others_at_once = OTHERS.min(caller.wire.streams_allowed().saturating_sub(2)).max(1);
    let mut others = Vec::with_capacity(others_at_once);
    for _ in 0..others_at_once {
        others.push(caller.start(&call).await.or_else(|trouble| failed(format!("Decrypt: {trouble}")))?);
    }
    taken_in(&caller).await?;
    drop(first);
    let mut calls = JoinSet::new();
    for other in others {
        let (caller, value) = (caller.clone(), value.clone());
        calls.spawn(async move {
            let opened = caller.finish::<DecryptResponse>(other).await;
            opened_to(opened.map(|mut opened| std::mem::take(&mut opened.plaintext)), &value)
        });
    }
    let bad: Vec<Stop> = calls.join_all().await.into_iter().filter_map(Result::err).collect();
    match bad.first() {
        None => Ok(format!("{others_at_once} others were answered")),
        Some(first) => {
            failed(format!("{} of {others_at_once} equal Decrypts, once the first was cancelled: {first}", bad.len()))
        }
    }
}

/// A server reads frames in order: once it answers this, it has what was sent before.
async fn taken_in(caller: &Caller) -> Result<(), Stop> {
    caller.status().await.map(|_| ()).or_else(|trouble| failed(format!("Status among Decrypts: {trouble}")))
}

/// Item 61.
pub(super) async fn short_plaintexts(session: &mut Session) -> Check {
    session.value().await?;
    let caller = session.caller().await?;
    for size in [16, 24] {
        let plaintext = random(size);
        let sealed = match caller.encrypt(&plaintext).await {
            Ok(sealed) => sealed,
            Err(trouble) if trouble.is_refusal() => {
                return not_applicable(format!("Encrypt of {size} bytes, which kube-apiserver never sends: {trouble}"));
            }
            Err(trouble) => return failed(format!("Encrypt of {size} bytes: {trouble}")),
        };
        caller.opens(&Sealed { plaintext, sealed }).await?;
    }
    Ok("unchanged".to_owned())
}

/// Item 62.
pub(super) async fn empty_uid(session: &mut Session) -> Check {
    let value = session.value().await?;
    let caller = session.caller().await?;
    let request = DecryptRequest { uid: String::new(), ..decrypt_request(&value.sealed) };
    match caller.call::<DecryptResponse>(&Call::new(DECRYPT, &request)).await {
        Ok(opened) if opened.plaintext == value.plaintext => Ok("served".to_owned()),
        Ok(_) => failed("with an empty uid Decrypt returned other bytes"),
        Err(trouble) if trouble.is_refusal() => Ok(format!("refused, {trouble}")),
        Err(trouble) => failed(format!("Decrypt with an empty uid: {trouble}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backwards_is_the_same_message() {
        let annotations = [("a.b", 1), ("c.d", 2), ("e.f", 3)].map(|(n, v)| (n.to_owned(), vec![v; 200]));
        let sealed = EncryptResponse { ciphertext: vec![1], key_id: "k".to_owned(), annotations: annotations.into() };
        let bytes = reversed(&sealed);
        let request = DecryptRequest::decode(&bytes[5..]).unwrap();
        assert_eq!(request.annotations, sealed.annotations);
        assert_ne!(request.encode_to_vec(), &bytes[5..], "another order");
    }

    #[test]
    fn an_address_in_a_message_is_noticed() {
        assert!(has_ipv4("dial tcp 10.0.0.1:443: refused") && has_ipv4("at 192.168.1.2."));
        assert!(!has_ipv4("version 1.2.3 of 4.5") && !has_ipv4("kms-unreachable"));
    }
}
