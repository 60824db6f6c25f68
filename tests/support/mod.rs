//! What tests stand on: fakes, real peers, the real binary on a temporary socket, and the way to say that a test was
//! skipped.

pub mod apiserver_go;
pub mod apiserver_whole;
pub mod bad_plugin;
pub mod beside;
pub mod bolt_file;
pub mod canary;
pub mod collector;
pub mod etcd_store;
pub mod fake_api;
#[cfg(feature = "aws")]
pub mod fake_kms;
pub mod fault_proxy;
pub mod grpc_go;
#[cfg(feature = "aws")]
pub mod hand;
#[cfg(feature = "aws")]
pub mod moto;
pub mod port;
#[cfg(feature = "aws")]
pub mod replica;
pub mod site;
pub mod skip;
pub mod stall;
pub mod transcript;
pub mod wire;

pub use skip::skipped;
