//! What the API server writes with: one seed, how the plugin wrapped it, and until when.
//!
//! Guarantees: a state is never changed but for its expiry. SPEC: k8s.io/apiserver kmsv2 `State`.

use crate::apiserver::decrypt_cache::CacheKey;
use crate::apiserver::dek_source::DekSource;
use crate::apiserver::finding::FindingCode;
use crate::apiserver::process::Process;
use crate::apiserver::record::{Happened, count};
use kms_v2_api::v2::{EncryptResponse, EncryptedDekSourceType, EncryptedObject};
use kube_kms_core::port::Moment;
use std::sync::Arc;

/// See the module. A clone writes with the same seed.
#[derive(Clone, Debug)]
pub(super) struct WriteState {
    pub(super) seed: Arc<DekSource>,
    /// Without the data.
    pub(super) object: EncryptedObject,
    pub(super) cache_key: CacheKey,
    expires: Moment,
    expiry_noted: bool,
}

impl WriteState {
    pub(super) fn new(seed: DekSource, sealed: EncryptResponse, expires: Moment) -> Self {
        let object = EncryptedObject {
            encrypted_data: Vec::new(),
            key_id: sealed.key_id,
            encrypted_dek_source: sealed.ciphertext,
            annotations: sealed.annotations,
            encrypted_dek_source_type: EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed.into(),
        };
        let cache_key = CacheKey::of(&object);
        Self { seed: Arc::new(seed), object, cache_key, expires, expiry_noted: false }
    }

    pub(super) const fn expires(&self) -> Moment {
        self.expires
    }

    /// The last moment of its time still counts, as upstream's `now.After(expiry)` has it.
    pub(super) fn is_expired(&self, now: Moment) -> bool {
        now > self.expires
    }

    /// Moves the expiry, also of a state that has already expired: the same seed is used again.
    pub(super) fn extend(&mut self, process: &Process, now: Moment, expires: Moment) {
        self.note_if_expired(process, now);
        if self.expiry_noted {
            process.record().event(now, Happened::WritesRevived);
        }
        self.expires = expires;
        self.expiry_noted = false;
    }

    /// Writes it down once when the time is over.
    pub(super) fn note_if_expired(&mut self, process: &Process, now: Moment) {
        if !self.expiry_noted && self.is_expired(now) {
            self.expiry_noted = true;
            let mut record = process.record();
            count(&mut record.counts.write_state_expiries);
            record.event(self.expires, Happened::WritesStopped);
            record.finding(
                self.expires,
                FindingCode::WriteStateExpired,
                "no agreement of Status and Encrypt for 180 s",
            );
        }
    }
}
