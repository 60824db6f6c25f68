//! The fakes and the sites of the tests, as far as they are needed here.

#![allow(dead_code, unused_imports, reason = "the tests use the rest")]

#[path = "../../tests/support/fake_kms/mod.rs"]
pub mod fake_kms;
#[path = "../../tests/support/fault_proxy.rs"]
pub mod fault_proxy;
#[path = "../../tests/support/port.rs"]
pub mod port;
#[path = "../../tests/support/replica.rs"]
pub mod replica;
#[path = "../../tests/support/site.rs"]
pub mod site;
