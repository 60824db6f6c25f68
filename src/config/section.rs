//! One section of the configuration and its typed takers.
//!
//! Guarantees: unknown keys are reported when the section is opened, so that this cannot be forgotten; a taker that
//! finds a mistake records it and returns the default, so that the walk goes on and finds the next one. Values are
//! described by kind and never shown, numbers and durations that were understood excepted.

use crate::key::{self, Key, Takes};
use crate::problem::{Problems, shown};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

const DURATION_HINT: &str = "a number with its unit, such as 500ms, 90s, 15m, 24h or 7d";
/// How alike two names are (0 to 1) for one to be offered instead of the other.
const ALIKE: f64 = 0.55;

/// A section that may be absent; then every taker returns its default.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    known_as: String,
    map: Option<&'a Map<String, Value>>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// Opens the value at `path`; what may stand in it is what [`key::KEYS`] has under `known_as`.
    pub(super) fn open(path: String, known_as: &str, value: &'a Value, problems: &'a Problems) -> Self {
        let map = match value {
            Value::Object(map) => Some(map),
            Value::Null => None,
            other => {
                problems.add(&*path, format!("expected a section (key: value), found {}", kind(other)), "");
                None
            }
        };
        let section = Self { path, known_as: known_as.to_owned(), map, problems };
        section.report_unknown();
        section
    }

    /// The section of that name within this one.
    pub(super) fn section(&self, name: &str) -> Self {
        let known_as = join(&self.known_as, name);
        Self::open(self.at(name), &known_as, self.value(name).unwrap_or(&Value::Null), self.problems)
    }

    /// The path of a key of this section.
    pub(super) fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Where this section is.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the key is there, with or without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Reports a mistake at a key of this section.
    pub(super) fn problem(&self, name: &str, what: impl Into<String>, hint: impl Into<String>) {
        self.problems.add(self.at(name), what, hint);
    }

    /// Whose problems these are.
    pub(super) const fn problems(&self) -> &'a Problems {
        self.problems
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.map?.get(name)
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value, hint: &str) {
        let hint = if found.is_null() { "remove the key to have its default" } else { hint };
        self.problem(name, format!("expected {expected}, found {}", kind(found)), hint);
    }

    /// Text, possibly empty; `None` when it is absent or was reported.
    pub(super) fn text_or_empty(&self, name: &str) -> Option<&'a str> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            other => {
                let plain = matches!(other, Value::Number(_) | Value::Bool(_));
                self.wrong(name, "text", other, if plain { "put it in quotes" } else { "" });
                None
            }
        }
    }

    /// Text that is not empty and has no control characters; `None` when it is absent or was reported.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        let text = self.text_or_empty(name)?;
        if text.trim().is_empty() {
            self.problem(name, "is empty", "");
            return None;
        }
        if text.chars().any(char::is_control) {
            self.problem(name, "has control characters", "");
            return None;
        }
        Some(text)
    }

    /// As [`Section::text`], and absence is reported.
    pub(super) fn required_text(&self, name: &str, hint: &str) -> Option<&'a str> {
        if !self.has(name) {
            self.problem(name, "is missing", hint);
        }
        self.text(name)
    }

    /// A whole number within the bounds of the table; its default when it is absent or was reported.
    pub(super) fn count<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        let (bounds, default) = match self.in_table(name) {
            Some(Key { takes: Takes::Count { min, max, .. }, default: Some(default), .. }) => {
                (*min..=*max, default.parse().ok()?)
            }
            _ => return self.not_in_table(name),
        };
        let number = self.value(name).map_or(Some(default), |value| self.whole_number(name, value, &bounds));
        T::try_from(number.unwrap_or(default)).ok()
    }

    fn whole_number(&self, name: &str, value: &Value, bounds: &RangeInclusive<u64>) -> Option<u64> {
        let Some(number) = value.as_number() else {
            let hint = if value.is_string() { "take away the quotes and any unit" } else { "" };
            self.wrong(name, "a whole number", value, hint);
            return None;
        };
        let taken = number.as_u64().filter(|n| bounds.contains(n));
        if taken.is_none() {
            let (min, max) = (bounds.start(), bounds.end());
            self.problem(name, format!("{number} is not a whole number from {min} to {max}"), "");
        }
        taken
    }

    fn in_table(&self, name: &str) -> Option<&'static Key> {
        key::at(&join(&self.known_as, name))
    }

    /// A slip in the table itself; `every_bound_is_taken_and_what_is_beyond_is_refused` holds that there is none.
    fn not_in_table<T>(&self, name: &str) -> Option<T> {
        self.problem(name, "has no rule in the table of keys", "this is a mistake of kube-kms; please report it");
        None
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, name: &str, default: bool) -> bool {
        match self.value(name) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.wrong(name, "true or false", other, "");
                default
            }
        }
    }

    /// A duration within the bounds of the table; its default when it is absent or was reported.
    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        let parse = |text: &str| humantime::parse_duration(text).ok();
        let table = self.in_table(name).and_then(|key| match key.takes {
            // A word such as `never` stands for the most.
            Takes::Duration { min, max } => Some((parse(min)?, parse(max)?, key.default.and_then(parse))),
            _ => None,
        });
        let Some((min, max, default)) = table else { return self.not_in_table(name) };
        let default = default.unwrap_or(max);
        match self.value(name) {
            None => {}
            Some(Value::String(text)) => match parse(text) {
                None => self.problem(name, "is not a duration", DURATION_HINT),
                Some(duration) if (min..=max).contains(&duration) => return Some(duration),
                Some(duration) => {
                    let [given, min, max] = [duration, min, max].map(humantime::format_duration);
                    self.problem(name, format!("{given} is out of bounds"), format!("from {min} to {max}"));
                }
            },
            Some(other) => self.wrong(name, "a duration", other, DURATION_HINT),
        }
        Some(default)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, name: &str, default: T, choices: &[(&str, T)]) -> T {
        self.choice_or(name, default, choices, None)
    }

    fn choice_or<T: Copy>(&self, name: &str, default: T, choices: &[(&str, T)], more: Option<&str>) -> T {
        let Some(value) = self.value(name) else { return default };
        let words = choices.iter().map(|(word, _)| *word);
        let listed = words.clone().chain(more).collect::<Vec<_>>().join(" or ");
        let Value::String(text) = value else {
            self.wrong(name, &listed, value, "");
            return default;
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| word == text) {
            return *choice;
        }
        let hint = nearest(text, words).map(|word| format!("did you mean `{word}`?")).unwrap_or_default();
        self.problem(name, format!("is not {listed}"), hint);
        default
    }

    /// One of a few words, or a duration within the bounds of the table.
    pub(super) fn choice_or_duration<T: Copy>(
        &self,
        name: &str,
        default: T,
        choices: &[(&str, T)],
        make: impl FnOnce(Duration) -> T,
    ) -> T {
        let is_duration = |text: &str| humantime::parse_duration(text).is_ok();
        match self.value(name).and_then(Value::as_str) {
            Some(text) if is_duration(text) => self.duration(name).map_or(default, make),
            _ => self.choice_or(name, default, choices, Some("a duration")),
        }
    }

    /// Whether the key is there and has this word.
    pub(super) fn is_word(&self, name: &str, word: &str) -> bool {
        self.value(name).and_then(Value::as_str) == Some(word)
    }

    /// Whether the key is there and has a number.
    pub(super) fn is_number(&self, name: &str) -> bool {
        self.value(name).is_some_and(Value::is_number)
    }

    /// Pairs of text.
    pub(super) fn pairs(&self, name: &str) -> BTreeMap<String, String> {
        let mut pairs = BTreeMap::new();
        match self.value(name) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                for (key, value) in map {
                    let at = || join(&self.at(name), shown(key));
                    match value {
                        Value::String(text) if text.is_empty() => self.problems.add(at(), "is empty", ""),
                        Value::String(text) => drop(pairs.insert(key.clone(), text.clone())),
                        other => {
                            let hint = "put it in quotes: it is compared letter by letter";
                            self.problems.add(at(), format!("expected text, found {}", kind(other)), hint);
                        }
                    }
                }
            }
            Some(other) => self.wrong(name, "pairs (key: text)", other, ""),
        }
        pairs
    }

    /// The elements of a list, each with its path.
    pub(super) fn list(&self, name: &str) -> Option<Vec<(String, &'a Value)>> {
        match self.value(name)? {
            Value::Array(items) => {
                Some(items.iter().enumerate().map(|(n, v)| (format!("{}[{n}]", self.at(name)), v)).collect())
            }
            other => {
                self.wrong(name, "a list", other, "");
                None
            }
        }
    }

    fn report_unknown(&self) {
        let known = key::children(&self.known_as);
        for name in self.map.into_iter().flat_map(Map::keys).filter(|n| !known.contains(&n.as_str())) {
            self.problems.add(self.at(shown(name)), "unknown key", unknown_hint(name, &known));
        }
    }
}

fn unknown_hint(name: &str, known: &[&'static str]) -> String {
    let lower = name.to_ascii_lowercase();
    if ["secret", "password", "token", "accesskey", "credential"].iter().any(|word| lower.contains(word)) {
        return "secrets never stand in this file; credentials come from the provider's own chain".to_owned();
    }
    if let Some(word) = nearest(name, known.iter().copied()) {
        return format!("did you mean `{word}`?");
    }
    match key::elsewhere(name).as_slice() {
        [] => format!("known here: {}", known.join(", ")),
        paths => format!("it belongs at {}", paths.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(" or ")),
    }
}

fn nearest<'w>(name: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // Bounded, because the comparison takes time in the product of the lengths.
    let name: String = name.chars().take(64).collect::<String>().to_ascii_lowercase();
    words
        .map(|word| (strsim::normalized_damerau_levenshtein(&name, &word.to_ascii_lowercase()), word))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What a value is, without showing it.
pub(super) const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a section",
    }
}
