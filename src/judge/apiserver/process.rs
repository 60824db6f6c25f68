//! What everything in one simulated kube-apiserver process shares: clock, randomness and notebook.

use crate::apiserver::record::Record;
use kube_kms_core::fault::Fault;
use kube_kms_core::port::{Clock, Entropy, Moment};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One KMS v2 provider in the EncryptionConfiguration, and what the simulator makes of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `name`: part of every stored value. Without a colon.
    pub name: String,
    /// `timeout`: how long each RPC may take.
    pub timeout: Duration,
    /// A Status that takes longer than this is a finding.
    pub status_slow: Duration,
}

impl Settings {
    /// With kube-apiserver's default timeout of 3 s, and 1 s for a Status: a plugin answers it from memory.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), timeout: Duration::from_secs(3), status_slow: Duration::from_secs(1) }
    }
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    record: Mutex<Record>,
}

impl Process {
    pub(super) fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy, record: Mutex::default() }
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The notebook. Never held across an await.
    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        locked(&self.record)
    }

    /// A request id, as kube-apiserver draws it.
    pub(super) fn uid(&self) -> Result<String, Fault> {
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes)?;
        Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
    }
}

/// The lock, also after a panic elsewhere: nothing in here is ever left half done.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
