//! One KMS account in one region: answers so many calls in each second and throttles the rest, as AWS describes its quotas.
//!
//! Guarantees: every call is counted in the second in which it was made. Refuses to know who calls. SPEC: AWS KMS Developer
//! Guide, "Request quotas": one quota for Encrypt and Decrypt together, for each second, account and region.

use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::port::{Kek, KekCall, KekFuture, Unwrapped, Wrapped};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// What one call takes, answered or throttled.
const LATENCY: Duration = Duration::from_millis(20);

/// The calls of one second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    pub made: u64,
    pub throttled: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Account {
    quota: u64,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    version: u8,
    away: bool,
    seconds: Vec<Second>,
}

impl Account {
    pub fn new(quota: u64) -> Arc<Self> {
        let state = State { version: 1, away: false, seconds: Vec::new() };
        Arc::new(Self { quota, began: Instant::now(), state: Mutex::new(state) })
    }

    /// The KEKs of all clusters have new key material from now on.
    pub fn rotate(&self) {
        self.state.lock().unwrap().version += 1;
    }

    /// Nobody is answered from now on, or everybody is again.
    pub fn set_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// Whole seconds since the beginning.
    pub fn second(&self) -> usize {
        self.began.elapsed().as_secs() as usize
    }

    /// The seconds from this one on.
    pub fn since(&self, second: usize) -> Vec<Second> {
        let state = self.state.lock().unwrap();
        state.seconds.get(second..).unwrap_or_default().to_vec()
    }

    /// One call; the version that answers it.
    async fn ask(&self) -> Result<u8, Fault> {
        let outcome = self.admit();
        tokio::time::sleep(LATENCY).await;
        outcome.map_err(Fault::new)
    }

    fn admit(&self) -> Result<u8, Reason> {
        let second = self.second();
        let mut state = self.state.lock().unwrap();
        if state.seconds.len() <= second {
            state.seconds.resize(second + 1, Second::default());
        }
        let (away, version) = (state.away, state.version);
        let now = &mut state.seconds[second];
        now.made += 1;
        if away {
            return Err(Reason::KmsUnreachable);
        }
        if now.made - now.throttled > self.quota {
            now.throttled += 1;
            return Err(Reason::KmsThrottled);
        }
        Ok(version)
    }
}

/// The KEK of one cluster. Its blobs are the version and the key in clear: nothing here is secret.
#[derive(Debug)]
pub struct AccountKek(pub Arc<Account>);

/// The KEK's name.
pub fn kek_ref() -> KekRef {
    KekRef::new(KekKind::AWS, "arn:aws:kms:eu-central-1:111122223333:key/0d1f6a52-5c3e-4f0a-9d2e-1b2c3d4e5f60").unwrap()
}

/// This version of it.
pub fn version(number: u8) -> KekVersion {
    KekVersion { kek: kek_ref(), version: number.to_string() }
}

impl Kek for AccountKek {
    fn kind(&self) -> KekKind {
        KekKind::AWS
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        *kek == kek_ref()
    }

    fn wrap_dek<'a>(&'a self, dek: &'a DekBytes, _: &'a WrapContext, _: &'a KekCall) -> KekFuture<'a, Wrapped> {
        Box::pin(async move {
            let version = self.0.ask().await?;
            let blob = [&[version], dek.expose_bytes().as_slice()].concat();
            Ok(Wrapped { dek: WrappedDek::parse(blob)?, kek: kek_ref() })
        })
    }

    fn unwrap_dek<'a>(
        &'a self,
        _: &'a KekRef,
        dek: &'a WrappedDek,
        _: &'a WrapContext,
        _: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped> {
        Box::pin(async move {
            self.0.ask().await?;
            let (number, key) = dek.as_bytes().split_first().unwrap();
            Ok(Unwrapped { dek: DekBytes::copy_from(key)?, version: version(*number) })
        })
    }
}
