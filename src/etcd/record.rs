//! One object as etcd has it, wherever it was read from: a live member or a snapshot file.

/// The newest version of one key at the revision that is read.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The whole etcd key. Bytes: nothing says that it is UTF-8.
    pub key: &'a [u8],
    /// The stored value, with the prefix of its encryption provider, if any.
    pub value: &'a [u8],
    /// The revision of the last write of this key.
    pub mod_revision: i64,
    /// The revision of the write that made this key.
    pub create_revision: i64,
}
