//! Everything that was ever sealed in a soak, in a file, and what it was.
//!
//! Guarantees: a value is in the file before anybody may ask for it; it is judged by a hash of its seed, kept apart from the
//! file. Refuses to know sockets and processes.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use kms_v2_api::v2::EncryptResponse;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

type Hash = [u8; 32];

/// One line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// What Encrypt returned, with the hash of what it was given.
    Sealed { seed: String, ciphertext: String, key_id: String, annotations: BTreeMap<String, String> },
    /// What an API server wrote to etcd under this key.
    Object { key: String, value: String },
}

impl Entry {
    /// The value as a plugin returned it.
    pub fn to_response(&self) -> Option<(Hash, EncryptResponse)> {
        let Self::Sealed { seed, ciphertext, key_id, annotations } = self else { return None };
        let seed = hex::decode(seed).unwrap().try_into().unwrap();
        let annotations = annotations.iter().map(|(name, v)| (name.clone(), from_base64(v))).collect();
        Some((seed, EncryptResponse { ciphertext: from_base64(ciphertext), key_id: key_id.clone(), annotations }))
    }

    /// The object's key and value.
    pub fn to_object(&self) -> Option<(String, Vec<u8>)> {
        let Self::Object { key, value } = self else { return None };
        Some((key.clone(), from_base64(value)))
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).unwrap()
}

/// What an object of this key has inside: known without keeping it.
pub fn content(key: &str) -> Vec<u8> {
    format!("what {key} holds").into_bytes()
}

pub fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// See the module.
pub struct Ledger {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
    seeds: Mutex<HashMap<Hash, Hash>>,
    values: Mutex<Vec<Arc<EncryptResponse>>>,
    objects: Mutex<Vec<(String, Arc<Vec<u8>>)>>,
}

impl Ledger {
    pub fn create(path: &Path) -> Self {
        let file = Mutex::new(BufWriter::new(File::create(path).unwrap()));
        let (seeds, values, objects) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { path: path.to_owned(), file, seeds, values, objects }
    }

    fn append(&self, entry: &Entry) {
        let mut file = self.file.lock().unwrap();
        serde_json::to_writer(&mut *file, entry).unwrap();
        file.write_all(b"\n").unwrap();
    }

    /// Encrypt returned this for that seed.
    pub fn keep(&self, seed: &[u8], sealed: &EncryptResponse) {
        let seed = hash(seed);
        self.append(&Entry::Sealed {
            seed: hex::encode(seed),
            ciphertext: BASE64_STANDARD.encode(&sealed.ciphertext),
            key_id: sealed.key_id.clone(),
            annotations: sealed.annotations.iter().map(|(n, v)| (n.clone(), BASE64_STANDARD.encode(v))).collect(),
        });
        self.seeds.lock().unwrap().insert(hash(&sealed.ciphertext), seed);
        self.values.lock().unwrap().push(Arc::new(sealed.clone()));
    }

    /// An API server has put this into etcd.
    pub fn keep_object(&self, key: &str, value: Vec<u8>) {
        self.append(&Entry::Object { key: key.to_owned(), value: BASE64_STANDARD.encode(&value) });
        self.objects.lock().unwrap().push((key.to_owned(), Arc::new(value)));
    }

    /// Whether this is what was sealed; `None` for a ciphertext that is not in the ledger.
    pub fn is_right(&self, ciphertext: &[u8], plaintext: &[u8]) -> Option<bool> {
        let seed = self.seeds.lock().unwrap().get(&hash(ciphertext)).copied()?;
        Some(seed == hash(plaintext))
    }

    /// How many values and objects there are.
    pub fn len(&self) -> (usize, usize) {
        (self.values.lock().unwrap().len(), self.objects.lock().unwrap().len())
    }

    /// A value by its number; the newest for a number that is too great.
    pub fn value(&self, at: usize) -> Option<Arc<EncryptResponse>> {
        let values = self.values.lock().unwrap();
        values.get(at).or_else(|| values.last()).cloned()
    }

    /// An object by its number; the newest for a number that is too great.
    pub fn object(&self, at: usize) -> Option<(String, Arc<Vec<u8>>)> {
        let objects = self.objects.lock().unwrap();
        objects.get(at).or_else(|| objects.last()).cloned()
    }

    /// Everything, read from the file again.
    pub fn read_back(&self) -> Vec<Entry> {
        self.file.lock().unwrap().flush().unwrap();
        let lines = BufReader::new(File::open(&self.path).unwrap()).lines();
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }
}
