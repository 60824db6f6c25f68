//! For tests: a strict reader of the OpenMetrics text format, and a snapshot with every field filled.
//!
//! Refuses whatever a scraper might read differently from us: a sample without HELP and TYPE before it, a family that is
//! torn apart or appears twice, a counter not called `_total`, a duplicate series, a bad name, a page without its end.
//! SPEC: OpenMetrics 1.0, "Text format".

use kube_kms_core::kek_ref::{KekKind, KekRef, KekVersion};
use kube_kms_core::key_id::KeyId;
use kube_kms_service::snapshot::Snapshot;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A coasting plugin that knows everything about itself.
pub(super) fn snapshot() -> Snapshot {
    let kek = KekRef::new(KekKind::AWS, "arn:aws:kms:eu-central-1:111122223333:key/1234").unwrap();
    let version = KekVersion { kek, version: "0f4b".to_owned() };
    Snapshot {
        state: "coasting",
        because: Some(kube_kms_core::fault::Reason::KmsUnreachable),
        is_ok: true,
        outage: Some(Duration::from_millis(90_500)),
        since: Some(Duration::from_millis(90_500)),
        key_id: Some(KeyId::derive(&version, 0)),
        kek: Some(version),
        recovery: vec![true, false],
        dek_age: Some(Duration::from_secs(3600)),
        dek_uses: Some(17),
        last_good_probe: Some(Duration::from_millis(95_250)),
        deletion: Some(Duration::from_secs(1_900_000_000)),
        keyring_entries: 3,
        keyring_capacity: 4096,
    }
}

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

#[derive(Debug)]
struct Kind {
    name: String,
    kind: String,
}

#[derive(Debug)]
pub(super) struct Page {
    kinds: Vec<Kind>,
    samples: Vec<Sample>,
}

impl Page {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("no # EOF at the end")?;
        let mut page = Self { kinds: Vec::new(), samples: Vec::new() };
        let mut help: Option<String> = None;
        let mut series = BTreeSet::new();
        for line in body.lines() {
            let bad = |what: &str| format!("{what}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, sentence) = rest.split_once(' ').ok_or_else(|| bad("no help"))?;
                if sentence.len() < 10 || !is_name(name) {
                    return Err(bad("help or name"));
                }
                help = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| bad("no type"))?;
                if help.take().as_deref() != Some(name) || page.kinds.iter().any(|k| k.name == name) {
                    return Err(bad("no help before it, or twice"));
                }
                page.kinds.push(Kind { name: name.to_owned(), kind: kind.to_owned() });
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let (name, unit) = rest.split_once(' ').ok_or_else(|| bad("no unit"))?;
                if page.kinds.last().is_none_or(|k| k.name != name) || !name.ends_with(&format!("_{unit}")) {
                    return Err(bad("unit"));
                }
            } else {
                let sample = parse_sample(line).ok_or_else(|| bad("sample"))?;
                let kind = page.kinds.last().ok_or_else(|| bad("no type before it"))?;
                if !suffixes(&kind.kind).iter().any(|suffix| sample.name == format!("{}{suffix}", kind.name)) {
                    return Err(bad("not of the family above it"));
                }
                if !series.insert((sample.name.clone(), sample.labels.clone())) {
                    return Err(bad("the same series twice"));
                }
                page.samples.push(sample);
            }
        }
        Ok(page)
    }

    pub(super) fn samples_of(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |s| s.name == name)
    }

    /// The name of every family as it stands in the documentation: `_total` and `_info` included.
    pub(super) fn documented_names(&self) -> BTreeSet<String> {
        self.kinds.iter().map(Kind::documented).collect()
    }

    /// The type of a family, by its documented name, and the labels of its samples.
    pub(super) fn kind_and_labels(&self, name: &str) -> (String, BTreeSet<String>) {
        let kind = self.kinds.iter().find(|k| k.documented() == name).unwrap();
        let of_family = |s: &&Sample| suffixes(&kind.kind).iter().any(|x| s.name == format!("{}{x}", kind.name));
        let samples: Vec<&Sample> = self.samples.iter().filter(of_family).collect();
        assert!(!samples.is_empty(), "{name} has no sample");
        let labels = samples.iter().flat_map(|s| s.labels.keys().cloned()).filter(|l| l != "le").collect();
        (kind.kind.clone(), labels)
    }
}

impl Kind {
    fn documented(&self) -> String {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        format!("{}{suffix}", self.name)
    }
}

/// Which samples differ, as `name{labels} before→after`; one that is missing counts as 0.
pub(super) fn changed(before: &Page, after: &Page) -> Vec<String> {
    let index = |page: &Page| -> BTreeMap<String, f64> {
        let key = |s: &Sample| {
            let labels: Vec<String> = s.labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
            format!("{}{{{}}}", s.name, labels.join(","))
        };
        page.samples.iter().map(|s| (key(s), s.value)).collect()
    };
    let (before, after) = (index(before), index(after));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |map: &BTreeMap<String, f64>, key: &String| map.get(key).copied().unwrap_or(0.0);
    keys.into_iter()
        .map(|key| (key, value(&before, key), value(&after, key)))
        .filter(|(_, before, after)| before.total_cmp(after).is_ne())
        .map(|(key, before, after)| format!("{key} {before}→{after}"))
        .collect()
}

fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total"],
        "gauge" => &[""],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_count", "_sum"],
        _ => &[],
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with("kube_kms_") && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn parse_sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            rest = rest.strip_prefix(',').unwrap_or(rest);
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = unescape(after)?;
            if !label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                || labels.insert(label.to_owned(), value).is_some()
            {
                return None;
            }
            rest = after;
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    is_name(name).then(|| Sample { name: name.to_owned(), labels, value })
}

/// Reads up to the closing quote; returns the value and what follows the quote.
fn unescape(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(i.checked_add(1)?..)?)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('"' | '\\') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

#[test]
fn the_reader_refuses_what_a_scraper_might_misread() {
    let head = "# HELP kube_kms_x Something.\n# TYPE kube_kms_x gauge\n";
    let good = format!("{head}kube_kms_x{{a=\"1\",b=\"q\\\"\\\\\\n\"}} 1\n# EOF\n");
    let page = Page::parse(&good).unwrap();
    assert_eq!(page.samples[0].labels["b"], "q\"\\\n");
    for bad in [
        format!("{head}kube_kms_x 1\n"),
        "kube_kms_x 1\n# EOF\n".to_owned(),
        "# TYPE kube_kms_x gauge\nkube_kms_x 1\n# EOF\n".to_owned(),
        format!("{head}kube_kms_y 1\n# EOF\n"),
        format!("{head}kube_kms_x 1\nkube_kms_x 2\n# EOF\n"),
        format!("{head}{head}# EOF\n"),
        format!("{head}kube_kms_x one\n# EOF\n"),
        format!("{head}kube_kms_x{{a=\"1}} 1\n# EOF\n"),
        format!("{head}kube_kms_x{{a=\"1\",a=\"2\"}} 1\n# EOF\n"),
        "# HELP kube_kms_x Something.\n# TYPE kube_kms_x counter\nkube_kms_x 1\n# EOF\n".to_owned(),
    ] {
        assert!(Page::parse(&bad).is_err(), "{bad}");
    }
}
