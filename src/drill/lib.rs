//! Drills: walk the whole rotation and test every claim of it, in ten steps.
//!
//! [`live::run`] does it on a cluster. [`rehearse`] does it in a sandbox: the real binary as child processes, API server simulators in front, objects in memory.
//! Steps, claims, reports and the order of things ([`claim`], [`script`], [`report`]) know nothing of the sandbox, so that each
//! drill has a world of its own. Guarantees: whatever the drill started ends with it. Refuses
//! to know who prints.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "in a test an overflow is a failure like any other"))]

mod admin;
mod check;
pub mod claim;
mod front;
pub mod live;
mod load;
mod node;
pub mod plan;
mod reach;
mod rehearse;
pub mod render;
pub mod report;
mod sandbox;
pub mod script;
mod step;
mod store;
mod task;
pub mod tempo;
pub mod timeline;
mod world;

pub use rehearse::rehearse;
