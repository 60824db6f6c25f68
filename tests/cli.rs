//! What every command prints and how it exits, as transcripts of the real binary.
//!
//! Guarantees: exit status 0 to 6 each seen; every failure is `error:`, `cause:` lines, one `hint:`; no panic reaches the
//! operator. Text that differs from run to run is replaced by its name ([`transcript::normal`]); `cli/help.txt` holds every
//! `--help`, and `KUBE_KMS_BLESS=1` writes it anew.

mod check;
mod config_reference;
mod doctor;
mod keyring;
mod probe;
mod usage;
