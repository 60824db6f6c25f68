//! One object as etcd has it, wherever it was read from: a live member or a snapshot file.
//!
//! Guarantees: its value, which may be a Secret in clear, is never in its `Debug`.

use std::fmt;

/// The newest version of one key at the revision that is read.
#[derive(Clone, Copy)]
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

// SECURITY: a value that is not encrypted is the object itself.
impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("key", &self.key.escape_ascii().to_string())
            .field("value", &format_args!("{} bytes", self.value.len()))
            .field("mod_revision", &self.mod_revision)
            .field("create_revision", &self.create_revision)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_has_the_key_and_not_the_value() {
        let record =
            Record { key: b"/registry/secrets/a/b\xff", value: b"hunter2", mod_revision: 7, create_revision: 3 };
        let text = format!("{record:?}");
        assert!(text.contains("/registry/secrets/a/b") && text.contains("7 bytes"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("104"), "{text}");
    }
}
