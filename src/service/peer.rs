//! Who is at the other end of a connection: what the transport learns and the gRPC face judges by.

/// Credentials that the kernel vouches for (SO_PEERCRED), and whether `listen.allowUids` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user id of the process that connected.
    pub uid: u32,
    /// Its process id, when the kernel tells.
    pub pid: Option<i32>,
    /// Whether it may call.
    pub allowed: bool,
}
