//! KEK provider `aws`: wraps and unwraps DEKs with a symmetric key in AWS KMS.
//!
//! Guarantees: the KEK's identity is the key ARN of the KMS's own answer, its version the key material id of the Decrypt;
//! an unwrap always names the key that the annotation names, and only if the configuration allows that key; every call
//! ends within its time and leaves one event with AWS's request id in the log. Refuses to know: retries, health, caches.
//! SPEC: docs/format.md (context, identity), ARCHITECTURE.md (failure policy).

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

mod client;
mod credential;
mod date;
mod error;
mod http;
pub mod key_name;
pub mod settings;
#[cfg(test)]
mod tests;
mod user_agent;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use client::{Answer, Described, KmsClient};
use date::DateHeader;
use error::{KmsError, Op};
use key_name::{KeyArn, KeyName};
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::context::WrapContext;
use kube_kms_core::dek::DekBytes;
use kube_kms_core::fault::{Fault, Reason};
use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::port::{Kek, KekCall, KekFuture, Notice, Unwrapped, Wrapped};
use kube_kms_os::{self as os, Stopwatch};
use kube_kms_span::{self as span, Span};
use settings::{AwsSettings, SettingsError};
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// What is lost without the permission.
const NO_DESCRIBE_KEY: &str = "kms:DescribeKey is not granted: a key that is pending deletion cannot be told from one that is \
unavailable for a while, so it coasts as an outage (with `outage.onUnusable: coast`) instead of being revoked; everything else \
works without it";
const GRANT_DESCRIBE_KEY: &str = "`kube-kms manifests --kind iam` prints the policy with it";
const SET_THE_CLOCK: &str =
    "set it by NTP (timedatectl, chronyc tracking): AWS refuses signatures that are 5 minutes off";

/// The target of this provider's log events.
const LOG: &str = "kube_kms::kek::aws";

/// A KEK in AWS KMS.
pub struct AwsKek {
    client: KmsClient,
    key: KeyName,
    region: String,
    /// The account of the configured key, once the KMS has told it.
    account: OnceLock<String>,
    /// The key, as it was named, of which the KMS has said that it will delete it, and when.
    deletion: Mutex<Option<(String, Duration)>>,
}

impl AwsKek {
    /// Builds a client with the SDK's whole credential chain. Reads the environment and AWS's own files, never the
    /// network: a KMS that is away is found out by the first call.
    ///
    /// # Errors
    /// `kek-unusable`, with a [`SettingsError`] as its cause, when nothing names a region.
    pub async fn connect(settings: AwsSettings) -> Result<Self, Fault> {
        // The SDK's default for the region goes on to ask the instance metadata service; this does not.
        let region = RegionProviderChain::first_try(settings.region().map(|name| Region::new(name.to_owned())))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new());
        let sdk =
            aws_config::defaults(BehaviorVersion::latest()).region(region).http_client(http::client()).load().await;
        Self::connect_with(settings, &sdk)
    }

    /// As [`AwsKek::connect`] with an SDK configuration that is already there. The region and the endpoint of `settings`
    /// go before its own; its retries, timeouts, stalled-stream protection and HTTP client are not used.
    ///
    /// # Errors
    /// `kek-unusable`, with a [`SettingsError`] as its cause, when nothing names a region, or when the endpoint would carry
    /// data keys in clear.
    pub fn connect_with(settings: AwsSettings, sdk: &SdkConfig) -> Result<Self, Fault> {
        let unusable = |error: SettingsError| Fault::caused_by(Reason::KekUnusable, error);
        let region = settings.region().or_else(|| sdk.region().map(Region::as_ref));
        let region = region.filter(|name| !name.is_empty()).ok_or_else(|| unusable(SettingsError::RegionMissing))?;
        if let (None, Some(endpoint)) = (settings.endpoint(), sdk.endpoint_url()) {
            settings::check_endpoint(endpoint).map_err(unusable)?;
        }
        let client = KmsClient::new(&settings, region, sdk);
        Ok(Self {
            client,
            region: region.to_owned(),
            key: settings.key().clone(),
            account: OnceLock::new(),
            deletion: Mutex::default(),
        })
    }

    /// The region in which this KEK is.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The key that this reference names, if the configuration allows it.
    fn allowed(&self, kek: &KekRef) -> Option<KeyArn> {
        let arn = (kek.kind() == KekKind::AWS.as_str()).then(|| KeyArn::parse(kek.identity())).flatten()?;
        self.key.allows(&arn, &self.region, self.account.get().map(String::as_str)).then_some(arn)
    }

    async fn wrap(&self, dek: &DekBytes, context: &WrapContext, call: &KekCall) -> Result<Wrapped, Fault> {
        let key = self.key.as_str();
        let wrapped = self.settled(Op::Encrypt, key, call, self.client.encrypt(key, dek, context, call)).await?;
        // INVARIANT: what is wrapped here can be unwrapped here (test `an_answer_from_a_key_that_may_not_unwrap_is_refused`).
        if !self.key.allows(&wrapped.key, &self.region, self.account.get().map(String::as_str)) {
            let what = format!("it used {}, which key {} does not allow to unwrap", wrapped.key.as_str(), self.key);
            return Err(match self.key {
                // The KMS has no choice of key here.
                KeyName::Arn(_) | KeyName::Id(_) => KmsError::unusable(Op::Encrypt, &what, None),
                // The alias of another account: whose credentials these are is the configuration's.
                KeyName::Alias(_) | KeyName::AliasArn { .. } => {
                    KmsError::local(Op::Encrypt, Reason::KekUnusable, &what)
                }
            }
            .into_fault());
        }
        // SECURITY: learned from Encrypt alone. A Decrypt's key is named by an annotation, which an attacker may write.
        self.account.get_or_init(|| wrapped.key.place().account.clone());
        let kek =
            KekRef::new(KekKind::AWS, wrapped.key.as_str()).map_err(|e| Fault::caused_by(Reason::Invariant, e))?;
        Ok(Wrapped { dek: wrapped.dek, kek })
    }

    async fn unwrap(
        &self,
        kek: &KekRef,
        dek: &WrappedDek,
        context: &WrapContext,
        call: &KekCall,
    ) -> Result<Unwrapped, Fault> {
        // SECURITY: the annotation may not choose the key, whoever calls.
        let key = self.allowed(kek).ok_or(Reason::KekNotConfigured)?;
        let run = self.client.decrypt(&key, dek, context, call);
        let unwrapped = self.settled(Op::Decrypt, key.as_str(), call, run).await?;
        // The answer's KeyId is the one that was asked for: the client has compared them.
        let version = KekVersion { kek: kek.clone(), version: unwrapped.material };
        Ok(Unwrapped { dek: unwrapped.dek, version })
    }

    /// One call, and a DescribeKey within the same time where only that can tell what its failure means.
    async fn settled<T>(
        &self,
        op: Op,
        key: &str,
        call: &KekCall,
        run: impl Future<Output = Result<Answer<T>, KmsError>>,
    ) -> Result<T, Fault> {
        let watch = Stopwatch::start();
        let outcome = timed(op, key, call, call.timeout, run).await;
        if outcome.as_ref().is_err_and(|error| error.reason() == Reason::Deadline) {
            self.client.leave_connections();
        }
        let error = match outcome {
            Ok(value) => {
                self.works(key);
                return Ok(value);
            }
            Err(error) if !error.is_about_key_state() => return Err(error.into_fault()),
            Err(error) => error,
        };
        let rest = call.timeout.saturating_sub(watch.elapsed());
        let state = timed(Op::DescribeKey, key, call, rest, self.client.key_state(key, call)).await;
        if let Ok(Described { deletion: Some(date), .. }) = &state {
            *self.deletion.lock().unwrap_or_else(PoisonError::into_inner) = Some((key.to_owned(), *date));
        }
        Err(error.with_key_state(state.map(|described| (described.state, described.in_key_store))).into_fault())
    }

    /// A key that works is not about to be deleted any more.
    fn works(&self, key: &str) {
        let mut deletion = self.deletion.lock().unwrap_or_else(PoisonError::into_inner);
        if deletion.as_ref().is_some_and(|(of, _)| of == key) {
            *deletion = None;
        }
    }
}

/// Runs one call for so long at most, and logs how it ended.
async fn timed<T>(
    op: Op,
    key: &str,
    call: &KekCall,
    limit: Duration,
    run: impl Future<Output = Result<Answer<T>, KmsError>>,
) -> Result<T, KmsError> {
    let watch = Stopwatch::start();
    let span = span::client(op.label());
    let outcome = tokio::time::timeout(limit, run).await.unwrap_or_else(|_| Err(KmsError::deadline(op)));
    let elapsed_us = u64::try_from(watch.elapsed().as_micros()).unwrap_or(u64::MAX);
    describe(&span, op, call, &outcome);
    let uid = call.uid.as_ref().map(tracing::field::display);
    let op = op.label();
    match outcome {
        Ok(answer) => {
            let id = answer.request_id.as_deref();
            // For a request it is rare and joins its uid to CloudTrail; for a probe it is routine.
            if call.uid.is_some() {
                tracing::info!(target: LOG, op, key, outcome = "ok", aws_request_id = id, uid, elapsed_us, "KMS call");
            } else {
                tracing::debug!(target: LOG, op, key, outcome = "ok", aws_request_id = id, elapsed_us, "KMS call");
            }
            Ok(answer.value)
        }
        Err(error) => {
            let (outcome, id) = (error.reason().label(), error.request_id());
            let cause = tracing::field::display(&error);
            tracing::warn!(target: LOG, op, key, outcome, aws_request_id = id, uid, elapsed_us, error = cause, "a KMS call failed");
            Err(error)
        }
    }
}

/// SPEC: OpenTelemetry semantic conventions for the AWS SDK, and ours under `kube_kms`.
fn describe<T>(span: &Span, op: Op, call: &KekCall, outcome: &Result<Answer<T>, KmsError>) {
    if !span.is_seen() {
        return;
    }
    let (word, id) = match outcome {
        Ok(answer) => ("ok", answer.request_id.as_deref()),
        Err(error) => (error.reason().label(), error.request_id()),
    };
    span.text("rpc.system", "aws-api");
    span.text("rpc.service", "KMS");
    span.text("rpc.method", op.label().trim_start_matches("kms:"));
    span.text("kube_kms.outcome", word);
    if let Some(id) = id {
        span.text("aws.request_id", id);
    }
    if let Some(uid) = &call.uid {
        span.text("kube_kms.uid", uid.as_str());
    }
    if let Err(error) = outcome {
        span.failed(error.reason().label());
    }
}

impl Kek for AwsKek {
    fn kind(&self) -> KekKind {
        KekKind::AWS
    }

    fn may_unwrap(&self, kek: &KekRef) -> bool {
        self.allowed(kek).is_some()
    }

    fn wrap_dek<'a>(
        &'a self,
        dek: &'a DekBytes,
        context: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Wrapped> {
        Box::pin(self.wrap(dek, context, call))
    }

    fn unwrap_dek<'a>(
        &'a self,
        kek: &'a KekRef,
        dek: &'a WrappedDek,
        context: &'a WrapContext,
        call: &'a KekCall,
    ) -> KekFuture<'a, Unwrapped> {
        Box::pin(self.unwrap(kek, dek, context, call))
    }

    fn deletion_date(&self) -> Option<Duration> {
        self.deletion.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, date)| *date)
    }

    fn notices<'a>(&'a self, call: &'a KekCall) -> KekFuture<'a, Vec<Notice>> {
        Box::pin(async move {
            let key = self.key.as_str();
            let date = DateHeader::default();
            let asked = self.client.key_state_and_date(key, call, date.clone());
            let outcome = timed(Op::DescribeKey, key, call, call.timeout, asked).await;
            let skew = date.skew(os::wall_clock()).map(|what| Notice { what, remedy: SET_THE_CLOCK });
            let mut notices: Vec<Notice> = skew.into_iter().collect();
            match outcome {
                Ok(_) => {}
                Err(error) if error.reason() == Reason::PolicyDenied => {
                    notices.push(Notice { what: NO_DESCRIBE_KEY.to_owned(), remedy: GRANT_DESCRIBE_KEY });
                }
                // A wrong clock explains the rest.
                Err(error) if notices.is_empty() => return Err(error.into_fault()),
                Err(_) => {}
            }
            Ok(notices)
        })
    }
}

impl fmt::Debug for AwsKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKek")
            .field("key", &self.key.as_str())
            .field("region", &self.region)
            .field("account", &self.account.get())
            .finish_non_exhaustive()
    }
}
