//! Credentials whose loading goes on when the call that needed them has given up.
//!
//! A call may have less time than the SDK's credential chain needs (a slow STS, an instance metadata service that does
//! not answer). Were the loading dropped with the call, every call would start it anew and none would ever get through.
//! Guarantees: one loading at a time, run to its end; its outcome goes to whoever asks next. Refuses to know: caching,
//! which the SDK does on top of this, and where credentials come from.

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Loading;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

type Outcome = Result<Credentials, CredentialsError>;

/// A credentials provider that does not start over.
#[derive(Debug)]
pub(super) struct Persistent {
    inner: SharedCredentialsProvider,
    running: Mutex<Option<JoinHandle<Outcome>>>,
}

impl Persistent {
    pub(super) fn new(inner: SharedCredentialsProvider) -> Self {
        Self { inner, running: Mutex::new(None) }
    }

    /// # Cancel safety
    /// Dropped, it leaves the loading running for the next caller.
    async fn load(&self) -> Outcome {
        let mut running = self.running.lock().await;
        let task = running.get_or_insert_with(|| {
            let inner = self.inner.clone();
            tokio::spawn(async move { inner.provide_credentials().await })
        });
        let outcome = task.await;
        *running = None;
        outcome.unwrap_or_else(|ended| Err(CredentialsError::unhandled(ended)))
    }
}

impl ProvideCredentials for Persistent {
    fn provide_credentials<'a>(&'a self) -> Loading<'a>
    where
        Self: 'a,
    {
        Loading::new(self.load())
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.inner.fallback_on_interrupt()
    }
}
