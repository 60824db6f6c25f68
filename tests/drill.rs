//! `kmsctl drill rehearse`: every claim holds on both KEKs, each badly behaved plugin fails at its step and at no other that it
//! does not touch, and nothing is left behind, however the drill ends.

mod aws;
mod bad;
mod ended;
mod live;
mod local;
mod run;
