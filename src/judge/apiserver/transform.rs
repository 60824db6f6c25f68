//! Objects to and from etcd: sealed with the seed of the write state, opened with whatever seed they name.
//!
//! Guarantees: plaintext is wiped on drop and never printed; a read asks Decrypt only on a cache miss, and every reader
//! that misses asks (no single-flight, as upstream). A well-formed answer is cached before it has been tried on the
//! object, as upstream. SPEC: k8s.io/apiserver kmsv2 `envelopeTransformer`.

use crate::apiserver::decrypt_cache::CacheKey;
use crate::apiserver::dek_source::DekSource;
use crate::apiserver::finding::FindingCode;
use crate::apiserver::probe::Probe;
use crate::apiserver::process::{Process, locked};
use crate::apiserver::record::count;
use crate::apiserver::unhealthy::describe;
use kms_v2_api::stored::{self, NotStored};
use kms_v2_api::v2::{DecryptRequest, EncryptedDekSourceType, EncryptedObject};
use kms_v2_client::limit::{self, Violation};
use kms_v2_client::plugin::Rpc;
use kube_kms_core::fault::Fault;
use kube_kms_core::port::Moment;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;
use tonic::{Code, Status};
use zeroize::Zeroizing;

/// What an API user would see as an HTTP 500.
#[derive(Clone, Debug)]
pub enum TransformError {
    /// No evaluation has succeeded yet: neither reads nor writes.
    NoState,
    /// The write state expired.
    Expired {
        /// Of its key_id.
        key_id_hash: String,
        /// When.
        at: Moment,
        /// What time it is.
        now: Moment,
    },
    /// The value is not of a KMS v2 provider.
    NotStored(NotStored),
    /// The value is of the provider with this name.
    OtherProvider(String),
    /// The stored object breaks these rules.
    Invalid(Vec<Violation>),
    /// `encryptedDEKSourceType` is unknown, or there is no data.
    Malformed,
    /// Decrypt failed.
    Decrypt(Status),
    /// Decrypt returned this many bytes.
    WrongLength(usize),
    /// The object does not open under what Decrypt returned: wrong bytes, another etcd key, or damaged.
    Authentication,
    /// No randomness.
    Broken(Fault),
}

impl fmt::Display for TransformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoState => f.write_str("got unexpected nil transformer"),
            Self::Expired { key_id_hash, at, now } => {
                let (at, now) = (at.since(Moment(0)), now.since(Moment(0)));
                write!(
                    f,
                    "encryptedDEKSource with keyID hash {key_id_hash:?} expired at {at:?} (current time is {now:?})"
                )
            }
            Self::NotStored(why) => write!(f, "{why}"),
            Self::OtherProvider(name) => write!(f, "the value is of the provider {name:?}"),
            Self::Invalid(violations) => {
                let all: Vec<_> = violations.iter().map(|v| v.describe("the object")).collect();
                f.write_str(&all.join(", "))
            }
            Self::Malformed => f.write_str("the stored object is malformed"),
            Self::Decrypt(status) => write!(f, "failed to decrypt DEK, error: {}", describe(status)),
            Self::WrongLength(n) => write!(f, "Decrypt returned {n} bytes, which cannot be what was encrypted"),
            Self::Authentication => f.write_str("the object does not open under what Decrypt returned"),
            Self::Broken(fault) => write!(f, "{fault}"),
        }
    }
}

impl std::error::Error for TransformError {}

/// An object that was read.
pub struct Read {
    /// The object.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// Whether the next update writes it, even one that changes nothing: its key_id or its type is not the current.
    pub stale: bool,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read(secret, stale: {})", self.stale)
    }
}

/// What an update that changes nothing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Nothing: the object is not stale.
    Unneeded,
    /// This value takes its place.
    Value(Vec<u8>),
}

pub(super) fn write(process: &Process, probe: &Probe, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, TransformError> {
    let state = probe.write_state().ok_or(TransformError::NoState)?;
    let now = process.now();
    if state.is_expired(now) {
        probe.note_if_expired(process);
        let key_id_hash = format!("sha256:{}", hex::encode(Sha256::digest(state.object.key_id.as_bytes())));
        return Err(TransformError::Expired { key_id_hash, at: state.expires(), now });
    }
    // SPEC: every write puts its seed into the cache again and with that removes what has expired.
    locked(&probe.cache).insert(now, state.cache_key, Arc::clone(&state.seed));
    let encrypted_data = state.seed.seal(&*process.entropy, key, plaintext).map_err(TransformError::Broken)?;
    let object = EncryptedObject { encrypted_data, ..state.object };
    check(&object)?;
    Ok(stored::encode(&probe.settings.name, &object))
}

pub(super) async fn read(
    process: &Process,
    probe: &Probe,
    key: &str,
    object: &EncryptedObject,
) -> Result<Read, TransformError> {
    let kind = check(object)?;
    let state = probe.write_state().ok_or(TransformError::NoState)?;
    let cache_key = CacheKey::of(object);
    let cached = locked(&probe.cache).find(&cache_key);
    let source = match cached {
        Some(source) => {
            count(&mut process.record().counts.cache_hits);
            source
        }
        None => unwrap_source(process, probe, object, kind, cache_key).await?,
    };
    let plaintext = source.open(key, &object.encrypted_data).ok_or(TransformError::Authentication)?;
    let stale = object.key_id != state.object.key_id
        || object.encrypted_dek_source_type != state.object.encrypted_dek_source_type;
    Ok(Read { plaintext, stale })
}

async fn unwrap_source(
    process: &Process,
    probe: &Probe,
    object: &EncryptedObject,
    kind: EncryptedDekSourceType,
    cache_key: CacheKey,
) -> Result<Arc<DekSource>, TransformError> {
    let request = DecryptRequest {
        ciphertext: object.encrypted_dek_source.clone(),
        uid: process.uid().map_err(TransformError::Broken)?,
        key_id: object.key_id.clone(),
        annotations: object.annotations.clone(),
    };
    let answer = probe.plugin.decrypt(request, probe.settings.timeout).await;
    let now = process.now();
    let mut record = process.record();
    record.rpc(Rpc::Decrypt, answer.as_ref().err().map_or(Code::Ok, Status::code));
    let own = record.fingerprint(&cache_key);
    let answer = answer.map_err(|status| {
        if own.is_some() {
            record.finding(now, FindingCode::DecryptOfOwnValueFailed, describe(&status));
        }
        TransformError::Decrypt(status)
    })?;
    let source = DekSource::parse(kind, &answer.plaintext).map_err(|wrong| {
        record.finding(now, FindingCode::DecryptWrongLength, format!("Decrypt returned {} bytes", wrong.0));
        TransformError::WrongLength(wrong.0)
    })?;
    if own.is_some_and(|fingerprint| fingerprint != source.fingerprint()) {
        record.finding(now, FindingCode::DecryptWrongBytes, format!("under key_id {:?}", object.key_id));
    }
    drop(record);
    let source = Arc::new(source);
    locked(&probe.cache).insert(now, cache_key, Arc::clone(&source));
    Ok(source)
}

fn check(object: &EncryptedObject) -> Result<EncryptedDekSourceType, TransformError> {
    let kind = EncryptedDekSourceType::try_from(object.encrypted_dek_source_type);
    let kind = kind.map_err(|_| TransformError::Malformed)?;
    if object.encrypted_data.is_empty() {
        return Err(TransformError::Malformed);
    }
    let violations = limit::check_sealed(&object.key_id, &object.encrypted_dek_source, &object.annotations);
    if violations.is_empty() { Ok(kind) } else { Err(TransformError::Invalid(violations)) }
}
