//! The KMS v2 messages and services, generated from `proto/` at build time, their codec, and what etcd holds.
//!
//! A leaf: the server and the client share it. SECURITY: the two messages that carry a seed are wiped on drop and print
//! nothing of themselves.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

pub mod address;
pub mod codec;
pub mod stored;

/// Package `v2` of the proto.
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v2 {
    tonic::include_proto!("v2");
}

impl std::fmt::Debug for v2::EncryptRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EncryptRequest(secret)")
    }
}

impl std::fmt::Debug for v2::DecryptResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DecryptResponse(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::v2::{DecryptResponse, EncryptRequest};

    #[test]
    fn messages_that_carry_a_seed_print_nothing_of_it() {
        let request = EncryptRequest { plaintext: b"seed".to_vec(), uid: "u".to_owned() };
        assert_eq!(format!("{request:?}"), "EncryptRequest(secret)");
        assert_eq!(format!("{:?}", DecryptResponse { plaintext: b"seed".to_vec() }), "DecryptResponse(secret)");
    }
}
