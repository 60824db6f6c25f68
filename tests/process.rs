//! The real binary as a process: who may connect, who owns the socket, what signals do, what the kernel says about it, and
//! how it starts when something is wrong.

mod another_keyring;
mod bad_kek;
mod bad_surroundings;
mod hardening;
mod peer;
mod reload;
mod sandbox;
mod service_manager;
mod stalling_disk;
mod stranger;
mod take_over;
mod terminal;
