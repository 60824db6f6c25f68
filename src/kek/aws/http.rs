//! The HTTP client of the SDK, with a limit on what an answer may be.
//!
//! Guarantees: no answer has more than [`ANSWER_MAX`] bytes of body, whatever its head or its chunks promise: the excess ends the
//! call and its connection. What is read is copied into one buffer as it comes, so that many small chunks do not hold many read
//! buffers. A head is bounded by hyper: 100 headers, 400 KiB. It serves the KMS and every source of credentials that speaks HTTP
//! (IMDS, ECS, STS). Refuses to know: what an answer means; time, which the caller limits.

use aws_sdk_kms::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kms::config::{ConfigBag, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, ConnectorError};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body as _;

/// Bytes of an answer at most. The largest that AWS documents, an Encrypt of 4 KiB, has less than a sixth of it.
pub(super) const ANSWER_MAX: usize = 64 * 1024;

/// More than [`ANSWER_MAX`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer is larger than 64 KiB")]
pub(super) struct TooLarge;

/// A client with connections of its own: the SDK's default (rustls, the proxy of the environment), with the limit.
pub(super) fn client() -> SharedHttpClient {
    let inner = Builder::new().build_with_connector_fn(|settings, components| {
        let mut connector = ConnectorBuilder::default().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    });
    SharedHttpClient::new(Limited(inner))
}

#[derive(Debug)]
struct Limited<T>(T);

impl HttpClient for Limited<SharedHttpClient> {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Limited(self.0.http_connector(settings, components)))
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        bag: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_base_client_config(components, bag)
    }

    fn validate_final_config(&self, components: &RuntimeComponents, bag: &ConfigBag) -> Result<(), BoxError> {
        self.0.validate_final_config(components, bag)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

impl HttpConnector for Limited<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answering = self.0.call(request);
        HttpConnectorFuture::new(async move { limited(answering.await?).await })
    }
}

/// The same answer with its body in memory.
async fn limited(mut answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
    let too_large = || ConnectorError::other(TooLarge.into(), None);
    let mut body = std::mem::replace(answer.body_mut(), SdkBody::taken());
    if body.size_hint().lower() > ANSWER_MAX as u64 {
        return Err(too_large());
    }
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(ConnectorError::io)?;
        let Some(data) = frame.data_ref() else { continue };
        if data.len() > ANSWER_MAX.saturating_sub(read.len()) {
            return Err(too_large());
        }
        read.extend_from_slice(data);
    }
    // SECURITY: as a stream. What is in memory the SDK writes into its trace log, and a Decrypt's answer is a DEK
    // (test `nothing_secret_is_logged_at_trace_level`).
    *answer.body_mut() = SdkBody::from_body_1_x(Full::new(Bytes::from(read)));
    Ok(answer)
}
