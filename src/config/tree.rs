//! YAML text to a tree of plain values.
//!
//! Guarantees: one document, no duplicate keys, no merge keys, bounded in size, depth and alias expansion; an error
//! names line and column and never shows the text. SPEC: YAML 1.2.2 core schema; where YAML 1.1 readers understand a
//! plain number differently (`0600`) it is refused, since other tools read the same file.

use crate::problem::{ConfigError, Problem, Problems, shown};
use serde_json::Value;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Options};

/// Bytes of a configuration at most.
pub(super) const SIZE_MAX: usize = 1024 * 1024;
const DEPTH_MAX: usize = 32;
const NODES_MAX: usize = 50_000;

/// Reads the one document, and reports what YAML readers disagree about.
///
/// # Errors
/// One problem: too large, not YAML (with line and column), empty.
pub(super) fn read(text: &str) -> Result<(Value, Vec<Problem>), ConfigError> {
    if text.len() > SIZE_MAX {
        return Err(too_large());
    }
    let tree: Value = serde_saphyr::from_str_with_options(text, options(false)).map_err(|e| syntax(text, &e))?;
    if tree.is_null() {
        return Err(ConfigError::about("", "is empty", "at least `kek` is required; see docs/configuration.md"));
    }
    let old: Value = serde_saphyr::from_str_with_options(text, options(true)).map_err(|e| syntax(text, &e))?;
    let problems = Problems::default();
    report_ambiguous("", &tree, &old, &problems);
    Ok((tree, problems.into_inner()))
}

/// The problem of a text over [`SIZE_MAX`].
pub(super) fn too_large() -> ConfigError {
    ConfigError::about("", "is larger than 1 MiB", "is this the right file?")
}

fn options(legacy_octal: bool) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: NODES_MAX,
            max_aliases: 100,
            max_anchors: 100,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000, max_replay_stack_depth: 8 },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        legacy_octal_numbers: legacy_octal,
        strict_booleans: true,
        reject_unsupported_tags: true,
        // SECURITY: a snippet would show the lines around the mistake.
        with_snippet: false,
    }
}

/// Says where and what, in our words: those of the parser may quote the file.
fn syntax(text: &str, error: &Error) -> ConfigError {
    let error = error.without_snippet();
    let line = error.location().map_or(0, |l| l.line());
    let path = match error.location() {
        Some(at) if at.line() > 0 => format!("line {}, column {}", at.line(), at.column()),
        _ => String::new(),
    };
    let (what, hint) = match error {
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map_or("a key", shown);
            return ConfigError::about(path, format!("duplicate key `{key}`"), "each key may stand once");
        }
        Error::MultipleDocuments { .. } => ("a second document", "a configuration is one YAML document"),
        Error::MergeKeyNotAllowed { .. } => ("a merge key (`<<`)", "write the keys out"),
        Error::UnknownAnchor { .. } => ("an alias without its anchor", "put text that begins with `*` in quotes"),
        Error::UnsupportedTag { .. } => ("a YAML tag", "put text that begins with `!` in quotes"),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            ("nested too deeply or too large", "a configuration has no more than a few levels")
        }
        Error::AliasError { .. } => ("an alias with a mistake or too much behind it", "write out what it stands for"),
        _ if starts_with_tab(text, line) => ("not valid YAML", "indent with blanks, not with a tab"),
        _ => ("not valid YAML", "check indentation, quotes, brackets and the colon with a blank after it"),
    };
    ConfigError::about(path, what, hint)
}

fn starts_with_tab(text: &str, line: u64) -> bool {
    let nth = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
    text.lines().nth(nth).is_some_and(|l| l.trim_start_matches(' ').starts_with('\t'))
}

/// Reports what YAML 1.1 and YAML 1.2 readers understand differently.
fn report_ambiguous(path: &str, new: &Value, old: &Value, problems: &Problems) {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            for (name, value) in new {
                let inner = if path.is_empty() { shown(name).to_owned() } else { format!("{path}.{}", shown(name)) };
                report_ambiguous(&inner, value, old.get(name).unwrap_or(&Value::Null), problems);
            }
        }
        (Value::Array(new), Value::Array(old)) => {
            for (n, (value, old)) in new.iter().zip(old).enumerate() {
                report_ambiguous(&format!("{path}[{n}]"), value, old, problems);
            }
        }
        _ if new != old => problems.add(
            path,
            "a number that begins with 0 and is not in quotes",
            "some YAML readers take it as octal and some as decimal; write it in quotes, such as \"0600\"",
        ),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_says_so() {
        for text in ["", "\n", "# only a comment\n", "---\n", "~", "\u{feff}"] {
            assert_eq!(refused(text), "is empty; at least `kek` is required; see docs/configuration.md", "{text:?}");
        }
    }

    #[test]
    fn a_duplicate_key_is_refused_with_its_place() {
        assert_eq!(
            refused("a: 1\nb:\n  c: 1\n  c: 2\n"),
            "line 4, column 3: duplicate key `c`; each key may stand once"
        );
    }

    #[test]
    fn a_syntax_error_names_line_and_column_and_shows_nothing() {
        for text in
            ["a: 1\nb: [CANARY\n", "a: \"CANARY\nb: 1", "CANARY: {", "a: CANARY\n  b: CANARY: 2\n", "&CANARY *CANARY"]
        {
            let error = refused(text);
            assert!(error.starts_with("line ") && error.contains("column "), "{error}");
            assert!(!error.contains("CANARY"), "{error}");
        }
        assert!(refused("a:\n\tb: 1\n").contains("not with a tab"));
    }

    #[test]
    fn what_yaml_can_do_and_a_configuration_needs_not_is_refused() {
        assert!(refused("a: 1\n---\nb: 1\n").contains("one YAML document"));
        assert!(refused("a: &x {b: 1}\nc:\n  <<: *x\n").contains("merge key"));
        assert!(refused("a: *x\n").contains("alias without its anchor"));
        assert!(refused("a: !secret CANARY\n").contains("a YAML tag"));
        assert!(refused(&format!("{}{}", "[".repeat(64), "]".repeat(64))).contains("nested too deeply"));
        assert!(refused(&" ".repeat(SIZE_MAX + 1)).contains("larger than 1 MiB"));
    }

    #[test]
    fn aliases_cannot_blow_up() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let list = vec![format!("*a{}", n - 1); 10].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{list}]\n"));
        }
        let error = refused(&text);
        assert!(error.contains("too much behind it"), "{error}");
    }

    #[test]
    fn a_plain_number_that_readers_disagree_about_is_refused() {
        for (text, path) in [("listen:\n  mode: 0600\n", "listen.mode"), ("allow: [1, 010]\n", "allow[1]")] {
            let (_, problems) = read(text).unwrap();
            assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), [path]);
        }
        assert!(read("a: [0, 10, '010', 0.5, 08]").unwrap().1.is_empty());
    }
}
