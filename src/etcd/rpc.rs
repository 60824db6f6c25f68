//! The messages and clients of etcd, generated from `proto/etcd_rpc.proto` at build time.
//!
//! SECURITY: the message that carries a password is wiped on drop, and neither it nor the token is ever printed.

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
mod generated {
    tonic::include_proto!("etcdserverpb");
}

pub use generated::{
    AuthenticateRequest, AuthenticateResponse, KeyValue, RangeRequest, RangeResponse, ResponseHeader, StatusRequest,
    StatusResponse, auth_client, kv_client, maintenance_client,
};

impl std::fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthenticateRequest(secret)")
    }
}

impl std::fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthenticateResponse(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_password_nor_token_is_printed() {
        let request = AuthenticateRequest { name: "root".to_owned(), password: "hunter2".to_owned() };
        assert_eq!(format!("{request:?}"), "AuthenticateRequest(secret)");
        let answer = AuthenticateResponse { header: None, token: "t0ken".to_owned() };
        assert_eq!(format!("{answer:?}"), "AuthenticateResponse(secret)");
    }
}
