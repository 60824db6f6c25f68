//! What operators and API servers live through: rotations, outages, revocation, restarts, replicas that disagree.
//!
//! Two kinds of stage. [`socket`]: the real binary, with the API server simulator over its socket; the KMS's trouble is real
//! and made short by small settings. [`world`]: plugin, supervisor and simulator in one process on paused time, where hours
//! and days have to be played. Item numbers are those of docs/conformance.md.

mod credentials;
mod day;
mod gate;
mod hour;
mod load;
mod replicas;
mod revocation;
mod rotation;
mod socket;
mod states;
mod status;
mod wall_clock;
mod world;
