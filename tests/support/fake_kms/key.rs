//! One KMS key: its state, its generations of material, its rotation.
//!
//! Guarantees: material is only ever added, never lost, so what was encrypted under a key opens as long as the key
//! exists. Refuses to know aliases, other keys and HTTP.

use super::blob::random;
use super::refusal::Refusal;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Seconds since the epoch, the way AWS JSON writes a time.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// One generation of key material.
pub(super) struct Material {
    pub(super) id_bytes: [u8; 32],
    pub(super) cipher: Aes256Gcm,
    pub(super) since: f64,
    /// `AUTOMATIC` or `ON_DEMAND`; the first generation was not rotated to.
    pub(super) rotation: Option<&'static str>,
}

impl Material {
    fn new(rotation: Option<&'static str>) -> Arc<Self> {
        let cipher = Aes256Gcm::new(&random::<32>().into());
        Arc::new(Self { id_bytes: random(), cipher, since: now(), rotation })
    }

    pub(super) fn id(&self) -> String {
        hex::encode(self.id_bytes)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion { days: i64, date: f64 },
}

/// The external key store of a key.
#[derive(Clone, Copy)]
pub(super) enum Store {
    Open,
    /// With AWS's message.
    Closed(&'static str),
}

/// When an on-demand rotation that has begun is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationEnd {
    /// Before RotateKeyOnDemand answers.
    AtOnce,
    /// So many calls of any operation after RotateKeyOnDemand still see the old material.
    AfterCalls(u32),
    /// When the test calls `finish_rotation`.
    WhenTold,
}

struct Running {
    since: f64,
    calls_left: Option<u32>,
}

pub(super) struct Key {
    pub(super) id: Uuid,
    pub(super) arn: String,
    pub(super) description: String,
    pub(super) created: f64,
    pub(super) state: KeyState,
    pub(super) store: Option<Store>,
    /// Oldest first, never empty.
    pub(super) materials: Vec<Arc<Material>>,
    pub(super) rotation_period: Option<i64>,
    pub(super) on_demand_rotations: u32,
    pub(super) alternating: bool,
    answered_new: bool,
    running: Option<Running>,
}

impl Key {
    pub(super) fn new(region: &str, account: &str, description: String) -> Self {
        let id = Uuid::new_v4();
        Self {
            id,
            arn: format!("arn:aws:kms:{region}:{account}:key/{id}"),
            description,
            created: now(),
            state: KeyState::Enabled,
            store: None,
            materials: vec![Material::new(None)],
            rotation_period: None,
            on_demand_rotations: 0,
            alternating: false,
            answered_new: false,
            running: None,
        }
    }

    pub(super) fn usable(&self) -> Result<(), Refusal> {
        match self.state {
            KeyState::Enabled => match self.store {
                Some(Store::Closed(message)) => Err(Refusal::key_store(message)),
                Some(Store::Open) | None => Ok(()),
            },
            KeyState::Disabled => Err(Refusal::disabled(&self.arn)),
            KeyState::PendingDeletion { .. } => Err(Refusal::pending_deletion(&self.arn)),
        }
    }

    pub(super) fn not_pending_deletion(&self) -> Result<(), Refusal> {
        match self.state {
            KeyState::PendingDeletion { .. } => Err(Refusal::pending_deletion(&self.arn)),
            KeyState::Enabled | KeyState::Disabled => Ok(()),
        }
    }

    /// The material that this one answer takes for current: the newest, or while `alternating` the newest and the one
    /// before it by turns, as an eventually consistent service may.
    pub(super) fn current(&mut self) -> Arc<Material> {
        let newest = self.materials.len() - 1;
        self.answered_new = !(self.alternating && self.answered_new);
        let index = if self.answered_new { newest } else { newest.saturating_sub(1) };
        Arc::clone(&self.materials[index])
    }

    pub(super) fn material(&self, id: &[u8; 32]) -> Option<&Arc<Material>> {
        self.materials.iter().find(|material| &material.id_bytes == id)
    }

    pub(super) fn rotate(&mut self, rotation: &'static str) {
        self.materials.push(Material::new(Some(rotation)));
    }

    pub(super) fn begin_rotation(&mut self, end: RotationEnd) {
        self.on_demand_rotations += 1;
        let calls_left = match end {
            RotationEnd::AtOnce => return self.rotate("ON_DEMAND"),
            RotationEnd::AfterCalls(calls) => Some(calls),
            RotationEnd::WhenTold => None,
        };
        self.running = Some(Running { since: now(), calls_left });
    }

    /// When the on-demand rotation that runs was begun.
    pub(super) fn rotation_running(&self) -> Option<f64> {
        self.running.as_ref().map(|running| running.since)
    }

    /// False when none was running.
    pub(super) fn finish_rotation(&mut self) -> bool {
        let was_running = self.running.take().is_some();
        if was_running {
            self.rotate("ON_DEMAND");
        }
        was_running
    }

    /// One call arrives.
    pub(super) fn tick(&mut self) {
        match self.running.as_mut().map(|running| &mut running.calls_left) {
            Some(Some(0)) => {
                self.finish_rotation();
            }
            Some(Some(left)) => *left -= 1,
            Some(None) | None => {}
        }
    }
}
