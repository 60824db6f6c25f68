//! What the tests of this folder share: a KEK that does as it is told, a clock that is moved by hand, and an observer that
//! remembers.

use crate::kek_set::{KekEntry, KekSet};
use crate::observer::{KekOperation, KeyringEvent, Observer, Rpc};
use crate::plugin::{Parts, Plugin};
use crate::settings::Settings;
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Clock, Kek, KekCall, KekFuture, Moment, Unwrapped, Wrapped};
use kube_kms_os::OsEntropy;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// A clock that stands still until it is moved, unless it follows the runtime's.
#[derive(Debug, Default)]
pub(super) struct HandClock(AtomicU64, Option<Instant>);

impl HandClock {
    /// One that goes with the runtime's time, which tests pause.
    pub(super) fn going() -> Self {
        Self(AtomicU64::default(), Some(Instant::now()))
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Moment {
        let going = self.1.map_or(0, |began| u64::try_from(began.elapsed().as_nanos()).unwrap());
        Moment(self.0.load(Ordering::Relaxed) + going)
    }
}

/// What a [`ScriptedKek`] does until it is told otherwise.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// The version that wraps; an unwrap tells it from the blob.
    pub(super) version: &'static str,
    /// Every wrap fails.
    pub(super) wrap_fails: Option<Reason>,
    /// Every unwrap fails.
    pub(super) unwrap_fails: Option<Reason>,
    /// An unwrap gives another key back than was wrapped.
    pub(super) forgets: bool,
    /// An unwrap says that it was another KEK.
    pub(super) unwraps_as: &'static str,
    /// Calls never end; with a reason to fail, they fail when their time is over.
    pub(super) hangs: bool,
}

/// A KEK `local:kek` that keeps what it wrapped in clear, in the blob: version, NUL, key.
#[derive(Debug)]
pub(super) struct ScriptedKek {
    script: Mutex<Script>,
    wraps: AtomicU64,
}

impl ScriptedKek {
    pub(super) fn new(version: &'static str) -> Arc<Self> {
        let script =
            Script { version, wrap_fails: None, unwrap_fails: None, forgets: false, unwraps_as: "kek", hangs: false };
        Arc::new(Self { script: Mutex::new(script), wraps: AtomicU64::new(0) })
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// Wraps and unwraps fail for this reason; `None`: they work again.
    pub(super) fn fail(&self, reason: Option<Reason>) {
        self.set(|script| (script.wrap_fails, script.unwrap_fails) = (reason, reason));
    }

    /// How often it was asked to wrap: once for each probe.
    pub(super) fn wraps(&self) -> u64 {
        self.wraps.load(Ordering::Relaxed)
    }

    fn now(&self) -> Script {
        self.script.lock().unwrap().clone()
    }
}

fn kek_ref(identity: &str) -> KekRef {
    KekRef::new(KekKind::LOCAL, identity).unwrap()
}

/// The key_id of a version of a scripted KEK.
pub(super) fn key_id_of(version: &str, epoch: u64) -> KeyId {
    KeyId::derive(&KekVersion { kek: kek_ref("kek"), version: version.to_owned() }, epoch)
}

impl Kek for ScriptedKek {
    fn kind(&self) -> KekKind {
        KekKind::LOCAL
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        *kek == kek_ref("kek")
    }

    fn wrap_dek<'a>(&'a self, dek: &'a DekBytes, _: &'a WrapContext, call: &'a KekCall) -> KekFuture<'a, Wrapped> {
        self.wraps.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let script = self.now();
            if script.hangs && script.wrap_fails.is_none() {
                std::future::pending::<()>().await;
            }
            if script.hangs {
                tokio::time::sleep(call.timeout).await;
            }
            if let Some(reason) = script.wrap_fails {
                return Err(Fault::caused_by(reason, "scripted"));
            }
            let blob = [script.version.as_bytes(), b"\0", dek.expose_bytes()].concat();
            Ok(Wrapped { dek: WrappedDek::parse(blob)?, kek: kek_ref("kek") })
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
            let script = self.now();
            if let Some(reason) = script.unwrap_fails {
                return Err(Fault::caused_by(reason, "scripted"));
            }
            let nul = dek.as_bytes().iter().position(|b| *b == 0).unwrap();
            let (version, key) = dek.as_bytes().split_at(nul);
            let dek = if script.forgets { DekBytes::generate(&OsEntropy)? } else { DekBytes::copy_from(&key[1..])? };
            let version = String::from_utf8(version.to_vec()).unwrap();
            Ok(Unwrapped { dek, version: KekVersion { kek: kek_ref(script.unwraps_as), version } })
        })
    }
}

/// Remembers KEK calls and publications.
#[derive(Debug, Default)]
pub(super) struct Remembering {
    pub(super) kek_calls: Mutex<Vec<(KekOperation, Result<(), Reason>)>>,
    pub(super) published: Mutex<Vec<bool>>,
    pub(super) keyring: Mutex<Vec<KeyringEvent>>,
}

impl Observer for Remembering {
    fn rpc(&self, _: Rpc, _: Result<(), Reason>, _: Duration) {}
    fn rpc_in_flight(&self, _: Rpc, _: i64) {}
    fn kek_call(&self, _: &'static str, operation: KekOperation, outcome: Result<(), Reason>, _: Duration) {
        self.kek_calls.lock().unwrap().push((operation, outcome));
    }
    fn keyring(&self, event: KeyringEvent) {
        self.keyring.lock().unwrap().push(event);
    }
    fn published(&self, rotated: bool) {
        self.published.lock().unwrap().push(rotated);
    }
}

/// An entry without a context of the operator's.
pub(super) fn entry(kek: &Arc<ScriptedKek>) -> KekEntry {
    KekEntry { kek: Arc::<ScriptedKek>::clone(kek), context: WrapContext::new(BTreeMap::new()) }
}

/// A plugin over this KEK.
pub(super) fn plugin(
    kek: &Arc<ScriptedKek>,
    settings: Settings,
    clock: &Arc<HandClock>,
    observer: &Arc<Remembering>,
    known: Option<KeyId>,
) -> Arc<Plugin> {
    let parts = Parts {
        keks: KekSet::new(entry(kek), Vec::new()),
        settings,
        clock: Arc::<HandClock>::clone(clock),
        entropy: Arc::new(OsEntropy),
        observer: Arc::<Remembering>::clone(observer),
    };
    Arc::new(Plugin::new(parts, known))
}
