//! The unwrapped seeds that kube-apiserver keeps for reads.
//!
//! Guarantees: an entry lives 24 h from its last insertion (reads do not refresh it); an expired entry still serves and is
//! removed by the next insertion of anything; there is no bound on the size. SPEC: k8s.io/apiserver kmsv2 `simpleCache`
//! (an expiring cache with `AllowExpiredGet`) and `generateCacheKey`.

use crate::apiserver::dek_source::DekSource;
use crate::apiserver::rhythm::{DECRYPT_CACHE_TTL, later};
use kms_v2_api::v2::EncryptedObject;
use kube_kms_core::envelope::lp;
use kube_kms_core::port::Moment;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// What is the same for two objects exactly if one Decrypt serves both: type, wrapped seed, key_id and annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CacheKey([u8; 32]);

impl CacheKey {
    pub(super) fn of(object: &EncryptedObject) -> Self {
        let mut hash = Sha256::new();
        hash.update(object.encrypted_dek_source_type.to_be_bytes());
        lp(&mut hash, &object.encrypted_dek_source);
        lp(&mut hash, object.key_id.as_bytes());
        for (name, value) in &object.annotations {
            lp(&mut hash, name.as_bytes());
            lp(&mut hash, value);
        }
        Self(hash.finalize().into())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DecryptCache(HashMap<CacheKey, (Moment, Arc<DekSource>)>);

impl DecryptCache {
    pub(super) fn find(&self, key: &CacheKey) -> Option<Arc<DekSource>> {
        self.0.get(key).map(|(_, source)| Arc::clone(source))
    }

    pub(super) fn insert(&mut self, now: Moment, key: CacheKey, source: Arc<DekSource>) {
        self.0.insert(key, (later(now, DECRYPT_CACHE_TTL), source));
        self.0.retain(|_, (expires, _)| *expires >= now);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_os::OsEntropy;
    use std::collections::BTreeMap;

    const HOUR: u64 = 3_600_000_000_000;

    fn object(wrapped: u8) -> EncryptedObject {
        EncryptedObject { encrypted_dek_source: vec![wrapped], key_id: "k".to_owned(), ..Default::default() }
    }

    #[test]
    fn an_entry_serves_after_its_day_until_anything_else_is_inserted() {
        let source = Arc::new(DekSource::generate(&OsEntropy).unwrap());
        let mut cache = DecryptCache::default();
        let (a, b) = (CacheKey::of(&object(1)), CacheKey::of(&object(2)));
        cache.insert(Moment(0), a, Arc::clone(&source));
        assert!(cache.find(&a).is_some(), "reads do not ask for the time at all");
        cache.insert(Moment(24 * HOUR), b, Arc::clone(&source));
        assert!(cache.find(&a).is_some());
        cache.insert(Moment(24 * HOUR + 1), b, source);
        assert!(cache.find(&a).is_none() && cache.find(&b).is_some());
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn everything_that_goes_to_decrypt_is_part_of_the_key() {
        let base = CacheKey::of(&object(1));
        assert_eq!(base, CacheKey::of(&EncryptedObject { encrypted_data: vec![9], ..object(1) }));
        for other in [
            object(2),
            EncryptedObject { key_id: "l".to_owned(), ..object(1) },
            EncryptedObject { encrypted_dek_source_type: 1, ..object(1) },
            EncryptedObject { annotations: BTreeMap::from([("a.io".to_owned(), vec![])]), ..object(1) },
        ] {
            assert_ne!(base, CacheKey::of(&other), "{other:?}");
        }
    }
}
