//! The uid of the request that a KMS call is made for, in the user agent: CloudTrail shows it with the call.
//!
//! Guarantees: only a uid that is plainly one (letters, digits, `-`, `_`, `.`) is sent; the caller chooses it, and an audit log
//! must not carry whatever a caller wrote. Never in EncryptionContext: what is bound to the wrap would have to be known to unwrap.
//! SPEC: RFC 9110 10.1.5 (product); docs/observability.md, "From a failing Secret to CloudTrail".

use aws_sdk_kms::config::http::HttpRequest;
use kube_kms_core::uid::Uid;

/// Both are sent by the SDK; which one CloudTrail shows is for AWS to say.
const HEADERS: [&str; 2] = ["user-agent", "x-amz-user-agent"];

/// Adds the uid to the user agents of a request.
pub(super) fn with_uid(uid: Option<&Uid>) -> impl Fn(&mut HttpRequest) + Send + Sync + 'static + use<> {
    let suffix = uid.filter(|uid| is_plain(uid.as_str())).map(|uid| format!(" kube-kms-uid/{uid}"));
    move |request| {
        let Some(suffix) = &suffix else { return };
        for name in HEADERS {
            if let Some(agent) = request.headers().get(name) {
                let agent = format!("{agent}{suffix}");
                // Of characters that a header may have; were it not so, the request would go without.
                let _ = request.headers_mut().try_insert(name, agent);
            }
        }
    }
}

fn is_plain(uid: &str) -> bool {
    uid != "-" && uid.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_plainly_a_uid_goes_to_an_audit_log() {
        for (uid, sent) in [
            ("8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234", true),
            ("a_b.c", true),
            ("", false),
            ("-", false),
            ("a b", false),
            ("a/b", false),
            ("a\r\nx: y", false),
            ("a;(b)", false),
        ] {
            assert_eq!(is_plain(Uid::parse(uid).as_str()), sent, "{uid:?}");
        }
    }
}
