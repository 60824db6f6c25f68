//! A KMS v2 plugin as its caller sees it: three RPCs, each with a time limit.
//!
//! Over a socket it is [`KmsClient`]; a test or a drill may put anything else there, in process. Guarantees of every
//! implementation: an answer, or `DEADLINE_EXCEEDED` once the time is over; never silence.

use crate::kms::KmsClient;
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use serde::Serialize;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;
use tonic::{Code, Status};

/// An answer, some time later.
pub type RpcFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send + 'a>>;

/// See the module.
pub trait KmsPlugin: Send + Sync + fmt::Debug {
    /// Calls Status.
    ///
    /// # Errors
    /// The plugin's status; `DEADLINE_EXCEEDED` after `timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    fn status(&self, timeout: Duration) -> RpcFuture<'_, StatusResponse>;

    /// Calls Encrypt.
    ///
    /// # Errors
    /// As [`KmsPlugin::status`].
    ///
    /// # Cancel safety
    /// As [`KmsPlugin::status`].
    fn encrypt(&self, request: EncryptRequest, timeout: Duration) -> RpcFuture<'_, EncryptResponse>;

    /// Calls Decrypt.
    ///
    /// # Errors
    /// As [`KmsPlugin::status`].
    ///
    /// # Cancel safety
    /// As [`KmsPlugin::status`].
    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse>;
}

/// The three RPCs by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Rpc {
    /// Status.
    Status,
    /// Encrypt.
    Encrypt,
    /// Decrypt.
    Decrypt,
}

impl fmt::Display for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One connection, shared by all calls. Unlike kube-apiserver's client it reports a socket that nobody listens on at once
/// (`UNAVAILABLE`) and not after the time limit; every call tries to connect anew.
impl KmsPlugin for KmsClient {
    fn status(&self, timeout: Duration) -> RpcFuture<'_, StatusResponse> {
        let (mut stub, request) = self.call(StatusRequest {}, timeout);
        Box::pin(async move { within(timeout, stub.status(request)).await })
    }

    fn encrypt(&self, request: EncryptRequest, timeout: Duration) -> RpcFuture<'_, EncryptResponse> {
        let (mut stub, request) = self.call(request, timeout);
        Box::pin(async move { within(timeout, stub.encrypt(request)).await })
    }

    fn decrypt(&self, request: DecryptRequest, timeout: Duration) -> RpcFuture<'_, DecryptResponse> {
        let (mut stub, request) = self.call(request, timeout);
        Box::pin(async move { within(timeout, stub.decrypt(request)).await })
    }
}

async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        // tonic's own word for a deadline that its client has seen first.
        Ok(Err(status)) if status.code() == Code::Cancelled && status.message() == "Timeout expired" => Err(late()),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(late()),
    }
}

fn late() -> Status {
    Status::deadline_exceeded("no answer within the time limit")
}
