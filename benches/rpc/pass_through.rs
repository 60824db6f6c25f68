//! A KMS v2 plugin that asks AWS KMS on each request and keeps nothing: what kube-kms is compared with in a restart burst.
//!
//! Ciphertext is the KMS's own blob of the seed. The SDK retries as it does by default (three attempts); a call that has no
//! answer after three seconds fails, as kube-apiserver would let it fail. Decrypts run as many at once as come in.

#![allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    missing_debug_implementations,
    reason = "a program of a benchmark"
)]

use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::primitives::Blob;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use kms_v2_api::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

/// kube-apiserver's default.
const DEADLINE: Duration = Duration::from_secs(3);

struct PassThrough {
    kms: aws_sdk_kms::Client,
    key: String,
}

fn unavailable(error: impl Error) -> Status {
    Status::unavailable(error.to_string())
}

fn late(_: tokio::time::error::Elapsed) -> Status {
    Status::deadline_exceeded("three seconds are over")
}

#[tonic::async_trait]
impl KeyManagementService for PassThrough {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (version, healthz) = ("v2".to_owned(), "ok".to_owned());
        Ok(Response::new(StatusResponse { version, healthz, key_id: self.key.clone() }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let plaintext = Blob::new(request.get_ref().plaintext.clone());
        let call = self.kms.encrypt().key_id(&self.key).plaintext(plaintext).send();
        let answer = tokio::time::timeout(DEADLINE, call).await.map_err(late)?.map_err(unavailable)?;
        let ciphertext = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        Ok(Response::new(EncryptResponse { ciphertext, key_id: self.key.clone(), annotations: BTreeMap::new() }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let blob = Blob::new(request.into_inner().ciphertext);
        let call = self.kms.decrypt().ciphertext_blob(blob).send();
        let answer = tokio::time::timeout(DEADLINE, call).await.map_err(late)?.map_err(unavailable)?;
        Ok(Response::new(DecryptResponse { plaintext: answer.plaintext.map(Blob::into_inner).unwrap_or_default() }))
    }
}

/// `bench-pass-through SOCKET KEY REGION ENDPOINT`, with credentials in the environment.
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, key, region, endpoint] = arguments.as_slice() else {
        return Err("usage: bench-pass-through SOCKET KEY REGION ENDPOINT".into());
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let sdk = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .endpoint_url(endpoint)
            .load()
            .await;
        let kms = aws_sdk_kms::Client::new(&sdk);
        let service = std::sync::Arc::new(PassThrough { kms, key: key.clone() });
        let listener = UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let server = KeyManagementServiceServer::from_arc(std::sync::Arc::clone(&service));
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(server));
            tokio::spawn(connection);
        }
    })
}
