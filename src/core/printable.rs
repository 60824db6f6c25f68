//! Text of strangers, for a person or a terminal: from etcd, from a plugin, from a KMS.
//!
//! Guarantees: nothing comes out that a terminal obeys or that changes how a line reads: no control character, C1 included,
//! no character of direction or format, nothing that does not print. What prints stays as it is.

use std::borrow::Cow;

/// Whether a terminal would obey it, or a reader not see it: everything that Unicode calls control, format, separator or
/// unassigned, but for a blank.
#[must_use]
pub fn is_steering(c: char) -> bool {
    // What prints has a short form at most: `"`, `'` and `\\` are the ones with two characters.
    !c.is_ascii_graphic() && c != ' ' && (c.is_control() || c.escape_debug().nth(2).is_some())
}

/// Bytes for a person, on one line: what steers is escaped, and bytes that are no text all of them.
#[must_use]
pub fn printable(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_steering) => Cow::Borrowed(text),
        Ok(text) => Cow::Owned(escaped(text, |_| false, |c, to| to.extend(c.escape_unicode()))),
        Err(_) => Cow::Owned(bytes.escape_ascii().to_string()),
    }
}

/// Lines for a person: the same, and the ends of lines stay.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    if is_plain(text) || !text.chars().any(|c| is_steering(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(escaped(text, |c| c == '\n', |c, to| to.extend(c.escape_unicode())))
}

/// Whether there is nothing to look for, told fast: a line of the log passes here.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n'))
}

/// A JSON document with what steers in JSON's own escapes: whoever parses it gets the same strings.
#[must_use]
pub fn printable_json(document: &str) -> Cow<'_, str> {
    // JSON has such characters in its strings only, but for what it ends its lines with.
    if is_plain(document) || !document.chars().any(|c| is_steering(c) && c != '\n') {
        return Cow::Borrowed(document);
    }
    let escape = |c: char, to: &mut String| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            to.push_str(&format!("\\u{unit:04x}"));
        }
    };
    Cow::Owned(escaped(document, |c| c == '\n', escape))
}

fn escaped(text: &str, stays: fn(char) -> bool, escape: impl Fn(char, &mut String)) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut all, c| {
        if is_steering(c) && !stays(c) {
            escape(c, &mut all)
        } else {
            all.push(c)
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Controls of C0 and C1, of direction, without width, of lines, tags, a private one.
    const STEERING: &str = "\u{0}\t\n\r\u{1b}\u{7f}\u{80}\u{9b}\u{ad}\u{61c}\u{180e}\u{200b}\u{200f}\u{2028}\u{202a}\u{202e}\u{2060}\
        \u{2066}\u{2069}\u{feff}\u{fff9}\u{e0001}\u{e007f}\u{e000}";

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_what_prints_is_not() {
        for c in STEERING.chars() {
            assert!(is_steering(c), "{c:?}");
        }
        for text in ["größe", "名前", "a b", "\"'\\", "\u{fffd}", "é", "🔑"] {
            assert!(matches!(printable(text.as_bytes()), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(printable(b"a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("a\u{202e}b\u{9b}".as_bytes()), "a\\u{202e}b\\u{9b}");
        assert_eq!(printable(b"\xffa\n"), "\\xffa\\n");
        assert_eq!(printable_lines("a\u{9b}\nb"), "a\\u{9b}\nb");
        assert_eq!(printable_json("{\n \"a\u{9b}\u{e0001}\": 1}"), "{\n \"a\\u009b\\udb40\\udc01\": 1}");
    }

    proptest! {
        #[test]
        fn a_document_is_the_same_document_for_whoever_parses_it(texts: Vec<String>, tail in "[\u{80}-\u{9f}\u{200b}-\u{202e}]*") {
            let value = serde_json::json!({ "texts": texts, "tail": tail });
            let document = serde_json::to_string_pretty(&value).unwrap();
            let shown = printable_json(&document);
            prop_assert!(!shown.chars().any(|c| is_steering(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }

        #[test]
        fn one_line_stays_one_line(bytes: Vec<u8>, text: String) {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                prop_assert!(!printable(bytes).chars().any(is_steering));
            }
        }
    }
}
