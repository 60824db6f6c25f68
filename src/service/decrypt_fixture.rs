//! For the tests of the service: a KEK that does as it is told, the runtime's paused clock, values to decrypt.

use crate::decrypt::{DecryptInput, Opened};
use crate::fixture::settings;
use crate::kek_set::{KekEntry, KekSet};
use crate::observer::Unobserved;
use crate::plugin::{Parts, Plugin, Published};
use crate::settings::Settings;
use crate::state_file::{Remembered, StateFile};
use crate::supervisor::{Reload, Supervisor};
use kube_kms_core::annotation::{AdditionalData, Annotations, WrappedDek};
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::{DEK_LEN, Dek, DekBytes};
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::health::State;
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_core::port::{Clock, Kek, KekCall, KekFuture, Moment, Unwrapped, Wrapped};
use kube_kms_core::uid::Uid;
use kube_kms_os::OsEntropy;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The runtime's clock, which stands still until everybody waits (`start_paused`).
#[derive(Debug)]
pub(super) struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }
}

/// What a [`ScriptedKek`] does with one unwrap.
#[derive(Clone, Copy, Debug)]
pub(super) enum Line {
    /// Unwraps, after this time.
    Unwrap(Duration),
    /// Fails at once.
    Fail(Reason),
    /// Answers nothing until the call's time is over.
    Hang,
    /// Panics.
    Panic,
    /// After this time: unwraps, but rejects the blobs of [`FORGED`] DEKs.
    Judge(Duration),
}

/// The DEKs from this number on are forged: see [`Line::Judge`].
pub(super) const FORGED: u32 = 1 << 31;

/// Its lines in order, the last one for ever, until it is told what to say from now on.
#[derive(Debug)]
pub(super) struct ScriptedKek {
    identity: &'static str,
    lines: Vec<Line>,
    now: Mutex<Option<Line>>,
    heard: Mutex<Vec<(Instant, Duration)>>,
}

impl ScriptedKek {
    pub(super) fn new(identity: &'static str, lines: &[Line]) -> Arc<Self> {
        Arc::new(Self { identity, lines: lines.to_vec(), now: Mutex::default(), heard: Mutex::default() })
    }

    /// What it does from now on.
    pub(super) fn say(&self, line: Line) {
        *self.now.lock().unwrap() = Some(line);
    }

    /// When it was asked, and with how much time.
    pub(super) fn heard(&self) -> Vec<(Instant, Duration)> {
        self.heard.lock().unwrap().clone()
    }

    pub(super) fn calls(&self) -> usize {
        self.heard().len()
    }
}

impl Kek for ScriptedKek {
    fn kind(&self) -> KekKind {
        KekKind::LOCAL
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        kek.identity() == self.identity
    }

    /// The blob is the DEK. It fails as an unwrap does, and until it has been told what to say it cannot wrap.
    fn wrap_dek<'a>(&'a self, dek: &'a DekBytes, _: &'a WrapContext, call: &'a KekCall) -> KekFuture<'a, Wrapped> {
        let line = *self.now.lock().unwrap();
        Box::pin(async move {
            match line {
                Some(Line::Unwrap(_) | Line::Judge(_)) => Ok(Wrapped {
                    dek: WrappedDek::parse(dek.expose_bytes().to_vec())?,
                    kek: KekRef::new(KekKind::LOCAL, self.identity)?,
                }),
                Some(Line::Fail(reason)) => Err(reason.into()),
                Some(Line::Hang) => {
                    tokio::time::sleep(call.timeout).await;
                    Err(Reason::Deadline.into())
                }
                Some(Line::Panic) | None => Err(Reason::KekUnusable.into()),
            }
        })
    }

    fn unwrap_dek<'a>(
        &'a self,
        kek: &'a KekRef,
        dek: &'a WrappedDek,
        _: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped> {
        let nth = {
            let mut heard = self.heard.lock().unwrap();
            heard.push((Instant::now(), call.timeout));
            heard.len() - 1
        };
        let line = self.now.lock().unwrap().unwrap_or_else(|| self.lines[nth.min(self.lines.len() - 1)]);
        Box::pin(async move {
            match line {
                Line::Unwrap(after) | Line::Judge(after) => {
                    tokio::time::timeout(call.timeout, tokio::time::sleep(after))
                        .await
                        .map_err(|_| Reason::Deadline)?;
                    if matches!(line, Line::Judge(_)) && dek.as_bytes() >= FORGED.to_be_bytes().as_slice() {
                        return Err(Reason::WrappedDekRejected.into());
                    }
                    let version = KekVersion { kek: kek.clone(), version: "v".to_owned() };
                    Ok(Unwrapped { dek: raw_dek(dek.as_bytes()), version })
                }
                Line::Fail(reason) => Err(reason.into()),
                Line::Hang => {
                    tokio::time::sleep(call.timeout).await;
                    Err(Reason::Deadline.into())
                }
                Line::Panic => panic!("as the script says"),
            }
        })
    }
}

/// The DEK in a blob is the blob's beginning, over and over.
fn raw_dek(blob: &[u8]) -> DekBytes {
    let raw: Vec<u8> = blob.iter().copied().cycle().take(DEK_LEN).collect();
    DekBytes::copy_from(&raw).unwrap()
}

/// The annotations of the `n`th DEK under the KEK `local:<identity>`.
pub(super) fn annotations(identity: &str, n: u32) -> Annotations {
    let kek = KekRef::new(KekKind::LOCAL, identity).unwrap();
    Annotations::new(&kek, &WrappedDek::parse(n.to_be_bytes().to_vec()).unwrap())
}

/// The `n`th DEK.
pub(super) fn dek(n: u32) -> Arc<Dek> {
    Arc::new(Dek::new(&raw_dek(&n.to_be_bytes())).unwrap())
}

/// A plugin without a write state, which writes under the first KEK and reads under the others.
pub(super) fn plugin(keks: &[&Arc<ScriptedKek>], change: impl FnOnce(&mut Settings)) -> Arc<Plugin> {
    let mut entries = keks.iter().map(|kek| entry(kek));
    plugin_over(KekSet::new(entries.next().unwrap(), entries.collect()), change)
}

/// The KEK as it stands in a configuration.
pub(super) fn entry(kek: &Arc<ScriptedKek>) -> KekEntry {
    KekEntry { kek: Arc::<ScriptedKek>::clone(kek), context: WrapContext::new(BTreeMap::new()) }
}

/// A plugin without a write state, over these KEKs.
pub(super) fn plugin_over(keks: KekSet, change: impl FnOnce(&mut Settings)) -> Arc<Plugin> {
    let mut settings = settings();
    change(&mut settings);
    let clock = Arc::new(PausedClock(Instant::now()));
    Arc::new(Plugin::new(
        Parts { keks, settings, clock, entropy: Arc::new(OsEntropy), observer: Arc::new(Unobserved) },
        None,
    ))
}

/// As after a probe that found the KMS away.
pub(super) fn begin_outage(plugin: &Plugin) {
    let state = State::Coasting { because: Reason::KmsUnreachable, age: Duration::ZERO };
    plugin.publish(Published::new(state, None, None, None, None));
}

/// Decrypts a value under the `n`th DEK of the KEK `k`, for a caller who waits so long.
pub(super) async fn decrypt(plugin: &Arc<Plugin>, n: u32, patience: Duration) -> Result<Opened, Fault> {
    decrypt_under(plugin, "some-id", &annotations("k", n), patience).await
}

/// Decrypts a value with this key_id and these annotations, under the DEK that they name.
pub(super) async fn decrypt_under(
    plugin: &Arc<Plugin>,
    key_id: &str,
    annotations: &Annotations,
    patience: Duration,
) -> Result<Opened, Fault> {
    let n = u32::from_be_bytes(annotations.wrapped_dek().try_into().unwrap());
    let key_id = KeyId::parse(key_id.to_owned()).unwrap();
    let aad = AdditionalData::bind(&key_id, annotations.all());
    let ciphertext = dek(n).seal(&OsEntropy, &aad, &n.to_be_bytes()).unwrap();
    let uid = Uid::parse("u");
    let input = DecryptInput {
        ciphertext: &ciphertext,
        key_id: key_id.as_str().to_owned(),
        annotations: annotations.all().clone(),
        uid: &uid,
        patience,
    };
    let opened = plugin.decrypt(input).await?;
    assert_eq!(*opened.plaintext, n.to_be_bytes());
    Ok(opened)
}

/// Runs a supervisor over this plugin until what is returned is dropped, from when it is ready.
pub(super) async fn supervise(plugin: &Arc<Plugin>) -> Supervised {
    let state = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(Arc::clone(plugin), StateFile::new(state.path()), Remembered::default());
    let (reloads, queue) = mpsc::channel(1);
    tokio::spawn(supervisor.run(queue));
    while plugin.published().write.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Supervised { _reloads: reloads, _state: state }
}

/// See [`supervise`].
#[derive(Debug)]
pub(super) struct Supervised {
    _reloads: mpsc::Sender<Reload>,
    _state: tempfile::TempDir,
}
