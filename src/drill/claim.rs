//! What a drill claims, and whether it held: the words that `rehearse` and a drill on a live cluster share.
//!
//! Guarantees: every claim of a step that was begun ends as held, not held or not tried, with the reason; what did not hold
//! once never becomes held. Refuses to know how a claim is tested.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// How a claim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was tested and is so.
    Held,
    /// It was tested and is not so.
    DidNotHold,
    /// It could not be tested; the detail says why.
    NotTried,
}

impl Verdict {
    /// The words, in reports for people and for programs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::DidNotHold => "did not hold",
            Self::NotTried => "not tried",
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let all = [Self::Held, Self::DidNotHold, Self::NotTried];
        let found = all.into_iter().find(|verdict| verdict.label() == text);
        found.ok_or_else(|| de::Error::custom(format!("{text:?} is no verdict")))
    }
}

/// One step of a drill: its claims have the numbers 1 to n in this order.
#[derive(Debug)]
pub struct Step {
    /// 1 to 10.
    pub number: u8,
    /// One word.
    pub name: &'static str,
    /// When it passes, in a sentence.
    pub passes_when: &'static str,
    /// What it claims.
    pub claims: &'static [&'static str],
}

/// One claim and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Step and place in it: `4.2`.
    pub number: String,
    /// What is claimed.
    pub claim: Cow<'static, str>,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen, with numbers; or why it was not tried.
    pub detail: String,
}

/// One step and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// 1 to 10.
    pub number: u8,
    /// One word.
    pub name: Cow<'static, str>,
    /// When it passes.
    pub passes_when: Cow<'static, str>,
    /// The worst of its claims; held when at least one was tried and all that were tried held.
    pub verdict: Verdict,
    /// How long it took.
    pub took_ms: u64,
    /// Its claims.
    pub claims: Vec<Claim>,
    /// What was measured, by name; times in milliseconds.
    pub numbers: BTreeMap<String, u64>,
}

/// The claims of one step while it runs.
#[derive(Debug)]
pub struct Sheet {
    step: &'static Step,
    entries: Vec<Option<(Verdict, String)>>,
    numbers: BTreeMap<String, u64>,
}

impl Sheet {
    /// Nothing is tried yet.
    #[must_use]
    pub fn new(step: &'static Step) -> Self {
        Self { step, entries: step.claims.iter().map(|_| None).collect(), numbers: BTreeMap::new() }
    }

    /// Claim `n` was tested: what was seen when it held, or what was seen instead.
    pub fn judge(&mut self, n: usize, outcome: Result<String, String>) {
        match outcome {
            Ok(seen) => self.set(n, Verdict::Held, seen),
            Err(seen) => self.set(n, Verdict::DidNotHold, seen),
        }
    }

    /// Claim `n` was tested, with the same words for both outcomes.
    pub fn judge_if(&mut self, n: usize, held: bool, seen: impl Into<String>) {
        self.set(n, if held { Verdict::Held } else { Verdict::DidNotHold }, seen.into());
    }

    /// Claim `n` cannot be tested here.
    pub fn not_tried(&mut self, n: usize, why: impl Into<String>) {
        self.set(n, Verdict::NotTried, why.into());
    }

    /// Whether a claim did not hold so far.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.entries.iter().flatten().any(|(verdict, _)| *verdict == Verdict::DidNotHold)
    }

    /// Something that was measured.
    pub fn number(&mut self, name: impl Into<String>, value: u64) {
        self.numbers.insert(name.into(), value);
    }

    /// A time that was measured, in milliseconds.
    pub fn time(&mut self, name: impl Into<String>, value: Duration) {
        self.number(name, millis(value));
    }

    fn set(&mut self, n: usize, verdict: Verdict, detail: String) {
        // SECURITY: a detail may quote what stands in etcd, and goes to a terminal.
        let detail = plain(&detail);
        let Some(entry) = n.checked_sub(1).and_then(|at| self.entries.get_mut(at)) else { return };
        // INVARIANT: a later success does not hide a failure (test `what_did_not_hold_never_holds_again`).
        if entry.as_ref().is_none_or(|(before, _)| *before != Verdict::DidNotHold) {
            *entry = Some((verdict, detail));
        }
    }

    /// The end of the step; `because` is why what is left was not tried.
    #[must_use]
    pub fn close(self, because: &str, took: Duration) -> StepReport {
        let Step { number, name, passes_when, claims } = *self.step;
        let claims: Vec<Claim> = (1_usize..)
            .zip(claims.iter().zip(self.entries))
            .map(|(n, (claim, entry))| {
                let (verdict, detail) = entry.unwrap_or_else(|| (Verdict::NotTried, because.to_owned()));
                Claim { number: format!("{number}.{n}"), claim: Cow::Borrowed(claim), verdict, detail }
            })
            .collect();
        let has = |verdict| claims.iter().any(|claim| claim.verdict == verdict);
        let verdict = match (has(Verdict::DidNotHold), has(Verdict::Held)) {
            (true, _) => Verdict::DidNotHold,
            (false, true) => Verdict::Held,
            (false, false) => Verdict::NotTried,
        };
        StepReport {
            number,
            name: name.into(),
            passes_when: passes_when.into(),
            verdict,
            took_ms: millis(took),
            claims,
            numbers: self.numbers,
        }
    }
}

/// Without what a terminal would obey.
#[must_use]
pub fn plain(text: &str) -> String {
    let escaped = |c: char| match c {
        '\n' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// Whole milliseconds.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    static STEP: Step = Step { number: 4, name: "converge", passes_when: "x", claims: &["a", "b", "c"] };

    #[test]
    fn what_did_not_hold_never_holds_again() {
        let mut sheet = Sheet::new(&STEP);
        sheet.judge(2, Err("no".to_owned()));
        sheet.judge(2, Ok("yes".to_owned()));
        sheet.not_tried(2, "hm");
        sheet.judge_if(1, true, "yes");
        let report = sheet.close("the node is gone", Duration::from_millis(5));
        let seen: Vec<_> = report.claims.iter().map(|c| (c.number.as_str(), c.verdict, c.detail.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("4.1", Verdict::Held, "yes"),
                ("4.2", Verdict::DidNotHold, "no"),
                ("4.3", Verdict::NotTried, "the node is gone")
            ]
        );
        assert_eq!((report.verdict, report.took_ms), (Verdict::DidNotHold, 5));
    }

    #[test]
    fn a_detail_has_nothing_that_a_terminal_obeys() {
        let mut sheet = Sheet::new(&STEP);
        sheet.judge_if(1, true, "k\u{1b}[2J");
        assert_eq!(sheet.close("x", Duration::ZERO).claims[0].detail, "k\\u{1b}[2J");
    }

    #[test]
    fn a_step_of_which_nothing_was_tried_did_not_pass() {
        assert_eq!(Sheet::new(&STEP).close("x", Duration::ZERO).verdict, Verdict::NotTried);
        let mut sheet = Sheet::new(&STEP);
        sheet.judge_if(3, true, "yes");
        assert_eq!(sheet.close("x", Duration::ZERO).verdict, Verdict::Held);
    }
}
