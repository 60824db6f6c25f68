//! One evaluation of the provider: Status, the rules on it, and the rotation of the seed when the key_id is another.
//!
//! Guarantees: at most one evaluation at a time; its result is kept for 20 s when good and for 3 s when bad; all errors are
//! collected and none stops the others. So a bad `healthz` still rotates and still extends the write state (k/k 138950).
//! SPEC: k8s.io/apiserver encryptionconfig `kmsv2PluginProbe`.

use crate::apiserver::decrypt_cache::DecryptCache;
use crate::apiserver::dek_source::DekSource;
use crate::apiserver::finding::FindingCode;
use crate::apiserver::process::{Process, Settings, locked};
use crate::apiserver::record::{Happened, count};
use crate::apiserver::rhythm::{HEALTH_TTL_BAD, HEALTH_TTL_GOOD, Rhythm, WRITE_STATE_TTL, later};
use crate::apiserver::unhealthy::{Problem, Unhealthy, describe};
use crate::apiserver::write_state::WriteState;
use kms_v2_api::v2::{EncryptRequest, StatusResponse};
use kms_v2_client::limit;
use kms_v2_client::plugin::{KmsPlugin, Rpc};
use kube_kms_core::port::Moment;
use std::sync::{Arc, Mutex};
use tonic::{Code, Status};

/// What one configuration has of the provider, from load to close.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) settings: Settings,
    pub(super) plugin: Arc<dyn KmsPlugin>,
    pub(super) cache: Mutex<DecryptCache>,
    turn: tokio::sync::Mutex<()>,
    memory: Mutex<Memory>,
    rhythm: Mutex<Rhythm>,
}

#[derive(Debug, Default)]
struct Memory {
    version: Option<String>,
    write: Option<WriteState>,
    health: Option<Health>,
}

#[derive(Clone, Debug)]
struct Health {
    expires: Moment,
    result: Result<(), Unhealthy>,
}

impl Probe {
    /// Builds it and evaluates once. A failure is not fatal: the loops go on trying.
    pub(super) async fn load(
        process: &Process,
        settings: Settings,
        plugin: Arc<dyn KmsPlugin>,
    ) -> (Self, Result<(), Unhealthy>) {
        let probe = Self {
            settings,
            plugin,
            cache: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            memory: Mutex::default(),
            rhythm: Mutex::new(Rhythm::new(process.now(), true)),
        };
        let result = probe.check(process).await;
        *locked(&probe.rhythm) = Rhythm::new(process.now(), result.is_ok());
        (probe, result)
    }

    /// Evaluates for every loop that is due.
    pub(super) async fn tick(&self, process: &Process) {
        loop {
            let due = locked(&self.rhythm).due(process.now());
            let Some(which) = due else { return };
            let healthy = self.check(process).await.is_ok();
            locked(&self.rhythm).done(which, process.now(), healthy);
        }
    }

    pub(super) fn next_due(&self) -> Moment {
        locked(&self.rhythm).next()
    }

    /// When the kept result of the last evaluation ends.
    pub(super) fn health_expires(&self) -> Moment {
        locked(&self.memory).health.as_ref().map_or(Moment(0), |h| h.expires)
    }

    pub(super) fn write_state(&self) -> Option<WriteState> {
        locked(&self.memory).write.clone()
    }

    pub(super) fn note_if_expired(&self, process: &Process) {
        if let Some(write) = &mut locked(&self.memory).write {
            write.note_if_expired(process, process.now());
        }
    }

    /// Evaluates, or answers with the result that is still kept.
    pub(super) async fn check(&self, process: &Process) -> Result<(), Unhealthy> {
        let _turn = self.turn.lock().await;
        let began = process.now();
        let before = locked(&self.memory).health.clone();
        if let Some(kept) = before.as_ref().filter(|h| began < h.expires) {
            return kept.result.clone();
        }
        let answer = self.plugin.status(self.settings.timeout).await;
        self.note_status(process, began, &answer);
        let problems = match answer {
            Ok(status) => self.judge(process, &status).await,
            Err(status) => vec![Problem::Status(status)],
        };
        let result = if problems.is_empty() { Ok(()) } else { Err(Unhealthy(problems)) };
        let now = process.now();
        note_result(process, now, before.map(|h| h.result.is_ok()), &result);
        let ttl = if result.is_ok() { HEALTH_TTL_GOOD } else { HEALTH_TTL_BAD };
        locked(&self.memory).health = Some(Health { expires: later(now, ttl), result: result.clone() });
        result
    }

    fn note_status(&self, process: &Process, began: Moment, answer: &Result<StatusResponse, Status>) {
        let now = process.now();
        let took = now.since(began);
        let mut record = process.record();
        record.rpc(Rpc::Status, answer.as_ref().err().map_or(Code::Ok, Status::code));
        if took > self.settings.status_slow {
            record.finding(now, FindingCode::StatusSlow, format!("Status took {took:?}"));
        }
    }

    async fn judge(&self, process: &Process, status: &StatusResponse) -> Vec<Problem> {
        let mut problems = Vec::new();
        let healthz_ok = status.healthz == limit::HEALTHY;
        if !healthz_ok {
            problems.push(Problem::Healthz(status.healthz.clone()));
        }
        problems.extend(self.judge_version(&status.version));
        match limit::check_key_id(&status.key_id) {
            Err(violation) => problems.push(Problem::KeyId(violation)),
            Ok(()) => {
                process.record().key_id(process.now(), &self.settings.name, &status.key_id);
                problems.extend(self.rotate_if_changed(process, &status.key_id, healthz_ok).await.err());
            }
        }
        let now = process.now();
        let mut record = process.record();
        for problem in &problems {
            for code in problem.codes() {
                record.finding(now, code, problem.to_string());
            }
        }
        problems
    }

    /// The first accepted version is the one for good.
    fn judge_version(&self, version: &str) -> Option<Problem> {
        if !limit::is_accepted_version(version) {
            return Some(Problem::VersionNotAccepted(version.to_owned()));
        }
        let mut memory = locked(&self.memory);
        let first = memory.version.get_or_insert_with(|| version.to_owned());
        (first != version).then(|| Problem::VersionChanged(first.clone(), version.to_owned()))
    }

    /// Extends the write state when its key_id is this one; else has a new seed wrapped. On any failure the old state stays
    /// as it is and runs down.
    async fn rotate_if_changed(&self, process: &Process, key_id: &str, healthz_ok: bool) -> Result<(), Problem> {
        // SPEC: the time is taken before Encrypt, so that a slow one eats into the three minutes.
        let began = process.now();
        let expires = later(began, WRITE_STATE_TTL);
        let had_state = {
            let mut memory = locked(&self.memory);
            if let Some(write) = memory.write.as_mut().filter(|write| write.object.key_id == key_id) {
                write.extend(process, began, expires);
                return Ok(());
            }
            memory.write.is_some()
        };
        let write = self.new_write_state(process, key_id, expires).await.inspect_err(|problem| {
            // A plugin that says itself that it is not well, and that it was not asked to rotate, does not count.
            if let Problem::Encrypt(status) = problem
                && (healthz_ok || had_state)
            {
                let detail = format!("Status named a new key_id, and Encrypt failed: {}", describe(status));
                process.record().finding(process.now(), FindingCode::EncryptFailedAfterNewKeyId, detail);
            }
        })?;
        let mut memory = locked(&self.memory);
        if let Some(old) = &mut memory.write {
            old.note_if_expired(process, process.now());
        }
        memory.write = Some(write);
        let mut record = process.record();
        count(&mut record.counts.seeds_used);
        record.event(process.now(), Happened::SeedInUse { key_id: key_id.to_owned() });
        Ok(())
    }

    async fn new_write_state(&self, process: &Process, key_id: &str, expires: Moment) -> Result<WriteState, Problem> {
        let seed = DekSource::generate(&*process.entropy).map_err(Problem::Seed)?;
        let request =
            EncryptRequest { plaintext: seed.expose_bytes().to_vec(), uid: process.uid().map_err(Problem::Seed)? };
        count(&mut process.record().counts.seeds_generated);
        let answer = self.plugin.encrypt(request, self.settings.timeout).await;
        process.record().rpc(Rpc::Encrypt, answer.as_ref().err().map_or(Code::Ok, Status::code));
        let sealed = answer.map_err(Problem::Encrypt)?;
        let violations = limit::check_sealed(&sealed.key_id, &sealed.ciphertext, &sealed.annotations);
        if !violations.is_empty() {
            return Err(Problem::Sealed(violations));
        }
        if sealed.key_id != key_id {
            count(&mut process.record().counts.mismatches);
            return Err(Problem::Mismatch(key_id.to_owned(), sealed.key_id));
        }
        let fingerprint = seed.fingerprint();
        let write = WriteState::new(seed, sealed, expires);
        process.record().own_seed(write.cache_key, fingerprint);
        Ok(write)
    }
}

fn note_result(process: &Process, now: Moment, was_healthy: Option<bool>, result: &Result<(), Unhealthy>) {
    let mut record = process.record();
    let counts = &mut record.counts;
    count(if result.is_ok() { &mut counts.evaluations_healthy } else { &mut counts.evaluations_unhealthy });
    match result {
        Ok(()) if was_healthy != Some(true) => record.event(now, Happened::BecameHealthy),
        Err(why) if was_healthy != Some(false) => {
            record.event(now, Happened::BecameUnhealthy { why: why.to_string() });
        }
        _ => {}
    }
}
