//! How AWS KMS says no: a code, mostly a message, and an HTTP status.
//!
//! Guarantees: the codes and messages that the fake speaks are all made here, so one file can be held against AWS's
//! documentation. Refuses to know when each of them applies.

use serde_json::{Value, json};

/// One refusal, as it goes out: HTTP 400 (500 for KMS's own failures) and `{"__type": code, "message": …}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: Option<String>,
}

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, code, message: Some(message.into()) }
    }

    pub(super) fn body(&self) -> Value {
        match &self.message {
            Some(message) => json!({"__type": self.code, "message": message}),
            None => json!({"__type": self.code}),
        }
    }

    /// Wrong context, flipped bits, garbage: real KMS answers this without a message.
    pub(super) fn invalid_ciphertext() -> Self {
        Self { status: 400, code: "InvalidCiphertextException", message: None }
    }

    pub(super) fn incorrect_key() -> Self {
        Self::new(
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        )
    }

    pub(super) fn key_not_found(arn: &str) -> Self {
        Self::new("NotFoundException", format!("Key '{arn}' does not exist"))
    }

    pub(super) fn alias_not_found(arn: &str) -> Self {
        Self::new("NotFoundException", format!("Alias {arn} is not found."))
    }

    pub(super) fn invalid_key_id(sent: &str) -> Self {
        Self::new("NotFoundException", format!("Invalid keyId {sent}"))
    }

    pub(super) fn invalid_arn(region: &str) -> Self {
        Self::new("NotFoundException", format!("Invalid arn {region}"))
    }

    pub(super) fn disabled(arn: &str) -> Self {
        Self::new("DisabledException", format!("{arn} is disabled."))
    }

    pub(super) fn pending_deletion(arn: &str) -> Self {
        Self::new("KMSInvalidStateException", format!("{arn} is pending deletion."))
    }

    /// Every failure of a custom key store has this code; only the message tells them apart.
    pub(super) fn key_store(message: &str) -> Self {
        Self::new("KMSInvalidStateException", message)
    }

    pub(super) fn not_pending_deletion(arn: &str) -> Self {
        Self::new("KMSInvalidStateException", format!("{arn} is not pending deletion."))
    }

    pub(super) fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    /// The text that AWS's own validation has.
    pub(super) fn constraint(field: &str, constraint: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value at '{field}' failed to satisfy constraint: {constraint}"
        ))
    }

    pub(super) fn alias_exists(arn: &str) -> Self {
        Self::new("AlreadyExistsException", format!("An alias with the name {arn} already exists"))
    }

    pub(super) fn invalid_alias_name() -> Self {
        Self::new("InvalidAliasNameException", "Alias name contains invalid characters.")
    }

    pub(super) fn limit_exceeded() -> Self {
        Self::new("LimitExceededException", "The maximum number of on-demand rotations has been reached for this key.")
    }

    pub(super) fn rotation_in_progress(arn: &str) -> Self {
        Self::new("ConflictException", format!("An on-demand rotation of {arn} is in progress."))
    }

    pub(super) fn unsupported(message: &str) -> Self {
        Self::new("UnsupportedOperationException", message)
    }

    pub(super) fn dry_run() -> Self {
        Self::new("DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
    }

    pub(super) fn serialization(message: impl Into<String>) -> Self {
        Self::new("SerializationException", message)
    }

    pub(super) fn unknown_operation() -> Self {
        Self { status: 400, code: "UnknownOperationException", message: None }
    }

    pub(super) fn missing_authentication() -> Self {
        Self::new("MissingAuthenticationTokenException", "Missing Authentication Token")
    }

    pub(super) fn wrong_region() -> Self {
        Self::new("InvalidSignatureException", "Credential should be scoped to a valid region.")
    }

    /// `resource` is what the caller sent as KeyId; a Decrypt without one has AWS's other text.
    pub(super) fn access_denied(account: &str, op: &str, resource: Option<&str>) -> Self {
        let message = match (op, resource) {
            ("Decrypt", None) => {
                "The ciphertext refers to a customer master key that does not exist, does not exist in \
                                  this region, or you are not allowed to access."
                    .to_owned()
            }
            (_, resource) => format!(
                "User: arn:aws:iam::{account}:user/kube-kms is not authorized to perform: kms:{op} on resource: {} \
                 because no identity-based policy allows the kms:{op} action",
                resource.unwrap_or("*")
            ),
        };
        Self::new("AccessDeniedException", message)
    }

    pub(super) fn throttled() -> Self {
        Self::new(
            "ThrottlingException",
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
        )
    }

    pub(super) fn expired_token() -> Self {
        Self::new("ExpiredTokenException", "The security token included in the request is expired")
    }

    pub(super) fn unrecognized_client() -> Self {
        Self::new("UnrecognizedClientException", "The security token included in the request is invalid.")
    }

    pub(super) fn internal() -> Self {
        Self {
            status: 500,
            code: "KMSInternalException",
            message: Some("AWS KMS encountered an internal error.".to_owned()),
        }
    }
}
