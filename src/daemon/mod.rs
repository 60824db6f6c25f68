//! Wires the plugin together. Written by its owner; declares only the module that is already here.

pub mod harden;
