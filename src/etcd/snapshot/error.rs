//! Why a snapshot file cannot be read, and what to do about it. No error holds a byte of a key or a value.

use std::io;
use thiserror::Error;

/// Why a snapshot file cannot be read. The path is the caller's to say.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The operating system says no.
    #[error("the file cannot be read")]
    Read(#[from] io::Error),
    /// A directory, a pipe, a device.
    #[error("it is no regular file")]
    NotRegular,
    /// Neither the size of a database nor that of one with a hash.
    #[error("{0} bytes are neither a database nor a database with its SHA-256: it is cut short, or no etcd snapshot")]
    Size(u64),
    /// No hash, and none was waived.
    #[error("it ends without the SHA-256 that `etcdctl snapshot save` appends")]
    HashMissing,
    /// Damaged or altered.
    #[error("the SHA-256 at its end is not that of its content: it is damaged or was altered")]
    HashMismatch,
    /// Neither meta page is one.
    #[error("it is no bbolt database that can be read here: {0}")]
    NotBolt(&'static str),
    /// The meta page counts more pages than there are.
    #[error("its {pages} pages of {page_size} bytes do not fit into its {size} bytes: it is cut short")]
    CutShort {
        /// Pages, by the meta page.
        pages: u64,
        /// Bytes of each.
        page_size: u64,
        /// Bytes of the file, without the hash.
        size: u64,
    },
    /// A page is not what it must be.
    #[error("page {page}: {problem}")]
    Page {
        /// Its number.
        page: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No bucket `key`.
    #[error("it is a bbolt database without etcd's bucket of revisions")]
    NoRevisions,
    /// A revision's key or value is not what etcd writes.
    #[error("page {page}, entry {entry}: {problem}")]
    Entry {
        /// The page's number; 0 for a bucket that lies inside its parent's page.
        page: u64,
        /// Its place in the page.
        entry: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl SnapshotError {
    /// What to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read(_) => "check the path and that this user may read it",
            Self::NotRegular => {
                "name the file that `etcdctl snapshot save` wrote; a compressed or streamed one has to be a file first"
            }
            Self::HashMissing => {
                "when it is a copy of member/snap/db of a member that does not run, say that a missing hash is accepted; \
                 otherwise take the snapshot again"
            }
            Self::Size(_) | Self::CutShort { .. } => {
                "copy the file again from where it was made, or take the snapshot again"
            }
            Self::HashMismatch => {
                "do not trust this backup: `etcdctl snapshot restore` refuses it too. Copy it again from where it was made, \
                 or use another one"
            }
            Self::NotBolt(_) | Self::NoRevisions => {
                "name the file that `etcdctl snapshot save` wrote, unpacked and not encrypted"
            }
            Self::Page { .. } | Self::Entry { .. } => {
                "the database is damaged, or was copied while a member wrote to it: use `etcdctl snapshot save`, or another backup"
            }
        }
    }
}
