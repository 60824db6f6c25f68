//! The KMS v2 messages, written by hand: the servers and the client of this benchmark link nothing of kube-kms, so that they
//! have neither its allocator nor its wiping. SPEC: k8s.io/kms apis/v2/api.proto.

#![allow(dead_code, reason = "two programs share this file, and each has its own use for it")]

use std::collections::BTreeMap;

/// The path of Status.
pub const STATUS: &str = "/v2.KeyManagementService/Status";
/// The path of Encrypt.
pub const ENCRYPT: &str = "/v2.KeyManagementService/Encrypt";

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// What every measured call sends: a seed of 32 bytes and a uid of 36.
pub fn encrypt_request() -> EncryptRequest {
    EncryptRequest { plaintext: vec![7; 32], uid: "3f8d6a10-7c1e-4b57-9a53-2d0c64e1b9f2".to_owned() }
}
