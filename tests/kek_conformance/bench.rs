//! What the list needs to know of a provider: how to make an instance, and how to break what is behind it.

use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::Fault;
use kube_kms_core::port::{Kek, KekCall, Unwrapped, Wrapped};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// 32 bytes that a leak test recognises.
pub const CANARY_DEK: &[u8; 32] = b"CANARY-dek-bytes-0123456789-END!";

/// One KEK with its KMS. The methods that break something act at once, and [`Bench::heal`] ends them all.
pub trait Bench {
    /// Another instance of the provider, for the same KEK, with the same configuration.
    fn kek(&self) -> Arc<dyn Kek>;
    /// An instance for another KEK of the same kind; the same one every time.
    fn other(&self) -> Arc<dyn Kek>;
    /// Calls that the KMS has seen; 0 where nobody counts.
    fn calls(&self) -> usize;
    /// New key material under the same KEK.
    fn rotate(&self);
    /// The KMS takes the call and does not answer.
    fn slow(&self);
    /// Nobody is there.
    fn unreachable(&self);
    /// It refuses us.
    fn denied(&self);
    /// What wrapped until now must not unwrap any more.
    fn disabled(&self);
    /// Whether `disabled` also ends wraps. It does not where another version can take over.
    fn disabled_ends_wraps(&self) -> bool;
    /// It goes away and comes back.
    fn restart(&self);
    /// All well again.
    fn heal(&self);
    /// Secrets besides the DEK that an instance has.
    fn secrets(&self) -> Vec<Vec<u8>>;
}

/// Runs a behaviour on a bench and a runtime of its own. A bench that says why it is not there is skipped.
pub fn run<B: Bench>(name: &str, make: impl FnOnce() -> Result<B, String>, behaviour: impl AsyncFnOnce(&dyn Bench)) {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
    let bench = match make() {
        Ok(bench) => bench,
        Err(reason) => return crate::support::skipped(name, &reason),
    };
    runtime.block_on(behaviour(&bench));
    bench.heal();
}

/// A DEK of these bytes.
pub fn dek(raw: &[u8; 32]) -> DekBytes {
    DekBytes::copy_from(raw).unwrap()
}

/// A context with one pair of the operator's.
pub fn context(cluster: &str) -> WrapContext {
    WrapContext::new(BTreeMap::from([("cluster".to_owned(), cluster.to_owned())]))
}

/// A call with more time than anything here takes.
pub fn call() -> KekCall {
    KekCall { timeout: Duration::from_secs(20), uid: None }
}

/// Wraps the canary DEK for `prod`.
pub async fn wrap(kek: &dyn Kek) -> Result<Wrapped, Fault> {
    kek.wrap_dek(&dek(CANARY_DEK), &context("prod"), &call()).await
}

/// Unwraps for `prod`.
pub async fn unwrap(kek: &dyn Kek, wrapped: &Wrapped) -> Result<Unwrapped, Fault> {
    kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context("prod"), &call()).await
}
