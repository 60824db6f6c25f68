//! What tests stand on: fakes, real peers, the real binary on a temporary socket, and the way to say that a test was
//! skipped.

pub mod bad_plugin;
#[cfg(feature = "aws")]
pub mod fake_kms;
#[cfg(feature = "aws")]
pub mod moto;
pub mod site;
pub mod skip;

pub use skip::skipped;
