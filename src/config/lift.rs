//! Lifts the tree into the model: every key, every bound, every rule that spans keys.
//!
//! A section that has a mistake gets its default and the walk goes on, so that all mistakes are found in one run; the
//! result is used only when there were none. The rules are those of docs/configuration.md.

use crate::kek;
use crate::model::{Config, Enforce, Harden, KekConfig, Listen, Log, LogFormat, LogLevel, RecoveryConfig};
use crate::otlp::endpoint_fault;
use crate::problem::{Problem, Problems};
use crate::section::{Section, kind};
use kube_kms_core::annotation::RECOVERY_MAX;
use kube_kms_core::health::{OnDenied, OnUnusable, Policy};
use kube_kms_service::settings::Settings;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

const LIST_MAX: usize = 64;
const MODE_DEFAULT: u32 = 0o600;
const HTTP_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Lifts all of it.
///
/// # Errors
/// Every problem, in the order of the reference.
pub(super) fn lift(tree: &Value) -> Result<Config, Vec<Problem>> {
    let problems = Problems::default();
    let config = config(tree, &problems);
    match (config, problems.into_inner()) {
        (Some(config), problems) if problems.is_empty() => Ok(config),
        (_, problems) => Err(problems),
    }
}

fn config(tree: &Value, problems: &Problems) -> Option<Config> {
    if !tree.is_object() {
        problems.add("", format!("expected sections (key: value), found {}", kind(tree)), "");
        return None;
    }
    let root = Section::open(String::new(), "", tree, problems);
    let listen = listen(&root.section("listen"));
    let kek = if root.has("kek") {
        kek::lift(&root.section("kek"))
    } else {
        root.problem("kek", "is missing", "the KEK that writes: give exactly one of `kek.aws` and `kek.local`");
        None
    };
    let read = read(&root);
    let recovery = recovery(&root.section("recovery"), kek.as_ref());
    let settings = settings(&root);
    let http = http(&root.section("http"));
    let otlp = otlp(&root.section("otlp"));
    let log = log(&root.section("log"));
    let state_dir = match root.text("stateDir") {
        Some(path) => kek::absolute(&root, "stateDir", path),
        None => Some(PathBuf::from("/var/lib/kube-kms")),
    };
    let harden = harden(&root.section("harden"));
    Some(Config {
        listen,
        kek: kek?,
        read,
        recovery,
        settings: settings?,
        http,
        otlp,
        log,
        state_dir: state_dir?,
        harden,
    })
}

fn listen(section: &Section<'_>) -> Listen {
    let socket = section.text("socket").unwrap_or("/run/kube-kms/kms.sock").to_owned();
    let mode = if section.is_number("mode") {
        section.problem("mode", "expected octal digits in quotes, found a number", "600 is not 0600; write \"0600\"");
        MODE_DEFAULT
    } else {
        section.text_or_empty("mode").map_or(MODE_DEFAULT, |digits| mode(section, digits))
    };
    Listen { socket, mode, allow_uids: allow_uids(section) }
}

fn mode(section: &Section<'_>, digits: &str) -> u32 {
    let is_octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
    let Some(mode) = mode else {
        section.problem("mode", "is not three or four octal digits", "such as \"0600\"");
        return MODE_DEFAULT;
    };
    if mode & !0o666 != 0 {
        section.problem("mode", "has other bits than read and write", "a socket needs no others; such as \"0660\"");
    }
    if mode & 0o600 != 0o600 {
        section.problem("mode", "takes read or write from the owner", "such as \"0600\"");
    }
    mode
}

fn allow_uids(section: &Section<'_>) -> Option<Vec<u32>> {
    let items = section.list("allowUids")?;
    if items.is_empty() || items.len() > LIST_MAX {
        let what = if items.is_empty() { "is empty: nobody could connect" } else { "is too long" };
        section.problem("allowUids", what, format!("1 to {LIST_MAX} uids, or leave it out for root and our own"));
    }
    let mut uids = Vec::new();
    for (path, item) in items {
        // The highest uid means "no uid" to the kernel.
        match item.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|uid| *uid != u32::MAX) {
            Some(uid) => uids.push(uid),
            None if item.is_number() => section.problems().add(path, "is not a uid", "0 to 4294967294"),
            None => section.problems().add(path, format!("expected a uid, found {}", kind(item)), "a number, no name"),
        }
    }
    Some(uids)
}

fn read(root: &Section<'_>) -> Vec<KekConfig> {
    let items = root.list("read").unwrap_or_default();
    if items.len() > LIST_MAX {
        root.problem("read", "is too long", format!("up to {LIST_MAX} KEKs"));
    }
    items
        .into_iter()
        .take(LIST_MAX)
        .filter_map(|(path, item)| kek::lift(&Section::open(path, "kek", item, root.problems())))
        .collect()
}

fn recovery(section: &Section<'_>, primary: Option<&KekConfig>) -> RecoveryConfig {
    let items = section.list("keks").unwrap_or_default();
    if items.len() > RECOVERY_MAX {
        section.problem("keks", "is too long", format!("up to {RECOVERY_MAX} KEKs"));
    }
    let mut keks: Vec<KekConfig> = Vec::new();
    for (path, item) in items.into_iter().take(RECOVERY_MAX) {
        let Some(kek) = kek::lift(&Section::open(path.clone(), "kek", item, section.problems())) else { continue };
        if primary == Some(&kek) || keks.contains(&kek) {
            section.problems().add(
                path,
                "is a KEK that is here already",
                "a recovery KEK must not be lost with another",
            );
        }
        keks.push(kek);
    }
    RecoveryConfig { keks, break_glass: section.flag("breakGlass", false) }
}

fn otlp(section: &Section<'_>) -> Option<String> {
    let endpoint = section.text_or_empty("endpoint").filter(|endpoint| !endpoint.is_empty())?;
    if let Some((what, hint)) = endpoint_fault(endpoint) {
        section.problem("endpoint", what, hint);
    }
    Some(endpoint.to_owned())
}

fn settings(root: &Section<'_>) -> Option<Settings> {
    let epoch = root.count("epoch");
    let [dek, cache, probe, rotation, revocation] =
        ["dek", "cache", "probe", "rotation", "revocation"].map(|name| root.section(name));
    let (dek_max_age, dek_max_uses) = (dek.duration("maxAge"), dek.count("maxUses"));
    let (cache_capacity, cache_ttl) = (cache.count("capacity"), cache.duration("ttl"));
    let (probe_interval, probe_timeout) = (probe.duration("interval"), probe.duration("timeout"));
    if probe_timeout >= probe_interval {
        probe.problem("timeout", "is not less than probe.interval", "a probe has to end before the next one begins");
    }
    let observations = rotation.count("observations");
    let confirmations = revocation.count("confirmations");
    let policy = policy(&root.section("outage"), confirmations);
    Some(Settings {
        epoch: epoch?,
        dek_max_age: dek_max_age?,
        dek_max_uses: dek_max_uses?,
        cache_capacity: cache_capacity?,
        cache_ttl: cache_ttl?,
        probe_interval: probe_interval?,
        probe_timeout: probe_timeout?,
        observations: observations?,
        policy: policy?,
    })
}

fn policy(outage: &Section<'_>, confirmations: Option<u32>) -> Option<Policy> {
    let grace = outage.duration("grace");
    let words = [("coast", OnDenied::Coast), ("revoke", OnDenied::Revoke)];
    let on_denied = outage.choice_or_duration("onDenied", OnDenied::Coast, &words, OnDenied::CoastFor);
    let on_unusable =
        outage.choice("onUnusable", OnUnusable::Coast, &[("coast", OnUnusable::Coast), ("revoke", OnUnusable::Revoke)]);
    let stop_after = if !outage.has("stopAfter") || outage.is_word("stopAfter", "never") {
        None
    } else {
        Some(outage.duration("stopAfter")?)
    };
    if stop_after.is_some() && stop_after < grace {
        outage.problem("stopAfter", "is less than outage.grace", "writes cannot stop while the outage is still hidden");
    }
    Some(Policy { grace: grace?, on_denied, on_unusable, stop_after, confirmations: confirmations? })
}

fn http(section: &Section<'_>) -> Option<SocketAddr> {
    if section.is_word("listen", "none") {
        return None;
    }
    let Some(address) = section.text("listen") else { return Some(HTTP_DEFAULT) };
    let parsed = address.parse().ok();
    if parsed.is_none() {
        section.problem("listen", "is not an IP address and port", "such as 127.0.0.1:9464 or \"[::1]:9464\", or none");
    }
    parsed
}

fn log(section: &Section<'_>) -> Log {
    let format = section.choice("format", LogFormat::Text, &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    let level = section.choice("level", LogLevel::Info, &levels.map(|level| (level.as_str(), level)));
    Log { format, level }
}

fn harden(section: &Section<'_>) -> Harden {
    let words = [("auto", Enforce::Auto), ("none", Enforce::None), ("required", Enforce::Required)];
    Harden {
        landlock: section.choice("landlock", Enforce::Auto, &words),
        seccomp: section.choice("seccomp", Enforce::Auto, &words),
    }
}
