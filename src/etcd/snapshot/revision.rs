//! One entry of etcd's bucket `key`: which revision, of which key, with which value.
//!
//! SPEC: go.etcd.io/etcd/server/v3 `storage/mvcc` `revision.go` and `kvstore.go`: eight bytes of revision, `_`, eight bytes
//! of the place in its transaction, all big-endian, and `t` behind a deletion; the value is `mvccpb.KeyValue`, of a
//! deletion with the key alone. The value is a stored object, perhaps in plain: it has no `Debug` here.

use bytes::Bytes;
use prost::Message as _;

/// When an entry was written, and whether it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Revision {
    /// The revision of the transaction.
    pub(super) main: i64,
    /// Whether it is a tombstone.
    pub(super) is_deletion: bool,
}

/// What is read of `mvccpb.KeyValue`. `Bytes` are slices of the page when it is decoded from `Bytes`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(int64, tag = "2")]
    pub(super) create_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) value: Bytes,
}

/// The revision that a key of the bucket says.
pub(super) fn parse(key: &[u8]) -> Option<Revision> {
    let (main, rest) = key.split_first_chunk()?;
    let (mark, rest) = rest.split_first()?;
    let (_sub, rest) = rest.split_first_chunk::<8>()?;
    let is_deletion = match rest {
        [] => false,
        [b't'] => true,
        _ => return None,
    };
    let main = i64::try_from(u64::from_be_bytes(*main)).ok()?;
    (*mark == b'_').then_some(Revision { main, is_deletion })
}

/// The message, or nothing when it is none.
pub(super) fn decode(value: Bytes) -> Option<KeyValue> {
    KeyValue::decode(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_seventeen_bytes_or_eighteen_and_nothing_else() {
        let key = [&[0, 0, 0, 0, 0, 0, 1, 2], &b"_"[..], &[0; 8]].concat();
        assert_eq!(parse(&key), Some(Revision { main: 258, is_deletion: false }));
        assert_eq!(parse(&[&key[..], b"t"].concat()), Some(Revision { main: 258, is_deletion: true }));
        assert_eq!(parse(&[&key[..], b"x"].concat()), None);
        assert_eq!(parse(&[&key[..], b"tt"].concat()), None);
        assert_eq!(parse(&key[..16]), None);
        assert_eq!(parse(&[&[0xff; 8], &b"_"[..], &[0; 8]].concat()), None);
        assert_eq!(parse(&[&[0; 8], &b"-"[..], &[0; 8]].concat()), None);
        assert_eq!(parse(b""), None);
    }
}
