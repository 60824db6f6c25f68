//! A report for people: as text for a terminal, as Markdown for a ticket.

use crate::claim::{Claim, StepReport, Verdict};
use crate::report::Report;
use std::fmt::Write as _;

/// How many changes of Status are shown; all are in the JSON.
const SHOWN: usize = 60;

/// `3.2 s`.
#[must_use]
pub fn seconds(millis: u64) -> String {
    format!("{:.1} s", std::time::Duration::from_millis(millis).as_secs_f64())
}

/// One line for one step.
#[must_use]
pub fn step_line(step: &StepReport) -> String {
    let count = |verdict| step.claims.iter().filter(|claim| claim.verdict == verdict).count();
    let mut parts = Vec::new();
    for verdict in [Verdict::Held, Verdict::DidNotHold, Verdict::NotTried] {
        if count(verdict) > 0 {
            parts.push(format!("{} {}", count(verdict), verdict.label()));
        }
    }
    let word = match step.verdict {
        Verdict::Held => "passed",
        Verdict::DidNotHold => "FAILED",
        Verdict::NotTried => "not tried",
    };
    format!("{:>2}/10 {:<10} {word:<9} {:>7}  {}", step.number, step.name, seconds(step.took_ms), parts.join(", "))
}

fn word(claim: &Claim) -> &'static str {
    match claim.verdict {
        Verdict::DidNotHold => "DID NOT HOLD",
        other => other.label(),
    }
}

fn summary(report: &Report) -> String {
    let totals = report.totals;
    format!(
        "{}: {} claims held, {} did not hold, {} not tried; {}",
        if report.passed { "passed" } else { "FAILED" },
        totals.held,
        totals.did_not_hold,
        totals.not_tried,
        seconds(report.took_ms)
    )
}

/// For a terminal. Writing to a String cannot fail.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut out = match report.drill {
        "run" => format!(
            "drill on a cluster, {}, {} objects of its own, begun {}\n",
            report.kek, report.objects, report.began
        ),
        _ => format!("rehearsal on a {} KEK, {} objects, begun {}\n", report.kek, report.objects, report.began),
    };
    for step in &report.steps {
        let _ = write!(out, "\n{}\n      {}\n", step_line(step), step.passes_when);
        for claim in &step.claims {
            let _ = writeln!(out, "  {:<5} {:<12} {}", claim.number, word(claim), claim.claim);
            if !claim.detail.is_empty() {
                let _ = writeln!(out, "{:21}{}", "", claim.detail);
            }
        }
        let numbers: Vec<String> = step.numbers.iter().map(|(name, value)| format!("{name} {value}")).collect();
        if !numbers.is_empty() {
            let _ = writeln!(out, "        numbers      {}", numbers.join(", "));
        }
    }
    out.push_str("\nkey_ids and health of the plugins, in ms since the beginning\n");
    for seen in report.timeline.iter().take(SHOWN) {
        let id = seen.key_id.as_deref().unwrap_or("-");
        let _ = writeln!(out, "  {:>7}  node {}  {id:<36} {}", seen.at_ms, seen.node, seen.health);
    }
    if report.timeline.len() > SHOWN {
        let _ = writeln!(out, "  and {} more, in --output json", report.timeline.len().saturating_sub(SHOWN));
    }
    if !report.settings.is_empty() {
        out.push_str("\nsettings of the sandbox, and what they mean for yours\n");
    }
    for setting in &report.settings {
        let _ = writeln!(out, "  {:<22} {:<16} {}", setting.key, setting.value, setting.meaning);
    }
    if let Some(sandbox) = &report.sandbox {
        let _ = writeln!(out, "\nthe sandbox is kept: {sandbox}");
    }
    let _ = writeln!(out, "\n{}", summary(report));
    for (title, lines) in [("It proves:", &report.proves), ("It does not prove:", &report.does_not_prove)] {
        let _ = writeln!(out, "{title}");
        for line in lines {
            let _ = writeln!(out, "  - {line}");
        }
    }
    out
}

/// What a cell may hold.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// For a ticket.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut out = format!(
        "# kmsctl drill {}\n\n{}. KEK: {}, {} objects, kube-kms {}, begun {}.\n",
        report.drill,
        summary(report),
        report.kek,
        report.objects,
        report.version,
        report.began
    );
    out.push_str("\n| # | step | result | time |\n|---|---|---|---|\n");
    for step in &report.steps {
        let result = match step.verdict {
            Verdict::Held => "passed",
            Verdict::DidNotHold => "**failed**",
            Verdict::NotTried => "not tried",
        };
        let _ = writeln!(out, "| {} | {} | {result} | {} |", step.number, step.name, seconds(step.took_ms));
    }
    out.push_str("\n## Claims\n\n| # | claim | verdict | seen |\n|---|---|---|---|\n");
    for claim in report.steps.iter().flat_map(|step| &step.claims) {
        let verdict = match claim.verdict {
            Verdict::DidNotHold => "**did not hold**",
            other => other.label(),
        };
        let (text, seen) = (cell(&claim.claim), cell(&claim.detail));
        let _ = writeln!(out, "| {} | {text} | {verdict} | {seen} |", claim.number);
    }
    out.push_str("\n## Timeline of Status\n\n| ms | node | key_id | health |\n|---|---|---|---|\n");
    for seen in report.timeline.iter().take(SHOWN) {
        let id = seen.key_id.as_deref().unwrap_or("-");
        let _ = writeln!(out, "| {} | {} | {} | {} |", seen.at_ms, seen.node, cell(id), cell(&seen.health));
    }
    if !report.settings.is_empty() {
        out.push_str("\n## Settings of the sandbox\n\n| key | value | meaning for yours |\n|---|---|---|\n");
    }
    for setting in &report.settings {
        let _ = writeln!(out, "| `{}` | {} | {} |", setting.key, setting.value, cell(&setting.meaning));
    }
    for (title, lines) in [("It proves", &report.proves), ("It does not prove", &report.does_not_prove)] {
        let _ = writeln!(out, "\n## {title}\n");
        for line in lines {
            let _ = writeln!(out, "- {line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::{Sheet, Step};
    use crate::report::Totals;
    use crate::tempo::Tempo;
    use std::time::Duration;

    static STEP: Step = Step { number: 4, name: "converge", passes_when: "it moves", claims: &["a|b", "c", "d"] };

    fn report() -> Report {
        let mut sheet = Sheet::new(&STEP);
        sheet.judge_if(1, true, "seen\nthere");
        sheet.judge_if(2, false, "no");
        sheet.number("n", 7);
        let steps = vec![sheet.close("gone", Duration::from_millis(3210))];
        Report {
            drill: "rehearse",
            version: "0",
            began: "then".to_owned(),
            took_ms: 61_000,
            kek: "local",
            objects: 20,
            passed: false,
            totals: Totals::of(&steps),
            old_key_id: None,
            new_key_id: None,
            settings: Tempo::LOCAL.settings(),
            steps,
            timeline: Vec::new(),
            sandbox: Some("/kept".to_owned()),
            proves: vec!["this"],
            does_not_prove: vec!["that"],
        }
    }

    #[test]
    fn text_has_every_claim_its_verdict_and_the_limits_last() {
        let text = text(&report());
        for part in [
            " 4/10 converge   FAILED      3.2 s  1 held, 1 did not hold, 1 not tried",
            "4.1   held",
            "4.2   DID NOT HOLD",
            "4.3   not tried",
            "gone",
            "n 7",
            "outage.grace",
            "the sandbox is kept: /kept",
            "FAILED: 1 claims held, 1 did not hold, 1 not tried; 61.0 s",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(text.ends_with("It does not prove:\n  - that\n"), "{text}");
    }

    #[test]
    fn markdown_keeps_its_tables_whole() {
        let text = markdown(&report());
        assert!(text.contains(r"| 4.1 | a\|b | held | seen there |"), "{text}");
        assert!(
            text.contains("| 4.2 | c | **did not hold** | no |")
                && text.contains("| 4 | converge | **failed** | 3.2 s |")
        );
        let columns = |line: &str| line.replace(r"\|", "").matches('|').count();
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| 4.")).collect();
        assert!(rows.len() == 3 && rows.iter().all(|row| columns(row) == 5), "{rows:?}");
    }
}
