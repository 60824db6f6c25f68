//! The objects of a rehearsal as etcd has them: full key, stored value. In memory, and counted without any key.
//!
//! What an object holds is known from its key, so that a read is compared byte for byte.

use kube_kms_etcd::value::Value;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Store(BTreeMap<String, Vec<u8>>);

/// Which objects are under which key_id.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Keys of the objects by key_id.
    pub(crate) under: BTreeMap<String, Vec<String>>,
    /// Objects whose value is not of a KMS v2 provider.
    pub(crate) unknown: usize,
}

impl Tally {
    /// How many are under this key_id.
    pub(crate) fn count(&self, key_id: &str) -> usize {
        self.under.get(key_id).map_or(0, Vec::len)
    }

    /// For people: `200 under k1-ab…`.
    pub(crate) fn describe(&self) -> String {
        let mut parts: Vec<String> = self.under.iter().map(|(id, keys)| format!("{} under {id}", keys.len())).collect();
        if self.unknown > 0 {
            parts.push(format!("{} not under KMS v2", self.unknown));
        }
        if parts.is_empty() { "no objects".to_owned() } else { parts.join(", ") }
    }
}

impl Store {
    /// The etcd key of object `n` of a group.
    pub(crate) fn key(group: &str, n: usize) -> String {
        format!("/registry/secrets/drill/{group}-{n:05}")
    }

    /// What the object with this key holds.
    pub(crate) fn content(key: &str) -> Vec<u8> {
        format!("a secret of the drill, known by its key {key}").into_bytes()
    }

    pub(crate) fn put(&mut self, key: &str, value: Vec<u8>) {
        self.0.insert(key.to_owned(), value);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The scan: each value is told apart as `kmsctl scan` does, but every object is kept by name.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (key, value) in &self.0 {
            match Value::parse(value) {
                Value::KmsV2(object) => tally.under.entry(object.key_id.to_owned()).or_default().push(key.clone()),
                Value::Other(_) | Value::Damaged(_) => tally.unknown = tally.unknown.saturating_add(1),
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_v2_api::stored;
    use kms_v2_api::v2::EncryptedObject;

    #[test]
    fn objects_are_counted_by_key_id_and_what_is_not_encrypted_apart() {
        let mut store = Store::default();
        for (n, key_id) in ["a", "b", "b"].iter().enumerate() {
            let object = EncryptedObject {
                key_id: (*key_id).to_owned(),
                encrypted_data: vec![1],
                encrypted_dek_source: vec![1],
                ..Default::default()
            };
            store.put(&Store::key("x", n), stored::encode("drill", &object));
        }
        store.put("/registry/plain", b"{}".to_vec());
        let tally = store.tally();
        assert_eq!((tally.count("a"), tally.count("b"), tally.count("c"), tally.unknown), (1, 2, 0, 1));
        assert_eq!(tally.describe(), "1 under a, 2 under b, 1 not under KMS v2");
    }
}
