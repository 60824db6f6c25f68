//! What can go wrong, in one table: reason, class, gRPC code, phrase, label, exit status.
//!
//! A [`Fault`] has a stable [`Reason`] (logs, metrics, health), a [`Class`] derived from it, and a source that only the
//! log sees. The wire gets the reason's constant phrase and the uid: no host, path, ARN or upstream text, because
//! kube-apiserver shows it to API users. SPEC: the code is a metric label of kube-apiserver; UNKNOWN is never used.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The canonical gRPC status codes that this plugin uses, by number. SPEC: grpc.io "Status codes".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// INVALID_ARGUMENT
    InvalidArgument = 3,
    /// DEADLINE_EXCEEDED
    DeadlineExceeded = 4,
    /// PERMISSION_DENIED
    PermissionDenied = 7,
    /// RESOURCE_EXHAUSTED
    ResourceExhausted = 8,
    /// FAILED_PRECONDITION
    FailedPrecondition = 9,
    /// INTERNAL
    Internal = 13,
    /// UNAVAILABLE
    Unavailable = 14,
    /// DATA_LOSS
    DataLoss = 15,
}

impl Code {
    /// As kube-apiserver spells it in its label `grpc_status_code`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
        }
    }
}

/// Who is at fault and whether trying again helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The caller sent what no kube-apiserver sends. Trying again does not help.
    Malformed,
    /// This configuration cannot use that KEK. Helps: a configuration change.
    KekUnknown,
    /// The KEK is disabled, pending deletion or gone. Helps: an operator.
    KekDead,
    /// The KMS refuses us. Helps: an operator. Never retried by itself within a call.
    KekDenied,
    /// It does not open: damaged, or not ours.
    OpenFailed,
    /// The KMS cannot be reached, or we are not ready. Trying again helps.
    Unreachable,
    /// The KMS, or this plugin, asks for less. Trying later helps.
    Throttled,
    /// The deadline passed first. Trying again helps.
    TooSlow,
    /// The peer on the socket is not allowed.
    PeerRefused,
    /// A bug or broken hardware.
    Broken,
}

impl Class {
    /// The gRPC code of every fault of this class.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Malformed => Code::InvalidArgument,
            Self::KekUnknown | Self::KekDead | Self::KekDenied => Code::FailedPrecondition,
            Self::OpenFailed => Code::DataLoss,
            Self::Unreachable => Code::Unavailable,
            Self::Throttled => Code::ResourceExhausted,
            Self::TooSlow => Code::DeadlineExceeded,
            Self::PeerRefused => Code::PermissionDenied,
            Self::Broken => Code::Internal,
        }
    }

    /// The exit status of a command that ends with a fault of this class (0 done, 1 failed, 3 configuration,
    /// 4 unreachable, 5 refused, 6 verification failed).
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Malformed | Self::Broken => 1,
            Self::KekUnknown => 3,
            Self::Unreachable | Self::Throttled | Self::TooSlow => 4,
            Self::KekDead | Self::KekDenied | Self::PeerRefused => 5,
            Self::OpenFailed => 6,
        }
    }

    /// Whether the same call may succeed without anybody changing anything.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable | Self::Throttled | Self::TooSlow)
    }

    /// The class in words, for logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::KekUnknown => "kek-unknown",
            Self::KekDead => "kek-dead",
            Self::KekDenied => "kek-denied",
            Self::OpenFailed => "open-failed",
            Self::Unreachable => "unreachable",
            Self::Throttled => "throttled",
            Self::TooSlow => "too-slow",
            Self::PeerRefused => "peer-refused",
            Self::Broken => "broken",
        }
    }
}

macro_rules! reasons {
    ($($name:ident, $class:ident, $label:literal, $phrase:literal;)+) => {
        /// Why, in a closed list. The label is stable: logs, metrics, health endpoints and JSON use it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $phrase] $name,)+
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Who is at fault.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)+ }
            }

            /// The stable kebab-case name.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// The constant sentence for the wire.
            #[must_use]
            pub const fn phrase(self) -> &'static str {
                match self { $(Self::$name => $phrase,)+ }
            }
        }
    };
}

reasons! {
    PlaintextEmpty, Malformed, "plaintext-empty", "the plaintext is empty";
    PlaintextTooLong, Malformed, "plaintext-too-long", "the plaintext is longer than 995 bytes";
    CiphertextEmpty, Malformed, "ciphertext-empty", "the ciphertext is empty";
    CiphertextTooShort, Malformed, "ciphertext-too-short", "the ciphertext is shorter than any that this plugin makes";
    CiphertextTooLong, Malformed, "ciphertext-too-long", "the ciphertext is longer than 1024 bytes";
    FormatUnknown, Malformed, "format-unknown", "the ciphertext is not in a format that this version knows";
    KeyIdEmpty, Malformed, "key-id-empty", "the key_id is empty";
    KeyIdTooLong, Malformed, "key-id-too-long", "the key_id is longer than 1024 bytes";
    AnnotationMissing, Malformed, "annotation-missing", "an annotation that this plugin always writes is missing";
    AnnotationInvalid, Malformed, "annotation-invalid", "an annotation is not as this plugin writes it";
    MessageInvalid, Malformed, "message-invalid", "the message is larger than 64 KiB, or is not one of KMS v2";
    AnnotationsTooLarge, Malformed, "annotations-too-large", "the annotations are larger than 32 KiB";
    KekNotConfigured, KekUnknown, "kek-not-configured", "the KEK named in the annotations is not in this plugin's configuration; add it under `read`";
    KekUnusable, KekUnknown, "kek-unusable", "the KEK cannot wrap data keys as it is configured";
    KeyStateUnknown, KekUnknown, "key-state-unknown", "the KMS refuses the KEK for its state, and this plugin may not ask which state that is";
    KeyIdRetired, KekUnknown, "key-id-retired", "the KMS went back to a KEK version that was left before; raise `epoch` to reinstate it";
    KeyringReplaced, KekUnknown, "keyring-replaced", "the local keyring file holds another keyring than the one that this node's data is under; restore its backup";
    KekDisabled, KekDead, "kek-disabled", "the KEK is disabled";
    KekPendingDeletion, KekDead, "kek-pending-deletion", "the KEK is pending deletion";
    KekGone, KekDead, "kek-gone", "the KEK does not exist any more";
    KekMaterialGone, KekDead, "kek-material-gone", "the KEK has no key material";
    CredentialsRejected, KekDenied, "credentials-rejected", "the KMS rejects this plugin's credentials";
    PolicyDenied, KekDenied, "policy-denied", "the KMS denies this plugin the use of the KEK";
    KekFileRefused, KekDenied, "kek-file-refused", "the local keyring file is not safe or not readable";
    OpenFailed, OpenFailed, "open-failed", "the ciphertext, its key_id and its annotations do not belong together, or are damaged";
    WrappedDekRejected, OpenFailed, "wrapped-dek-rejected", "the KMS does not accept the wrapped data key under this KEK and context";
    Starting, Unreachable, "starting", "the plugin is starting and has no data key yet";
    KmsUnreachable, Unreachable, "kms-unreachable", "the KMS cannot be reached";
    KeyStoreUnavailable, Unreachable, "key-store-unavailable", "the KMS is there, but not the key store that holds the KEK";
    KmsAnswerUnusable, Unreachable, "kms-answer-unusable", "the KMS answered something that cannot be used";
    OutageTooLong, Unreachable, "outage-too-long", "the KMS has been away for longer than `outage.stopAfter`";
    DekExhausted, Unreachable, "dek-exhausted", "the data key has been used up and the KMS has not wrapped another yet";
    ShuttingDown, Unreachable, "shutting-down", "the plugin is shutting down";
    KmsThrottled, Throttled, "kms-throttled", "the KMS is throttling requests";
    Overloaded, Throttled, "overloaded", "too many requests are waiting";
    Deadline, TooSlow, "deadline", "the deadline passed before the KMS answered";
    PeerUid, PeerRefused, "peer-uid", "the user of the calling process is not in `listen.allowUids`";
    ReadbackMismatch, Broken, "readback-mismatch", "a data key did not survive being wrapped and unwrapped";
    Entropy, Broken, "entropy", "the operating system gave no randomness";
    Memory, Broken, "memory", "no memory for a data key";
    Invariant, Broken, "invariant", "a promise inside the plugin was broken; please report it";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A reason with the cause that only the log may see.
#[derive(Clone, Debug)]
pub struct Fault {
    reason: Reason,
    detail: Option<Reason>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Fault {
    /// A fault without a cause beyond its reason.
    #[must_use]
    pub const fn new(reason: Reason) -> Self {
        Self { reason, detail: None, source: None }
    }

    /// A fault with the cause to log. SECURITY: the cause must not contain key material; it may name hosts and ARNs,
    /// because it never leaves for the wire.
    #[must_use]
    pub fn caused_by(reason: Reason, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { reason, detail: None, source: Some(Arc::from(source.into())) }
    }

    /// The same fault with the reason behind it: why it is still starting, say.
    #[must_use]
    pub fn with_detail(self, detail: Option<Reason>) -> Self {
        Self { detail, ..self }
    }

    /// Why.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// Who is at fault.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.reason.class()
    }

    /// The chain of causes in one line, for the log: empty when there is none.
    #[must_use]
    pub fn causes(&self) -> String {
        let mut chain = String::new();
        let mut next: Option<&(dyn Error + 'static)> = self.source.as_deref().map(|s| s as &(dyn Error + 'static));
        while let Some(cause) = next {
            let text = cause.to_string();
            if !chain.ends_with(&text) {
                if !chain.is_empty() {
                    chain.push_str(": ");
                }
                chain.push_str(&text);
            }
            next = cause.source();
        }
        chain
    }

    /// As [`Fault::causes`], for a field that a log line has only when there is something in it.
    #[must_use]
    pub fn known_causes(&self) -> Option<String> {
        Some(self.causes()).filter(|causes| !causes.is_empty())
    }
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

impl Eq for Fault {}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.reason == other.reason
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.label(), self.reason.phrase())?;
        self.detail.map_or(Ok(()), |detail| write!(f, " ({detail})"))
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The table of the house style, written a second time so that a slip in one of them is seen.
    const EXPECTED: &[(Class, &str, Code, u8, bool)] = &[
        (Class::Malformed, "malformed", Code::InvalidArgument, 1, false),
        (Class::KekUnknown, "kek-unknown", Code::FailedPrecondition, 3, false),
        (Class::KekDead, "kek-dead", Code::FailedPrecondition, 5, false),
        (Class::KekDenied, "kek-denied", Code::FailedPrecondition, 5, false),
        (Class::OpenFailed, "open-failed", Code::DataLoss, 6, false),
        (Class::Unreachable, "unreachable", Code::Unavailable, 4, true),
        (Class::Throttled, "throttled", Code::ResourceExhausted, 4, true),
        (Class::TooSlow, "too-slow", Code::DeadlineExceeded, 4, true),
        (Class::PeerRefused, "peer-refused", Code::PermissionDenied, 5, false),
        (Class::Broken, "broken", Code::Internal, 1, false),
    ];

    #[test]
    fn every_reason_has_the_code_label_phrase_and_exit_status_of_its_class() {
        let mut labels = HashSet::new();
        let mut phrases = HashSet::new();
        for reason in Reason::ALL {
            let row = EXPECTED.iter().find(|row| row.0 == reason.class()).unwrap();
            assert_eq!(reason.class().label(), row.1);
            assert_eq!(reason.class().code(), row.2);
            assert_eq!(row.2.label(), format!("{:?}", row.2), "as grpc-go names it");
            assert_eq!(reason.class().exit_status(), row.3);
            assert_eq!(reason.class().is_transient(), row.4);
            assert!(labels.insert(reason.label()), "{reason} twice");
            assert!(phrases.insert(reason.phrase()), "{reason}: phrase twice");
            assert!(reason.label().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{reason}: not kebab-case");
            assert!(reason.phrase().len() < 120 && !reason.phrase().contains('/'), "{reason}: {}", reason.phrase());
        }
        assert_eq!(labels.len(), Reason::ALL.len());
    }

    #[test]
    fn the_wire_text_never_contains_the_cause() {
        let fault = Fault::caused_by(Reason::KmsUnreachable, "connect to 10.0.0.1:443 refused");
        assert!(!fault.to_string().contains("10.0.0.1"));
        assert!(fault.causes().contains("10.0.0.1"));
        assert!(fault.known_causes().is_some_and(|causes| causes.contains("10.0.0.1")));
        assert_eq!(Fault::new(Reason::KmsUnreachable).known_causes(), None, "no empty field in the log");
        assert_eq!(fault.source().map(ToString::to_string).as_deref(), Some("connect to 10.0.0.1:443 refused"));
        assert!(fault == Fault::new(Reason::KmsUnreachable) && fault != Fault::new(Reason::KekGone));
    }
}
