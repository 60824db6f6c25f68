//! The request id that kube-apiserver sends: untrusted text that ends up in log lines.

use std::fmt;

/// Bytes of a uid that are kept at most; kube-apiserver sends a UUID of 36.
const KEPT: usize = 64;

/// A uid made safe to log: printable ASCII without blanks or quotes, at most 64 bytes, `-` when there is none.
///
/// SECURITY: whoever may open the socket chooses this text; without the filter it could forge log lines.
#[derive(Clone, PartialEq, Eq)]
pub struct Uid(String);

impl Uid {
    /// Takes any text; never fails, because a request with a strange uid is still served (docs/conformance.md, item 38).
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self("-".to_owned());
        }
        if text.len() <= KEPT && text.bytes().all(is_plain) {
            return Self(text.to_owned());
        }
        Self(text.bytes().take(KEPT).map(|b| if is_plain(b) { char::from(b) } else { '?' }).collect())
    }

    /// The same, without a copy of a text that is safe already.
    #[must_use]
    pub fn take(text: String) -> Self {
        let is_safe = !text.is_empty() && text.len() <= KEPT && text.bytes().fold(true, |all, b| all & is_plain(b));
        if is_safe { Self(text) } else { Self::parse(&text) }
    }

    /// The safe text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn is_plain(b: u8) -> bool {
    b.is_ascii_graphic() & (b != b'"') & (b != b'\\')
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_kept_and_a_forged_log_line_is_not() {
        assert_eq!(Uid::parse("8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234").as_str(), "8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234");
        assert_eq!(Uid::parse("").as_str(), "-");
        assert_eq!(format!("{0} {0:?}", Uid::parse("a\nb")), "a?b a?b");
        assert_eq!(Uid::parse("a\nlevel=error \"x\"\u{1b}[2J").as_str(), "a?level=error??x??[2J");
        assert_eq!(Uid::parse(&"x".repeat(500)).as_str().len(), KEPT);
        assert_eq!(Uid::parse("ü").as_str(), "??");
        for text in ["", "-", "a b", "8b4c3a0e-6f4f-4c89-9b53-5a1f0f5f1234", &"x".repeat(500)] {
            assert_eq!(Uid::take(text.to_owned()), Uid::parse(text));
        }
    }
}
