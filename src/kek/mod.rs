//! KEK providers: one folder for each kind of KMS, each behind the port [`crate::core::port::Kek`].
//!
//! A provider translates: our wrap and unwrap into its KMS's calls, its KMS's errors into our faults. Providers know
//! `core`, `memory` and `durable`, and nothing of each other, of configuration files or of gRPC.

#[cfg(feature = "aws")]
pub mod aws;
pub mod local;
