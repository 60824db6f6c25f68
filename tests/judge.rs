//! The API server's own code is the judge: k8s.io/apiserver, newest and old, from EncryptionConfiguration to stored bytes,
//! on the real binary, side by side with our simulator, which must have done and seen the same.
//!
//! Every scenario runs on both releases at once. SPEC: k8s.io/apiserver encryptionconfig and kmsv2; KEP-3299.

mod away;
mod layout;
mod live;
mod pair;
mod replicas;
mod rotation;
mod shadow;
mod whole;

use crate::support::apiserver_go::{Release, built};
use crate::support::skipped;

/// Runs a scenario on every release at the same time, or says why it cannot.
async fn on_every_release<F>(test: &str, scenario: impl Fn(Release) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Err(reason) = built().await {
        skipped(test, &reason);
        return;
    }
    let running: Vec<_> = Release::ALL.into_iter().map(|r| (r, tokio::spawn(scenario(r)))).collect();
    for (release, scenario) in running {
        scenario.await.unwrap_or_else(|e| panic!("on k8s.io/apiserver ({release:?}): {e}"));
    }
}

macro_rules! scenarios {
    ($($(#[$meta:meta])* $name:ident: $scenario:path;)+) => {$(
        $(#[$meta])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $crate::judge::on_every_release(stringify!($name), $scenario).await;
        }
    )+};
}
use scenarios;
