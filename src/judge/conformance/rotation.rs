//! Section E and whatever lasts: a simulated API server's hour over the socket, and a rotation on demand.
//!
//! Items 63 to 66, 69 and 71. The simulator judges what only shows over time; its clock is moved by hand, its calls are
//! real.

use super::control::Act;
use super::session::{Check, Sealed, Session, Stop, Witness, failed, not_applicable, random};
use crate::apiserver::{ApiServer, FindingCode, HandClock, Settings};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use kms_v2_client::kms::KmsClient;
use kms_v2_client::plugin::{KmsPlugin, Rpc, RpcFuture};
use kube_kms_core::port::{Clock, Moment};
use kube_kms_os::{OsEntropy, Stopwatch};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::Status;

/// The hour, in nanoseconds, and the step of a kubelet that asks for `/readyz`.
const HOUR: u64 = 3600 * SECOND;
const SECOND: u64 = 1_000_000_000;
const READYZ_EVERY: u64 = 10 * SECOND;
const POLL: Duration = Duration::from_millis(100);
/// Polls at most: whoever gives a rotation an hour does not want 36,000 Encrypts.
const POLLS: u32 = 1800;
/// Pairs of Status and Encrypt after the first that shows the rotation.
const PAIRS_AFTER: u32 = 30;

/// A plugin whose calls are counted.
#[derive(Debug)]
struct Watched {
    client: KmsClient,
    witness: Arc<Mutex<Witness>>,
}

impl Watched {
    fn note<'a, M: Send + 'a>(&'a self, rpc: Rpc, call: RpcFuture<'a, M>) -> RpcFuture<'a, M> {
        Box::pin(async move {
            let answer: Result<M, Status> = call.await;
            self.witness.lock().unwrap_or_else(PoisonError::into_inner).answered(rpc, &answer);
            answer
        })
    }
}

impl KmsPlugin for Watched {
    fn status(&self, timeout: Duration) -> RpcFuture<'_, StatusResponse> {
        let call = self.note(Rpc::Status, KmsPlugin::status(&self.client, timeout));
        Box::pin(async move {
            let status = call.await?;
            self.witness.lock().unwrap_or_else(PoisonError::into_inner).versions.insert(status.version.clone());
            Ok(status)
        })
    }

    fn encrypt(&self, request: EncryptRequest, timeout: Duration) -> RpcFuture<'_, EncryptResponse> {
        self.note(Rpc::Encrypt, KmsPlugin::encrypt(&self.client, request, timeout))
    }

    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse> {
        self.note(Rpc::Decrypt, KmsPlugin::decrypt(&self.client, request, timeout))
    }
}

/// An hour in the life of an API server: load, ten writes, polls, a restart, everything read back. Stops early when the
/// plugin does not answer at all.
pub(super) async fn live(session: &mut Session) {
    (session.waiting)("an hour of a simulated API server");
    let Ok(client) = KmsClient::connect(session.target.clone(), session.timeout).await else { return };
    let plugin = Arc::new(Watched { client, witness: Arc::clone(&session.witness) });
    let clock = Arc::new(HandClock::default());
    let port: Arc<dyn Clock> = Arc::<HandClock>::clone(&clock);
    let settings = Settings { timeout: session.timeout, ..Settings::new("conformance") };
    let server = ApiServer::start(settings, plugin, port, Arc::new(OsEntropy)).await;
    // Nothing of an hour is worth waiting for in which each call takes its whole deadline.
    if server.report().counts.rpc(Rpc::Status, tonic::Code::DeadlineExceeded) > 0 {
        return;
    }
    let key = |n: u8| format!("/registry/secrets/conformance/s{n}");
    let written: Vec<(u8, Vec<u8>)> =
        (0..10).filter_map(|n| Some((n, server.write(&key(n), key(n).as_bytes()).ok()?))).collect();
    while clock.now() < Moment(HOUR) {
        let step = Moment(clock.now().0.saturating_add(READYZ_EVERY));
        clock.set(server.next_due().min(step).min(Moment(HOUR)));
        server.tick().await;
        let _ = server.readyz().await;
    }
    server.restart().await;
    for (n, value) in &written {
        let _ = server.read(&key(*n), value).await;
    }
    session.life = Some(server.report());
}

/// Whether the hour had this finding.
fn found(session: &Session, code: FindingCode) -> Result<(), Stop> {
    let findings = session.life.iter().flat_map(|life| &life.findings);
    match findings.into_iter().find(|finding| finding.code == code) {
        Some(finding) => failed(format!("{}: {} ({} times)", code.meaning(), finding.detail, finding.times)),
        None => Ok(()),
    }
}

/// Items 64, 65 and 66: seen, or not to be had.
pub(super) fn not_seen(session: &Session, code: FindingCode) -> Check {
    found(session, code)?;
    not_applicable("not seen in this run; that it holds needs control of what the KMS answers")
}

/// Item 71, in short.
pub(super) fn an_hour(session: &Session) -> Check {
    let Some(life) = &session.life else { return not_applicable("no Status was answered in time when the hour began") };
    found(session, FindingCode::WriteStateExpired)?;
    if life.counts.writes_ok == 0 {
        return failed("a simulated API server never came to write");
    }
    if life.counts.reads_failed > 0 {
        let n = life.counts.reads_failed;
        return failed(format!("after a restart a simulated API server could not read {n} of 10 objects"));
    }
    if let Some(left) = &session.after_the_hour {
        return Err(left.clone());
    }
    let polls = life.counts.calls(Rpc::Status);
    Ok(format!("an hour without rotation or outage: {polls} Status, writes never stopped"))
}

/// What a rotation showed.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// From the end of the command to the first Status with another key_id.
    after: Option<Duration>,
    changes: u32,
    pairs: u32,
    misses: u32,
    /// What went wrong on the way.
    trouble: Option<String>,
}

/// Rotates once, however many items ask.
async fn rotation(session: &mut Session) -> Result<Seen, Stop> {
    if let Some(seen) = &session.rotation {
        return Ok(seen.clone());
    }
    let Some(control) = session.control.clone() else { return not_applicable("needs --kms-control") };
    let value = session.value().await?;
    let caller = session.caller().await?;
    let before = caller.status().await.or_else(|t| failed(format!("Status before the rotation: {t}")))?.key_id;
    let limit = session.bounds.rotation;
    let every = limit.checked_div(POLLS).unwrap_or_default().max(POLL);
    (session.waiting)(&format!("a rotation ({limit:?} at most)"));
    control.act(Act::Rotate).await.map_err(Stop::of_control)?;
    let watch = Stopwatch::start();
    let mut seen = Seen { after: None, changes: 0, pairs: 0, misses: 0, trouble: None };
    let (mut last, mut remaining) = (before, PAIRS_AFTER);
    while remaining > 0 && watch.elapsed() < limit {
        tokio::time::sleep(every).await;
        let plaintext = random(32);
        let (status, sealed) = (caller.status().await, caller.encrypt(&plaintext).await);
        let (status, sealed) = match (status, sealed) {
            (Ok(status), Ok(sealed)) => (status, sealed),
            (Err(t), _) => {
                seen.trouble.get_or_insert(format!("Status: {t}"));
                continue;
            }
            (_, Err(t)) => {
                seen.trouble.get_or_insert(format!("Encrypt: {t}"));
                continue;
            }
        };
        seen.pairs = seen.pairs.saturating_add(1);
        seen.misses = seen.misses.saturating_add(u32::from(sealed.key_id != status.key_id));
        if status.key_id != last {
            seen.changes = seen.changes.saturating_add(1);
            seen.after.get_or_insert(watch.elapsed());
            last = status.key_id;
        }
        if seen.after.is_some() {
            remaining = remaining.saturating_sub(1);
        }
        if seen.pairs.is_multiple_of(10) || seen.changes > 0 {
            for value in [&value, &Sealed { plaintext, sealed }] {
                if let Err(Stop::Failed(why)) = caller.opens(value).await {
                    seen.trouble.get_or_insert(why);
                }
            }
        }
    }
    session.rotation = Some(seen.clone());
    Ok(seen)
}

/// Item 63.
pub(super) async fn one_transition(session: &mut Session) -> Check {
    let seen = rotation(session).await?;
    if let Some(why) = seen.trouble {
        return failed(format!("during the rotation: {why}"));
    }
    if seen.changes > 1 {
        return failed(format!("Status.key_id changed {} times for one rotation", seen.changes));
    }
    if seen.misses > 1 {
        return failed(format!("Encrypt.key_id was not that of the Status before it, {} times", seen.misses));
    }
    if seen.changes == 0 {
        return not_applicable("Status.key_id did not change (item 69)");
    }
    Ok(format!("{} pairs of Status and Encrypt, {} missed; old and new values open", seen.pairs, seen.misses))
}

/// Item 69.
pub(super) async fn seen_in_time(session: &mut Session) -> Check {
    match rotation(session).await?.after {
        Some(after) => Ok(format!("Status shows it {:.1} s after the command", after.as_secs_f64())),
        None => failed(format!("Status.key_id is the same {:?} after the rotation", session.bounds.rotation)),
    }
}
