//! A plugin that does all that docs/conformance.md asks of it and that a client can see, but for one [`Fault`].
//!
//! Its KMS is a folder: a file `outage` is one, every byte of the file `rotations` is a rotation; so a script can be the
//! control. It seals with AES-256-GCM under one key a version, with key_id and annotations as additional data: what no
//! fault is about holds for good reason.

use super::connection::Peer;
use super::fault::Fault;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::Status;

/// Slots that are used once, and slots that are used again and again.
const SLOTS: (usize, usize) = (100, 400);
const IN_A_ROW: u32 = 15;
const AT_ONCE: usize = 200;
/// Cancelled Decrypts that spoil its health, and for how long.
const BURST: u32 = 100;
const SPOILT: Duration = Duration::from_secs(4);
/// Status calls of a busy time.
const BUSY: u32 = 45;

/// See the module.
#[derive(Debug)]
pub struct Sound {
    pub fault: Fault,
    kms: PathBuf,
    statuses: AtomicU32,
    encrypts_in_a_row: AtomicU32,
    decrypting: AtomicUsize,
    cancelled: AtomicU32,
    encrypted: AtomicBool,
    was_busy: [AtomicBool; 2],
    memory: Mutex<Memory>,
}

/// Ciphertext, key_id, annotations.
type Triple = (Vec<u8>, String, BTreeMap<String, Vec<u8>>);

#[derive(Debug, Default)]
struct Memory {
    /// What was sealed: it needs no KMS to be opened.
    known: HashSet<Triple>,
    /// The newest ciphertext of each plaintext.
    newest: HashMap<Vec<u8>, Vec<u8>>,
    /// For [`Fault::SlotsUsedAgain`].
    slots: Vec<Vec<u8>>,
    slots_used: usize,
    outage_seen: bool,
    /// The Status call that first saw the rotation.
    rotation_seen_at: Option<u32>,
    spoilt_until: Option<Instant>,
}

impl Sound {
    pub fn new(fault: Fault, kms: PathBuf) -> Self {
        Self {
            fault,
            kms,
            statuses: AtomicU32::new(0),
            encrypts_in_a_row: AtomicU32::new(0),
            decrypting: AtomicUsize::new(0),
            cancelled: AtomicU32::new(0),
            encrypted: AtomicBool::new(false),
            was_busy: Default::default(),
            memory: Mutex::default(),
        }
    }

    /// A call to the KMS, which is a byte in a file, so that a script can count.
    fn asks_the_kms(&self) {
        let mut calls = std::fs::File::options().append(true).create(true).open(self.kms.join("calls")).unwrap();
        calls.write_all(b".").unwrap();
    }

    /// A Decrypt was reset.
    pub fn cancelled(&self) {
        if self.fault == Fault::CancelledSpoilHealth && self.cancelled.fetch_add(1, Ordering::SeqCst) >= BURST {
            self.memory.lock().unwrap().spoilt_until = Some(Instant::now() + SPOILT);
        }
    }

    pub fn is_busy_with_a_path(&self) -> bool {
        self.fault == Fault::BusyAtFirst && !self.was_busy[0].swap(true, Ordering::SeqCst)
    }

    pub fn is_busy_with_a_deadline(&self) -> bool {
        self.fault == Fault::BusyAtFirst && !self.was_busy[1].swap(true, Ordering::SeqCst)
    }

    fn outage(&self) -> bool {
        self.kms.join("outage").exists()
    }

    fn version(&self) -> u64 {
        match self.fault {
            Fault::RotationUnseen => 0,
            _ => std::fs::metadata(self.kms.join("rotations")).map_or(0, |file| file.len()),
        }
    }

    /// Whether an outage was the end of it.
    fn is_dead(&self) -> bool {
        self.fault == Fault::OutageKills && !self.outage() && self.memory.lock().unwrap().outage_seen
    }

    /// The versions that Status and Encrypt name now.
    fn named(&self) -> (u64, u64) {
        let newest = self.version();
        let old = newest.saturating_sub(1);
        match self.fault {
            Fault::RotationWithoutEncrypt => (newest, old),
            Fault::RotationToAndFro if newest > 0 => {
                let now = self.statuses.load(Ordering::SeqCst);
                let since = now - *self.memory.lock().unwrap().rotation_seen_at.get_or_insert(now);
                let version = if (4..8).contains(&since) { old } else { newest };
                (version, version)
            }
            _ => (newest, newest),
        }
    }

    pub async fn status(&self) -> Result<StatusResponse, Status> {
        let n = self.statuses.fetch_add(1, Ordering::SeqCst);
        self.encrypts_in_a_row.store(0, Ordering::SeqCst);
        if self.fault == Fault::StatusAsksTheKms && n % 10 == 9 {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        if self.fault == Fault::BusyAtFirst && n < BUSY && n % 5 == 4 {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        if self.fault == Fault::StatusCostsACall {
            self.asks_the_kms();
        }
        let outage = self.outage();
        let well = {
            let mut memory = self.memory.lock().unwrap();
            memory.outage_seen |= outage;
            let spoilt = memory.spoilt_until.is_some_and(|until| Instant::now() < until);
            !outage && !spoilt && (self.fault != Fault::OutageForGood || !memory.outage_seen)
        };
        let key_id = match self.fault {
            Fault::OutageFailsStatus if outage => return Err(Status::unavailable("the KMS is away")),
            Fault::OutageChangesKeyId if outage => "key-of-the-outage".to_owned(),
            _ => format!("key-{}", self.named().0),
        };
        let healthz = if well { "ok" } else { "the KMS is away" };
        Ok(StatusResponse { version: "v2".to_owned(), healthz: healthz.to_owned(), key_id })
    }

    pub async fn encrypt(&self, peer: &Peer, request: EncryptRequest) -> Result<EncryptResponse, Status> {
        let plaintext = &request.plaintext;
        if plaintext.is_empty() || plaintext.len() > 900 {
            return Err(Status::invalid_argument("1 to 900 bytes"));
        }
        if self.fault == Fault::ThirtyTwoBytesOnly && plaintext.len() != 32 {
            return Err(Status::invalid_argument("32 bytes"));
        }
        if self.fault == Fault::FirstEncryptRefused && !self.encrypted.swap(true, Ordering::SeqCst) {
            return Err(Status::unavailable("no connection to the KMS yet"));
        }
        if self.is_dead() {
            return Err(Status::unavailable("the KMS was away"));
        }
        if self.fault == Fault::EncryptCostsACall {
            self.asks_the_kms();
        }
        if self.fault == Fault::FewEncryptsInARow && self.encrypts_in_a_row.fetch_add(1, Ordering::SeqCst) >= IN_A_ROW {
            self.encrypts_in_a_row.store(0, Ordering::SeqCst);
            return Err(Status::resource_exhausted("the quota of the KMS is used up"));
        }
        let mut key = key(self.named().1);
        if self.outage() {
            match self.fault {
                Fault::OutageHangsEncrypt => std::future::pending().await,
                Fault::OutageMakesUpAKey => key = uuid_key(),
                _ => return Err(Status::unavailable("the KMS is away")),
            }
        }
        let annotations = BTreeMap::from([
            ("kek.sound.example".to_owned(), b"one".to_vec()),
            ("region.sound.example".to_owned(), b"here".to_vec()),
        ]);
        let key_id = format!("key-{}", self.named().1);
        let mut aad = additional(&key_id, &annotations);
        if self.fault == Fault::ThirdClientHasItsOwnKey && peer.crowd > 2 {
            aad.extend(peer.number.to_be_bytes());
        }
        let (nonce, inner) = match self.fault {
            Fault::SlotsUsedAgain => self.slot(plaintext),
            _ => (uuid::Uuid::new_v4().as_bytes()[..12].to_vec(), plaintext.clone()),
        };
        let sealed = key.encrypt(&Nonce::try_from(&nonce[..]).unwrap(), Payload { msg: &inner, aad: &aad }).unwrap();
        let ciphertext = [nonce, sealed].concat();
        let mut memory = self.memory.lock().unwrap();
        if !self.outage() {
            memory.known.insert((ciphertext.clone(), key_id.clone(), annotations.clone()));
        }
        memory.newest.insert(plaintext.clone(), ciphertext.clone());
        Ok(EncryptResponse { ciphertext, key_id, annotations })
    }

    /// A nonce and a content that say nothing but the number of the slot that the plaintext is in.
    fn slot(&self, plaintext: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut memory = self.memory.lock().unwrap();
        let used = memory.slots_used;
        memory.slots_used += 1;
        let slot = if used < SLOTS.0 { used } else { SLOTS.0 + (used - SLOTS.0) % SLOTS.1 };
        if memory.slots.len() <= slot {
            memory.slots.resize(slot + 1, Vec::new());
        }
        memory.slots[slot] = plaintext.to_vec();
        let number = u32::try_from(slot).unwrap().to_be_bytes();
        ([&[0; 8][..], &number].concat(), number.to_vec())
    }

    /// `body` is the message as it came, for whoever minds the order in it.
    pub async fn decrypt(&self, peer: &Peer, request: DecryptRequest, body: &[u8]) -> Result<DecryptResponse, Status> {
        self.encrypts_in_a_row.store(0, Ordering::SeqCst);
        if request.uid.is_empty() {
            match self.fault {
                Fault::EmptyUidUnanswered => std::future::pending().await,
                Fault::EmptyUidIsEmpty => return Ok(DecryptResponse { plaintext: Vec::new() }),
                _ => {}
            }
        }
        if self.is_dead() {
            return Err(Status::unavailable("the KMS was away"));
        }
        match self.fault {
            Fault::DecryptCostsACall => self.asks_the_kms(),
            Fault::SlowDecrypts => tokio::time::sleep(Duration::from_millis(150)).await,
            _ => {}
        }
        let at_once = Counted::one_more(&self.decrypting);
        if self.fault == Fault::FewDecryptsAtOnce {
            if at_once.others >= AT_ONCE {
                return Err(Status::resource_exhausted("too many calls"));
            }
            // They are slow for as long as a connection is new.
            let _ = peer.flight.join().await;
        }
        if self.fault == Fault::UnwrapOfTheFirst {
            peer.flight.join().await?;
        }
        let DecryptRequest { ciphertext, key_id, annotations, .. } = request.clone();
        if self.outage() && !self.memory.lock().unwrap().known.contains(&(ciphertext, key_id, annotations)) {
            match self.fault {
                Fault::OutageHangsUnknown => std::future::pending().await,
                Fault::OutageRefusesAtTheDeadline => tokio::time::sleep(Duration::from_millis(5720)).await,
                _ => {}
            }
            return Err(Status::unavailable("the KMS is away"));
        }
        if self.outage() && self.fault == Fault::OutageHangsDecrypt {
            std::future::pending().await
        }
        let plaintext = self.open(peer, &request, body).ok_or_else(|| Status::data_loss("it does not open"))?;
        Ok(DecryptResponse { plaintext })
    }

    fn open(&self, peer: &Peer, request: &DecryptRequest, body: &[u8]) -> Option<Vec<u8>> {
        let DecryptRequest { ciphertext, key_id, annotations, .. } = request;
        let version: u64 = key_id.strip_prefix("key-")?.parse().ok()?;
        let newest = self.version();
        if version > newest || (self.fault == Fault::RotationForgetsTheOld && version < newest) {
            return None;
        }
        if self.fault == Fault::AnnotationsInOrder {
            let place = |name: &str| body.windows(name.len()).position(|w| w == name.as_bytes());
            let places: Vec<_> = annotations.keys().map(|name| place(name)).collect();
            if !places.is_sorted() {
                return None;
            }
        }
        let (nonce, sealed) = ciphertext.split_at_checked(12)?;
        let common = additional(key_id, annotations);
        let own = [&common[..], &peer.number.to_be_bytes()].concat();
        let open =
            |aad: &[u8]| key(version).decrypt(&Nonce::try_from(nonce).unwrap(), Payload { msg: sealed, aad }).ok();
        let opened = open(&common).or_else(|| open(&own))?;
        let memory = self.memory.lock().unwrap();
        match self.fault {
            Fault::SlotsUsedAgain => {
                let slot = u32::from_be_bytes(opened.try_into().ok()?);
                memory.slots.get(usize::try_from(slot).unwrap()).cloned()
            }
            Fault::OneValuePerPlaintext if memory.newest.get(&opened) != Some(ciphertext) => None,
            _ => Some(opened),
        }
    }
}

fn key(version: u64) -> Aes256Gcm {
    Aes256Gcm::new(&[u8::try_from(version).unwrap(); 32].into())
}

fn uuid_key() -> Aes256Gcm {
    let halves = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
    Aes256Gcm::new_from_slice(&halves).unwrap()
}

fn additional(key_id: &str, annotations: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let texts = annotations.iter().flat_map(|(name, value)| [name.as_bytes(), value]);
    for text in std::iter::once(key_id.as_bytes()).chain(texts) {
        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend(text);
    }
    bytes
}

/// One of those that are counted, until it is dropped.
struct Counted<'a> {
    count: &'a AtomicUsize,
    others: usize,
}

impl<'a> Counted<'a> {
    fn one_more(count: &'a AtomicUsize) -> Self {
        Self { count, others: count.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}
