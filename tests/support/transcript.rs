//! One run of the binary, in a form that can be compared.

use crate::support::site::Site;
use std::process::Output;

/// A run: the exit status, and what it printed, normalised.
#[derive(Debug)]
pub struct Transcript {
    pub status: i32,
    pub out: String,
    pub err: String,
    raw_out: String,
}

/// Runs one command on a site.
pub fn run(site: &Site, arguments: &[&str]) -> Transcript {
    let transcript = Transcript::of(site, &site.command(arguments));
    transcript.assert_shape(arguments);
    transcript
}

impl Transcript {
    pub fn of(site: &Site, output: &Output) -> Self {
        let raw_out = String::from_utf8(output.stdout.clone()).unwrap();
        Self {
            status: output.status.code().expect("it was ended by a signal"),
            out: normal(site, &raw_out),
            err: normal(site, &without_log(&String::from_utf8(output.stderr.clone()).unwrap())),
            raw_out,
        }
    }

    /// What holds for every command.
    fn assert_shape(&self, arguments: &[&str]) {
        for text in [&self.out, &self.err] {
            for bad in ["panicked at", "RUST_BACKTRACE", "unwrap()", "thread 'main'"] {
                assert!(!text.contains(bad), "{arguments:?}: {text}");
            }
        }
        let from_clap = self.status == 2 && !self.err.contains("hint: ");
        match self.status {
            0 | 6 => assert_eq!(self.err, "", "{arguments:?}"),
            _ if from_clap => assert!(
                self.err.contains("Usage:") || self.err.contains("For more information, try '--help'."),
                "{arguments:?}: {}",
                self.err
            ),
            _ => {
                let kinds: Vec<&str> = self.err.lines().map(|line| line.split(": ").next().unwrap()).collect();
                let causes = kinds.len().saturating_sub(2);
                let expected = [vec!["error"], vec!["cause"; causes], vec!["hint"]].concat();
                assert!(causes > 0 && kinds == expected, "{arguments:?}:\n{}", self.err);
                assert!(
                    self.err.lines().all(|l| l.split_once(": ").is_some_and(|(_, t)| !t.is_empty())),
                    "{}",
                    self.err
                );
                assert_eq!(self.out, "", "{arguments:?}: a failed command printed a result");
            }
        }
    }

    /// The exit status and stdout, with nothing on stderr.
    #[track_caller]
    pub fn printed(&self, expected: &str) -> &Self {
        assert_eq!((self.status, self.out.as_str()), (0, expected), "stderr: {}", self.err);
        self
    }

    /// The exit status and stderr.
    #[track_caller]
    pub fn failed(&self, status: i32, expected: &str) -> &Self {
        assert_eq!((self.status, self.err.as_str()), (status, expected), "stdout: {}", self.out);
        self
    }

    /// The exit status and the beginning of stderr, where the rest is the system's or a library's.
    #[track_caller]
    pub fn failed_with(&self, status: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.status, status, "{}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in:\n{}", self.err);
        }
        self
    }

    /// Stdout as JSON, not normalised.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.raw_out).unwrap_or_else(|e| panic!("{e}: {}", self.raw_out))
    }
}

/// What is no line of the log: those begin with the time.
fn without_log(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.starts_with(|c: char| c.is_ascii_digit())).collect()
}

/// Directories, uuids, key_ids, hashes, times and durations by their names.
pub fn normal(site: &Site, text: &str) -> String {
    let text = text.replace(site.dir().to_str().unwrap(), "DIR");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        if let Some((name, len)) = variable(rest, out.chars().next_back()) {
            out.push_str(name);
            rest = &rest[len..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// What differs from run to run, if the text begins with it: its name and its length.
fn variable(text: &str, before: Option<char>) -> Option<(&'static str, usize)> {
    const SHAPES: [(&str, &str); 4] = [
        ("KEY-ID", "k1-hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"),
        ("UUID", "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh"),
        ("TIME", "dddd-dd-ddTdd:dd:ddZ"),
        ("HASH", "hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"),
    ];
    if before.is_some_and(|c| c.is_ascii_alphanumeric()) && !text.starts_with(' ') {
        return None;
    }
    let fits = |shape: &str| {
        text.len() >= shape.len()
            && shape.bytes().zip(text.bytes()).all(|(s, t)| match s {
                b'h' => t.is_ascii_digit() || (b'a'..=b'f').contains(&t),
                b'd' => t.is_ascii_digit(),
                other => other == t,
            })
    };
    if let Some((name, shape)) = SHAPES.iter().find(|(_, shape)| fits(shape)) {
        return Some((name, shape.len()));
    }
    // A duration, with the blanks that align it.
    let digits = text.trim_start_matches(' ').trim_start_matches(|c: char| c.is_ascii_digit());
    let len = text.len() - digits.len();
    let is_number = text[..len].bytes().any(|b| b.is_ascii_digit());
    let unit = ["ms", "µs"].iter().any(|unit| digits.strip_prefix(' ').is_some_and(|d| d.starts_with(unit)));
    (is_number && unit).then_some((if text.starts_with(' ') { " N" } else { "N" }, len))
}
