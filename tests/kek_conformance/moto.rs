//! The `aws` provider on moto, somebody else's fake of AWS: the plain behaviours, since moto cannot be broken at will.

use super::aws::instance;
use super::bench::Bench;
use crate::fake_kms_is_honest::peer::Peer;
use crate::support::moto::Moto;
use kube_kms_core::port::Kek;
use std::sync::{Arc, OnceLock};

const REGION: &str = "eu-central-1";

pub struct MotoBench {
    url: String,
    key: String,
    other: String,
}

impl MotoBench {
    /// Says why when there is no moto here.
    pub fn start() -> Result<Self, String> {
        // One for all of them; it ends with this process.
        static MOTO: OnceLock<Result<Moto, String>> = OnceLock::new();
        let url = MOTO.get_or_init(Moto::start).as_ref().map_err(Clone::clone)?.url();
        let peer = Peer::new(&url, REGION, "123456789012");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let (key, other) = runtime.block_on(async { (peer.aliased().await, peer.aliased().await) });
        // A moto that answers and cannot make a key is a failure, not a reason to skip.
        Ok(Self { key: key.unwrap().1, other: other.unwrap().1, url })
    }
}

impl Bench for MotoBench {
    fn kek(&self) -> Arc<dyn Kek> {
        instance(&self.url, REGION, &self.key)
    }

    fn other(&self) -> Arc<dyn Kek> {
        instance(&self.url, REGION, &self.other)
    }

    fn calls(&self) -> usize {
        0
    }

    fn rotate(&self) {
        panic!("not with moto");
    }

    fn slow(&self) {
        panic!("not with moto");
    }

    fn unreachable(&self) {
        panic!("not with moto");
    }

    fn denied(&self) {
        panic!("not with moto");
    }

    fn disabled(&self) {
        panic!("not with moto");
    }

    fn disabled_ends_wraps(&self) -> bool {
        true
    }

    fn restart(&self) {
        panic!("not with moto");
    }

    fn heal(&self) {}

    fn secrets(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }
}
