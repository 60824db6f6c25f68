//! AWS's errors, classified: one table from error codes to [`Reason`], and the rules for everything that has no code.
//!
//! Guarantees: what AWS said (code, message, request id) goes along for the log; what it sent does not: an answer that
//! cannot be read may hold a DEK, so neither it nor its parser's complaint is kept. Refuses to know: retries.
//! SPEC: AWS KMS API Reference, "Errors" of Encrypt, Decrypt, DescribeKey, and "Common Errors"; Developer Guide, "Key
//! states". Modelled and unmodelled errors are told apart by the same code, as it stands on the wire.

use super::http::TooLarge;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::types::KeyState;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::DispatchFailure;
use kube_kms_core::fault::{Fault, Reason};
use std::error::Error;
use std::fmt;

/// Characters of AWS's message that are kept at most.
const MESSAGE_MAX: usize = 1024;
/// Characters of a request id or an error code.
const WORD_MAX: usize = 128;
/// "The state of the key does not allow this": only DescribeKey tells which state.
const INVALID_STATE: &str = "KMSInvalidStateException";

/// A call to the KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Encrypt,
    Decrypt,
    DescribeKey,
}

impl Op {
    /// The permission that it needs, which is also its name in AWS's own logs.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Encrypt => "kms:Encrypt",
            Self::Decrypt => "kms:Decrypt",
            Self::DescribeKey => "kms:DescribeKey",
        }
    }

    /// What a request that AWS finds invalid means: on Decrypt it is about this blob, else about the configuration.
    const fn invalid(self) -> Reason {
        match self {
            Self::Decrypt => Reason::WrappedDekRejected,
            Self::Encrypt | Self::DescribeKey => Reason::KekUnusable,
        }
    }
}

/// A call that failed: why, and what AWS said.
#[derive(Debug)]
pub(super) struct KmsError {
    op: Op,
    reason: Reason,
    code: Option<String>,
    message: String,
    request_id: Option<String>,
}

impl KmsError {
    /// Classifies what the SDK returned.
    pub(super) fn from_sdk<E>(op: Op, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let request_id = error.request_id().map(plain_id);
        let (reason, code, message) = match error {
            SdkError::ServiceError(context) => {
                let status = context.raw().status().as_u16();
                let code = context.err().code().map(|code| plain(code, WORD_MAX));
                let said = context.err().message().unwrap_or("no message");
                let reason = reason_of_code(op, status, code.as_deref());
                let reason = if is_about_ciphertext(op, reason, said) { Reason::WrappedDekRejected } else { reason };
                (reason, code, format!("{said} (HTTP {status})"))
            }
            SdkError::DispatchFailure(failure) => (reason_of_dispatch(failure), None, chain(error)),
            SdkError::TimeoutError(_) => (Reason::Deadline, None, chain(error)),
            // SECURITY: the answer may be a Decrypt's; only its status is repeated.
            SdkError::ResponseError(context) => {
                let status = context.raw().status().as_u16();
                (reason_of_code(op, status, None), None, format!("the answer cannot be read (HTTP {status})"))
            }
            _ => (Reason::KmsUnreachable, None, chain(error)),
        };
        Self { op, reason, code, message: plain(&message, MESSAGE_MAX), request_id }
    }

    /// The KMS did not answer in time.
    pub(super) fn deadline(op: Op) -> Self {
        Self::local(op, Reason::Deadline, "no answer within the time for this call, credentials included")
    }

    /// What was found out here and not said by AWS.
    pub(super) fn local(op: Op, reason: Reason, message: &str) -> Self {
        Self { op, reason, code: None, message: plain(message, MESSAGE_MAX), request_id: None }
    }

    /// The KMS answered, and the answer is not one that AWS documents.
    pub(super) fn unusable(op: Op, what: &str, request_id: Option<&str>) -> Self {
        let error = Self::local(op, Reason::KmsAnswerUnusable, &format!("the answer cannot be used: {what}"));
        Self { request_id: request_id.map(plain_id), ..error }
    }

    /// Why.
    pub(super) const fn reason(&self) -> Reason {
        self.reason
    }

    /// AWS's id of the request, when AWS answered.
    pub(super) fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// Whether only DescribeKey can tell more.
    pub(super) fn is_about_key_state(&self) -> bool {
        self.op != Op::DescribeKey && self.reason == Reason::KeyStateUnknown
    }

    /// Settles a [`Self::is_about_key_state`] with what DescribeKey answered.
    ///
    /// Refused, it stays `key-state-unknown`: to call the key dead would make a running plugin forget its DEKs on a guess, to
    /// call it unreachable would hide that the KMS did answer. A DescribeKey that fails transiently is as transient here.
    pub(super) fn with_key_state(mut self, described: Result<(KeyState, bool), Self>) -> Self {
        let (reason, more) = match described {
            Ok((state, in_key_store)) => {
                let place = if in_key_store { ", in a custom key store" } else { "" };
                let shown = format!("key state {}{place}", plain(state.as_str(), WORD_MAX));
                (reason_of_state(&state, in_key_store), shown)
            }
            Err(error) => {
                let class = error.reason.class();
                let told = class.is_transient() || error.reason == Reason::KekGone;
                let reason = if told { error.reason } else { Reason::KeyStateUnknown };
                (reason, format!("the permission kms:DescribeKey would tell more, but: {error}"))
            }
        };
        self.reason = reason;
        self.message = format!("{}; {more}", self.message);
        self
    }

    /// The fault, with this as its cause for the log.
    pub(super) fn into_fault(self) -> Fault {
        Fault::caused_by(self.reason, self)
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.op.label())?;
        if let Some(code) = &self.code {
            write!(f, "{code}: ")?;
        }
        f.write_str(&self.message)?;
        self.request_id.as_ref().map_or(Ok(()), |id| write!(f, " (AWS request id {id})"))
    }
}

impl Error for KmsError {}

/// The table.
fn reason_of_code(op: Op, status: u16, code: Option<&str>) -> Reason {
    match code.unwrap_or_default() {
        "DisabledException" => Reason::KekDisabled,
        "NotFoundException" => Reason::KekGone,
        // Settled by DescribeKey, see `with_key_state`.
        INVALID_STATE => Reason::KeyStateUnknown,
        "InvalidKeyUsageException" | "UnsupportedOperationException" => Reason::KekUnusable,
        "InvalidCiphertextException" | "IncorrectKeyException" => Reason::WrappedDekRejected,
        "ValidationException" | "ValidationError" | "InvalidArnException" => op.invalid(),
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => Reason::PolicyDenied,
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "InvalidClientTokenId"
        | "OptInRequired" => Reason::CredentialsRejected,
        // Credentials that ended while their successors are being fetched: passes by itself.
        "ExpiredTokenException" | "ExpiredToken" | "RequestExpired" => Reason::KmsUnreachable,
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "LimitExceededException"
        | "SlowDown" => Reason::KmsThrottled,
        "KeyUnavailableException"
        | "DependencyTimeoutException"
        | "KMSInternalException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "InternalFailure" => Reason::KmsUnreachable,
        _ if status == 429 => Reason::KmsThrottled,
        // An error although the call went well: the SDK cannot read the answer.
        _ if (200..300).contains(&status) => Reason::KmsAnswerUnusable,
        // Unknown: transient, because that is the answer that destroys nothing. The code is in the log.
        _ => Reason::KmsUnreachable,
    }
}

/// An external key store tells of a damaged blob, or of another context, by the code that it has for everything. Only what
/// AWS documents for that is taken for it: a verdict about one blob, so that another context under `read` is tried.
/// SPEC: AWS KMS Developer Guide, "Troubleshooting external key stores", Decryption errors.
fn is_about_ciphertext(op: Op, reason: Reason, said: &str) -> bool {
    op == Op::Decrypt
        && reason == Reason::KeyStateUnknown
        && said.contains("specified ciphertext or additional authenticated data")
}

/// SPEC: AWS KMS Developer Guide, "Key states of AWS KMS keys"; "Troubleshooting external key stores": every failure of a
/// custom key store comes as this one error, and the state of the key says nothing of the store but that it is disconnected
/// (`Unavailable`).
fn reason_of_state(state: &KeyState, in_key_store: bool) -> Reason {
    match state {
        KeyState::PendingDeletion | KeyState::PendingReplicaDeletion => Reason::KekPendingDeletion,
        KeyState::PendingImport => Reason::KekMaterialGone,
        KeyState::Disabled => Reason::KekDisabled,
        KeyState::Unavailable => Reason::KeyStoreUnavailable,
        KeyState::Enabled if in_key_store => Reason::KeyStoreUnavailable,
        // Enabled: it changed between the two calls, so the next try succeeds.
        KeyState::Creating | KeyState::Updating | KeyState::Enabled => Reason::KmsUnreachable,
        _ => Reason::KekUnusable,
    }
}

/// No answer: the connection or, before it, the credentials.
fn reason_of_dispatch(failure: &DispatchFailure) -> Reason {
    let Some(connector) = failure.as_connector_error() else { return Reason::KmsUnreachable };
    if find::<TooLarge>(connector).is_some() {
        return Reason::KmsAnswerUnusable;
    }
    match find::<CredentialsError>(connector) {
        Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
            Reason::CredentialsRejected
        }
        Some(_) => Reason::KmsUnreachable,
        None if failure.is_timeout() => Reason::Deadline,
        None => Reason::KmsUnreachable,
    }
}

/// The first cause of this type.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<T>() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

/// All causes in one line. SECURITY: by `Display`; `Debug` of an SDK error has the whole request or answer in it.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

/// Text from outside on one log line: printable ASCII, no more than `max` characters.
fn plain(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect()
}

/// A request id, as [`plain`].
pub(super) fn plain_id(id: &str) -> String {
    plain(id, WORD_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_kms::error::{ConnectorError, ErrorMetadata};
    use aws_sdk_kms::operation::decrypt::DecryptError;
    use aws_smithy_runtime_api::http::StatusCode;

    fn response(status: u16) -> HttpResponse {
        let mut response = HttpResponse::new(StatusCode::try_from(status).unwrap(), "CANARY".into());
        response.headers_mut().insert("x-amzn-requestid", "7b0b-1");
        response
    }

    fn said(op: Op, status: u16, code: Option<&str>) -> KmsError {
        let mut meta = ErrorMetadata::builder().message("what AWS says\nlevel=error");
        if let Some(code) = code {
            meta = meta.code(code);
        }
        KmsError::from_sdk(op, &SdkError::service_error(DecryptError::generic(meta.build()), response(status)))
    }

    #[test]
    fn every_code_has_its_reason_whatever_the_operation() {
        let table: &[(Reason, u16, &[&str])] = &[
            (Reason::KekDisabled, 400, &["DisabledException"]),
            (Reason::KekGone, 400, &["NotFoundException"]),
            (Reason::KekUnusable, 400, &["InvalidKeyUsageException", "UnsupportedOperationException"]),
            (Reason::KeyStateUnknown, 400, &[INVALID_STATE]),
            (Reason::WrappedDekRejected, 400, &["InvalidCiphertextException", "IncorrectKeyException"]),
            (Reason::PolicyDenied, 400, &["AccessDeniedException", "AccessDenied", "NotAuthorized"]),
            (
                Reason::CredentialsRejected,
                400,
                &[
                    "UnrecognizedClientException",
                    "InvalidSignatureException",
                    "SignatureDoesNotMatch",
                    "IncompleteSignature",
                    "MissingAuthenticationToken",
                    "InvalidClientTokenId",
                    "OptInRequired",
                ],
            ),
            (
                Reason::KmsThrottled,
                400,
                &[
                    "ThrottlingException",
                    "Throttling",
                    "TooManyRequests",
                    "TooManyRequestsException",
                    "RequestLimitExceeded",
                    "LimitExceededException",
                ],
            ),
            (Reason::KmsUnreachable, 400, &["ExpiredTokenException", "ExpiredToken", "RequestExpired", "NobodyKnows"]),
            (
                Reason::KmsUnreachable,
                500,
                &[
                    "KeyUnavailableException",
                    "DependencyTimeoutException",
                    "KMSInternalException",
                    "ServiceUnavailable",
                    "InternalFailure",
                ],
            ),
        ];
        for (expected, status, codes) in table {
            for code in *codes {
                for op in [Op::Encrypt, Op::Decrypt, Op::DescribeKey] {
                    assert_eq!(said(op, *status, Some(code)).reason(), *expected, "{op:?} {code}");
                }
            }
        }
    }

    #[test]
    fn an_invalid_request_is_about_the_blob_on_decrypt_only() {
        for code in ["ValidationException", "InvalidArnException"] {
            assert_eq!(said(Op::Decrypt, 400, Some(code)).reason(), Reason::WrappedDekRejected);
            assert_eq!(said(Op::Encrypt, 400, Some(code)).reason(), Reason::KekUnusable);
        }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        for (status, expected) in
            [(429, Reason::KmsThrottled), (503, Reason::KmsUnreachable), (403, Reason::KmsUnreachable)]
        {
            assert_eq!(said(Op::Encrypt, status, None).reason(), expected, "{status}");
        }
    }

    #[test]
    fn the_cause_has_code_message_and_request_id_on_one_line_and_no_body() {
        let text = said(Op::Decrypt, 400, Some("DisabledException")).into_fault().causes();
        assert_eq!(
            text,
            "kms:Decrypt: DisabledException: what AWS says level=error (HTTP 400) (AWS request id 7b0b-1)"
        );
        let unread = SdkError::<DecryptError, _>::response_error("CANARY", response(200));
        let error = KmsError::from_sdk(Op::Decrypt, &unread);
        assert_eq!((error.reason(), error.request_id()), (Reason::KmsAnswerUnusable, Some("7b0b-1")));
        let unread = SdkError::<DecryptError, _>::response_error("CANARY", response(502));
        assert_eq!(KmsError::from_sdk(Op::Decrypt, &unread).reason(), Reason::KmsUnreachable);
        let text = format!("{error} {error:?}");
        assert!(!text.contains("CANARY"), "{text}");
    }

    #[test]
    fn without_an_answer_a_timeout_is_a_deadline_and_the_rest_unreachable() {
        let reason = |error: SdkError<DecryptError, HttpResponse>| KmsError::from_sdk(Op::Decrypt, &error).reason();
        let dispatch = |error| reason(SdkError::dispatch_failure(error));
        assert_eq!(dispatch(ConnectorError::timeout("slow".into())), Reason::Deadline);
        assert_eq!(dispatch(ConnectorError::io("refused".into())), Reason::KmsUnreachable);
        assert_eq!(dispatch(ConnectorError::other("odd".into(), None)), Reason::KmsUnreachable);
        assert_eq!(dispatch(ConnectorError::other(TooLarge.into(), None)), Reason::KmsAnswerUnusable);
        assert_eq!(reason(SdkError::timeout_error("slow")), Reason::Deadline);
        assert_eq!(reason(SdkError::construction_failure("odd")), Reason::KmsUnreachable);
        let none = CredentialsError::not_loaded_no_source();
        assert_eq!(dispatch(ConnectorError::other(none.into(), None)), Reason::CredentialsRejected);
        let slow = CredentialsError::provider_timed_out(std::time::Duration::from_secs(1));
        assert_eq!(dispatch(ConnectorError::other(slow.into(), None)), Reason::KmsUnreachable);
    }
}
