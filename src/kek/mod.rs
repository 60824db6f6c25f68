//! KEK providers, one folder each: an adapter from one kind of KMS to [`crate::core::port::Kek`].

#[cfg(feature = "aws")]
pub mod aws;
