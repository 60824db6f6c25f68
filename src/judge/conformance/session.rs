//! What the checks of one run share: the connection, a value that was sealed, and what was seen along the way.
//!
//! Guarantees: every call is counted and every refusal is kept, whoever made it; plaintexts are random and are never
//! shown. Refuses to know the list.

use super::control::{ControlError, KmsControl};
use super::wire::{Answer, Call, DECRYPT, ENCRYPT, Pending, STATUS, Trouble, Wire};
use super::{Bounds, Error};
use crate::apiserver;
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use kms_v2_client::kms::Target;
use kms_v2_client::plugin::Rpc;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tonic::Code;

/// Refusals that are kept word by word.
const MESSAGES_KEPT: usize = 1000;

/// Why a check has no good end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// This was seen.
    Failed(String),
    /// This keeps it from being checked.
    NotApplicable(String),
    /// Nothing more can be checked, and it is not the plugin's fault.
    Aborted(Error),
}

impl Stop {
    /// Why an act was not done: what declines leaves items unchecked, what cannot be run ends the run.
    pub(super) fn of_control(error: ControlError) -> Self {
        match error {
            ControlError::Declined(why) => Self::NotApplicable(why),
            ControlError::NotRun(why) => Self::Aborted(Error::Control(why)),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) | Self::NotApplicable(why) => f.write_str(why),
            Self::Aborted(error) => error.fmt(f),
        }
    }
}

/// What a check says: what was measured, or why not.
pub(super) type Check = Result<String, Stop>;

pub(super) fn failed<T>(seen: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(seen.into()))
}

pub(super) fn not_applicable<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::NotApplicable(why.into()))
}

/// What was seen over the run.
#[derive(Debug, Default)]
pub(super) struct Witness {
    pub(super) calls: BTreeMap<Rpc, u64>,
    pub(super) versions: BTreeSet<String>,
    pub(super) codes: BTreeMap<i32, u64>,
    pub(super) messages: BTreeSet<String>,
}

impl Witness {
    fn count(&mut self, rpc: Rpc) {
        let calls = self.calls.entry(rpc).or_default();
        *calls = calls.saturating_add(1);
    }

    fn refused(&mut self, code: Code, message: &str) {
        let times = self.codes.entry(i32::from(code)).or_default();
        *times = times.saturating_add(1);
        if self.messages.len() < MESSAGES_KEPT {
            self.messages.insert(message.to_owned());
        }
    }

    pub(super) fn answered<M>(&mut self, rpc: Rpc, answer: &Result<M, tonic::Status>) {
        self.count(rpc);
        // Our own clock ends a call with DEADLINE_EXCEEDED too. What has a source was made here, of a lost connection.
        if let Err(status) = answer
            && status.code() != Code::DeadlineExceeded
            && std::error::Error::source(status).is_none()
        {
            self.refused(status.code(), status.message());
        }
    }
}

/// One connection, and who counts.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) wire: Arc<Wire>,
    pub(super) timeout: Duration,
    witness: Arc<Mutex<Witness>>,
}

impl Caller {
    pub(super) fn witness(&self) -> MutexGuard<'_, Witness> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call that the check makes by itself.
    pub(super) fn count(&self, path: &str) {
        let rpc = match path {
            ENCRYPT => Rpc::Encrypt,
            DECRYPT => Rpc::Decrypt,
            _ => Rpc::Status,
        };
        self.witness().count(rpc);
    }

    pub(super) async fn send(&self, call: &Call) -> Result<Answer, Trouble> {
        self.count(call.path);
        self.wire.call(call, self.timeout).await
    }

    pub(super) async fn call<M: Message + Default>(&self, call: &Call) -> Result<M, Trouble> {
        self.message(self.send(call).await)
    }

    /// Sends a call and does not wait for its answer.
    pub(super) async fn start(&self, call: &Call) -> Result<Pending, Trouble> {
        self.count(call.path);
        tokio::time::timeout(self.timeout, self.wire.start(call)).await.unwrap_or(Err(Trouble::Late))
    }

    /// The answer to a call that was started.
    pub(super) async fn finish<M: Message + Default>(&self, started: Pending) -> Result<M, Trouble> {
        self.message(tokio::time::timeout(self.timeout, started.answer()).await.unwrap_or(Err(Trouble::Late)))
    }

    fn message<M: Message + Default>(&self, answer: Result<Answer, Trouble>) -> Result<M, Trouble> {
        let answer = answer.and_then(|answer| answer.message());
        if let Err(Trouble::Status(code, message)) = &answer {
            self.witness().refused(*code, message);
        }
        answer
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, Trouble> {
        let status: StatusResponse = self.call(&Call::new(STATUS, &StatusRequest {})).await?;
        self.witness().versions.insert(status.version.clone());
        Ok(status)
    }

    pub(super) async fn encrypt(&self, plaintext: &[u8]) -> Result<EncryptResponse, Trouble> {
        self.call(&Call::new(ENCRYPT, &EncryptRequest { plaintext: plaintext.to_vec(), uid: uid() })).await
    }

    pub(super) async fn decrypt(&self, sealed: &EncryptResponse) -> Result<Vec<u8>, Trouble> {
        let mut opened: DecryptResponse = self.call(&Call::new(DECRYPT, &decrypt_request(sealed))).await?;
        Ok(std::mem::take(&mut opened.plaintext))
    }

    /// Whether it still opens to this.
    pub(super) async fn opens(&self, value: &Sealed) -> Result<(), Stop> {
        opened_to(self.decrypt(&value.sealed).await, value)
    }
}

/// Whether that is what was sealed.
pub(super) fn opened_to(opened: Result<Vec<u8>, Trouble>, value: &Sealed) -> Result<(), Stop> {
    match opened {
        Ok(plaintext) if plaintext == value.plaintext => Ok(()),
        Ok(plaintext) => failed(format!("Decrypt returned {} other bytes", plaintext.len())),
        Err(trouble) => failed(format!("Decrypt failed: {trouble}")),
    }
}

/// What Encrypt was given and what it returned.
#[derive(Clone)]
pub(super) struct Sealed {
    pub(super) plaintext: Vec<u8>,
    pub(super) sealed: EncryptResponse,
}

/// Everything of one run.
pub(super) struct Session {
    pub(super) target: Target,
    pub(super) timeout: Duration,
    pub(super) bounds: Bounds,
    pub(super) control: Option<Arc<dyn KmsControl>>,
    pub(super) witness: Arc<Mutex<Witness>>,
    pub(super) life: Option<apiserver::Report>,
    /// What the simulated hour left behind.
    pub(super) after_the_hour: Option<Stop>,
    /// Who left the plugin saying that it is not well, and what it says.
    pub(super) spoilt: Option<(u8, String)>,
    pub(super) rotation: Option<super::rotation::Seen>,
    pub(super) outage: Option<super::outage::Seen>,
    /// Says what is waited for.
    pub(super) waiting: Box<dyn Fn(&str) + Send + Sync>,
    wire: Option<Arc<Wire>>,
    sealed: Option<Result<Sealed, Stop>>,
}

impl Session {
    pub(super) fn new(
        target: Target,
        timeout: Duration,
        bounds: Bounds,
        control: Option<Arc<dyn KmsControl>>,
        waiting: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        Self {
            target,
            timeout,
            bounds,
            control,
            witness: Arc::default(),
            life: None,
            after_the_hour: None,
            spoilt: None,
            rotation: None,
            outage: None,
            waiting,
            wire: None,
            sealed: None,
        }
    }

    pub(super) fn witness(&self) -> MutexGuard<'_, Witness> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the connection that all share; a new one when that is gone.
    pub(super) async fn caller(&mut self) -> Result<Caller, Stop> {
        let caller = match self.wire.take().filter(|wire| wire.is_open()) {
            Some(wire) => self.on(wire),
            None => self.new_caller().await?,
        };
        self.wire = Some(Arc::clone(&caller.wire));
        Ok(caller)
    }

    /// On a connection of its own.
    pub(super) async fn new_caller(&self) -> Result<Caller, Stop> {
        match Wire::connect(&self.target, self.timeout).await {
            Ok(wire) => Ok(self.on(Arc::new(wire))),
            Err(trouble) => failed(format!("it takes no connection: {trouble}")),
        }
    }

    fn on(&self, wire: Arc<Wire>) -> Caller {
        Caller { wire, timeout: self.timeout, witness: Arc::clone(&self.witness) }
    }

    /// A value that was sealed in this run and opens. What fails once may have been unlucky; what fails again is what it is.
    pub(super) async fn value(&mut self) -> Result<Sealed, Stop> {
        if let Some(known) = &self.sealed {
            return known.clone();
        }
        let mut made = self.new_value().await;
        if made.is_err() {
            made = self.new_value().await;
        }
        self.sealed = Some(made.clone());
        made
    }

    /// Likewise, sealed now.
    pub(super) async fn new_value(&mut self) -> Result<Sealed, Stop> {
        let caller = self.caller().await?;
        let plaintext = random(32);
        let sealed = match caller.encrypt(&plaintext).await {
            Ok(sealed) => sealed,
            Err(trouble) => return not_applicable(format!("Encrypt does not work (item 31): {trouble}")),
        };
        let value = Sealed { plaintext, sealed };
        match caller.opens(&value).await {
            Ok(()) => Ok(value),
            Err(_) => not_applicable("Decrypt does not work (item 45)"),
        }
    }
}

pub(super) fn decrypt_request(sealed: &EncryptResponse) -> DecryptRequest {
    let EncryptResponse { ciphertext, key_id, annotations } = sealed.clone();
    DecryptRequest { ciphertext, uid: uid(), key_id, annotations }
}

/// A value as another plugin, or another key, might have made it: the last byte of a name or of the ciphertext is another.
pub(super) fn altered(sealed: &EncryptResponse) -> EncryptResponse {
    let mut other = sealed.clone();
    let last = match other.annotations.values_mut().find(|value| !value.is_empty()) {
        Some(value) => value.last_mut(),
        None => other.ciphertext.last_mut(),
    };
    if let Some(byte) = last {
        *byte ^= 1;
    }
    other
}

pub(super) fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Random bytes that nothing depends on: what a check seals protects nothing.
pub(super) fn random(len: usize) -> Vec<u8> {
    std::iter::repeat_with(|| uuid::Uuid::new_v4().into_bytes()).flatten().take(len).collect()
}
