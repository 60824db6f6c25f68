//! What stands in the way of serving, besides the configuration's own mistakes and the KEK: the host, the socket, the clock,
//! and kube-apiserver's EncryptionConfiguration.
//!
//! Guarantees: looks and changes nothing; every finding has a remedy; no key of an EncryptionConfiguration is ever kept or
//! shown. Refuses to know: the command line and how findings are printed; whether the KEK works.

pub mod apiserver;
pub mod encryption_configuration;
pub mod finding;
pub mod host;
mod provider;
mod resource;
pub mod socket;
