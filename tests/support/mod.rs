//! What tests stand on: fakes, real peers, and the way to say that a test was skipped.

pub mod fake_kms;
pub mod moto;
pub mod skip;

pub use skip::skipped;
