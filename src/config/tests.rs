//! The configuration as a whole: the reference, the examples and the walker held to the same table.

use super::*;
use kube_kms_core::health::{OnDenied, OnUnusable, Policy};
use kube_kms_service::settings::Settings;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

const AWS: &str = include_str!("../../deploy/config/aws.yaml");
const LOCAL: &str = include_str!("../../deploy/config/local.yaml");
const REFERENCE: &str = include_str!("../../docs/configuration.md");
const MINIMAL: &str = "kek: {local: {keyring: /k}}\n";

fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The minimal configuration and one more top-level key.
fn with(line: &str) -> Result<Config, ConfigError> {
    parse(&format!("{MINIMAL}{line}\n"))
}

/// What is wrong with the minimal configuration and this line.
fn fault(line: &str) -> String {
    with(line).map(|c| format!("taken: {c:?}")).unwrap_or_else(|e| e.to_string())
}

/// A configuration with a value at a path; the KEK that the path does not touch is left out.
fn at(path: &str, value: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts.as_slice() {
        ["kek", "aws", "key"] => format!("kek: {{aws: {{key: {value}}}}}"),
        ["kek", "aws", name] => format!("kek: {{aws: {{key: alias/a, {name}: {value}}}}}"),
        ["kek", "local", "keyring"] => format!("kek: {{local: {{keyring: {value}}}}}"),
        ["kek", "local", name] => format!("kek: {{local: {{keyring: /k, {name}: {value}}}}}"),
        [section, name] => format!("{MINIMAL}{section}: {{{name}: {value}}}"),
        [name] => format!("{MINIMAL}{name}: {value}"),
        _ => panic!("{path}"),
    }
}

#[test]
fn the_defaults_are_these() {
    let expected = Config {
        listen: Listen { socket: "/run/kube-kms/kms.sock".to_owned(), mode: 0o600, allow_uids: None },
        kek: KekConfig::Local(LocalKekConfig { keyring: PathBuf::from("/k"), context: BTreeMap::new() }),
        read: Vec::new(),
        settings: Settings {
            epoch: 0,
            dek_max_age: Duration::from_secs(24 * 3600),
            dek_max_uses: 1 << 24,
            cache_capacity: 4096,
            cache_ttl: Duration::from_secs(3600),
            probe_interval: Duration::from_secs(60),
            probe_timeout: Duration::from_secs(2),
            observations: 2,
            policy: Policy {
                grace: Duration::from_secs(3600),
                on_denied: OnDenied::Coast,
                on_unusable: OnUnusable::Coast,
                stop_after: None,
                confirmations: 2,
            },
        },
        recovery: RecoveryConfig::default(),
        http: Some("127.0.0.1:9464".parse().unwrap()),
        otlp: None,
        log: Log { format: LogFormat::Text, level: LogLevel::Info },
        state_dir: PathBuf::from("/var/lib/kube-kms"),
        harden: Harden { landlock: Enforce::Auto, seccomp: Enforce::Auto },
    };
    assert_eq!(parse(MINIMAL).unwrap(), expected);
}

#[test]
fn every_default_in_the_table_is_the_default() {
    for key in KEYS {
        let Some(default) = key.default else { continue };
        let without = if key.path.starts_with("kek.aws") { "kek: {aws: {key: alias/a}}" } else { MINIMAL };
        assert_eq!(parse(&at(key.path, default)).unwrap(), parse(without).unwrap(), "{}", key.path);
    }
}

#[test]
fn every_key_of_the_table_is_read() {
    for key in KEYS {
        // No key takes a list of lists; whoever reads it says so at its path.
        let error = parse(&at(key.path, "[[1]]")).unwrap_err();
        let at_path = error.problems().iter().any(|p| p.path.starts_with(key.path) && p.what != "unknown key");
        assert!(at_path, "{}: {error}", key.path);
    }
}

#[test]
fn every_value_arrives_in_its_own_field() {
    let text = r#"
listen: {socket: "@abstract", mode: "0660", allowUids: [0, 1000]}
kek:
  aws:
    key: arn:aws:kms:eu-central-1:123456789012:alias/prod
    region: eu-central-1
    endpoint: http://[::1]:5000
    context: {cluster: prod}
read:
- local: {keyring: /old, context: {a: b}}
- aws: {key: alias/old}
recovery: {keks: [{local: {keyring: /recovery}}], breakGlass: true}
epoch: 18446744073709551615
dek: {maxAge: 7d, maxUses: 11}
cache: {capacity: 17, ttl: 90s}
probe: {interval: 5m, timeout: 500ms}
rotation: {observations: 3}
revocation: {confirmations: 4}
outage: {grace: 15m, onDenied: revoke, onUnusable: revoke, stopAfter: 2h}
http: {listen: none}
log: {format: json, level: trace}
stateDir: /state
harden: {landlock: none, seccomp: required}
"#;
    let context = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
    let expected = Config {
        listen: Listen { socket: "@abstract".to_owned(), mode: 0o660, allow_uids: Some(vec![0, 1000]) },
        kek: KekConfig::Aws(AwsKekConfig {
            key: "arn:aws:kms:eu-central-1:123456789012:alias/prod".to_owned(),
            region: Some("eu-central-1".to_owned()),
            endpoint: Some("http://[::1]:5000".to_owned()),
            context: context("cluster", "prod"),
        }),
        read: vec![
            KekConfig::Local(LocalKekConfig { keyring: PathBuf::from("/old"), context: context("a", "b") }),
            KekConfig::Aws(AwsKekConfig {
                key: "alias/old".to_owned(),
                region: None,
                endpoint: None,
                context: BTreeMap::new(),
            }),
        ],
        settings: Settings {
            epoch: u64::MAX,
            dek_max_age: Duration::from_secs(7 * 24 * 3600),
            dek_max_uses: 11,
            cache_capacity: 17,
            cache_ttl: Duration::from_secs(90),
            probe_interval: Duration::from_secs(300),
            probe_timeout: Duration::from_millis(500),
            observations: 3,
            policy: Policy {
                grace: Duration::from_secs(900),
                on_denied: OnDenied::Revoke,
                on_unusable: OnUnusable::Revoke,
                stop_after: Some(Duration::from_secs(7200)),
                confirmations: 4,
            },
        },
        recovery: RecoveryConfig {
            keks: vec![KekConfig::Local(LocalKekConfig {
                keyring: PathBuf::from("/recovery"),
                context: BTreeMap::new(),
            })],
            break_glass: true,
        },
        http: None,
        otlp: None,
        log: Log { format: LogFormat::Json, level: LogLevel::Trace },
        state_dir: PathBuf::from("/state"),
        harden: Harden { landlock: Enforce::None, seccomp: Enforce::Required },
    };
    let config = parse(text).unwrap();
    assert_eq!(config, expected);
    assert_eq!(config.kek.kind().as_str(), "aws");
    assert_eq!(config.kek.context().pairs().len(), 2);
    assert_eq!(
        config.to_string(),
        "socket @abstract, kek aws arn:aws:kms:eu-central-1:123456789012:alias/prod in eu-central-1 at \
         http://[::1]:5000, 2 KEKs to read, epoch 18446744073709551615, http none"
    );
}

#[test]
fn three_mistakes_are_three_problems() {
    let text = "kek: {aws: {key: alias/a, regoin: x}}\ncache: {ttl: 90}\nprobe: {interval: 2h}\n";
    let expected = "kek.aws.regoin: unknown key; did you mean `region`?
cache.ttl: expected a duration, found a number; a number with its unit, such as 500ms, 90s, 15m, 24h or 7d
probe.interval: 2h is out of bounds; from 1s to 1h";
    assert_eq!(refused(text), expected);
    assert_eq!(parse(text).unwrap_err().problems().len(), 3);
}

#[test]
fn an_unknown_key_is_answered_with_where_it_belongs() {
    for (line, expected) in [
        ("dek: {maxage: 1h}", "dek.maxage: unknown key; did you mean `maxAge`?"),
        ("dek: {ttl: 1h}", "dek.ttl: unknown key; it belongs at `cache.ttl`"),
        ("keyring: /k", "keyring: unknown key; it belongs at `kek.local.keyring`"),
        ("region: x", "region: unknown key; it belongs at `kek.aws.region`"),
        ("chache: {}", "chache: unknown key; did you mean `cache`?"),
        ("log: {x-y-z: 1}", "log.x-y-z: unknown key; known here: format, level"),
        ("\"a b\": 1", "(a key not shown): unknown key; known here: "),
        ("read: [{vault: {}}]", "read[0].vault: unknown key; known here: aws, local\nread[0]: names no KEK; "),
    ] {
        assert!(fault(line).starts_with(expected), "{line}: {}", fault(line));
    }
    assert!(refused("kek: {aws: {key: alias/a, secretKey: x}}").contains("secrets never stand in this file"));
}

#[test]
fn exactly_one_kek_is_asked_for() {
    assert!(refused("epoch: 1").starts_with("kek: is missing; the KEK that writes"));
    assert_eq!(refused("kek: {}"), "kek: names no KEK; give exactly one of `aws` and `local`");
    assert_eq!(
        refused("kek: {aws: {key: nonsense}, local: {}}"),
        "kek: both `aws` and `local`; give exactly one of them
kek.aws.key: does not name a key; one of: a key id (uuid or mrk-…, lower case), a key ARN, alias/NAME, an alias ARN
kek.local.keyring: is missing; the file that `kube-kms keyring init` made"
    );
    assert!(fault("read: [{aws: {key: alias/aws/s3}}]").starts_with("read[0].aws.key: is a key that AWS manages"));
    assert!(fault("read: [7]").starts_with("read[0]: expected a section (key: value), found a number"));
}

#[test]
fn wrong_types_say_what_is_expected_and_what_was_found() {
    for (line, expected) in [
        ("listen: [1]", "listen: expected a section (key: value), found a list"),
        ("listen: {socket: 7}", "listen.socket: expected text, found a number; put it in quotes"),
        ("listen: {socket: ''}", "listen.socket: is empty"),
        (
            "listen: {mode: 600}",
            "listen.mode: expected octal digits in quotes, found a number; 600 is not 0600; write \"0600\"",
        ),
        ("listen: {mode:}", "listen.mode: expected text, found nothing; remove the key to have its default"),
        ("listen: {allowUids: [root]}", "listen.allowUids[0]: expected a uid, found text; a number, no name"),
        ("listen: {allowUids: []}", "listen.allowUids: is empty: nobody could connect; "),
        ("listen: {allowUids: [4294967295]}", "listen.allowUids[0]: is not a uid; 0 to 4294967294"),
        ("epoch: '1'", "epoch: expected a whole number, found text; take away the quotes and any unit"),
        ("epoch: -1", "epoch: -1 is not a whole number from 0 to 18446744073709551615"),
        ("epoch: 1.5", "epoch: 1.5 is not a whole number from "),
        ("dek: {maxAge: 1 fortnight}", "dek.maxAge: is not a duration; a number with its unit, such as "),
        ("recovery: {breakGlass: 1}", "recovery.breakGlass: expected true or false, found a number"),
        ("recovery: {keks: [{}]}", "recovery.keks[0]: names no KEK; "),
        ("otlp: {endpoint: 'collector:4317'}", "otlp.endpoint: is not a URL of http or https; such as "),
        ("outage: {onDenied: coats}", "outage.onDenied: is not coast or revoke or a duration; did you mean `coast`?"),
        ("outage: {onDenied: true}", "outage.onDenied: expected coast or revoke or a duration, found true or false"),
        ("outage: {onDenied: 24}", "outage.onDenied: expected coast or revoke or a duration, found a number"),
        ("outage: {stopAfter: forever}", "outage.stopAfter: is not a duration; "),
        ("http: {listen: 'localhost:9464'}", "http.listen: is not an IP address and port; "),
        ("log: {level: verbose}", "log.level: is not error or warn or info or debug or trace"),
        ("stateDir: state", "stateDir: is not an absolute path; begin it with `/`"),
        ("read: {}", "read: expected a list, found a section"),
    ] {
        assert!(fault(line).starts_with(expected), "{line}: {}", fault(line));
    }
    assert_eq!(refused("- kek"), "expected sections (key: value), found a list");
    assert_eq!(refused("kek"), "expected sections (key: value), found text");
}

#[test]
fn a_mode_has_read_and_write_bits_and_the_owner_both() {
    for mode in ["'600'", "'0600'", "'0660'", "'0666'", "'0622'"] {
        assert!(with(&format!("listen: {{mode: {mode}}}")).is_ok(), "{mode}");
    }
    for (mode, expected) in [
        ("'0700'", "has other bits than read and write"),
        ("'1600'", "has other bits than read and write"),
        ("'0400'", "takes read or write from the owner"),
        ("'0066'", "takes read or write from the owner"),
        ("'0680'", "is not three or four octal digits"),
        ("'00600'", "is not three or four octal digits"),
        ("'+600'", "is not three or four octal digits"),
        ("rw", "is not three or four octal digits"),
        ("0600", "a number that begins with 0 and is not in quotes; some YAML readers take it as octal"),
        ("0o600", "expected octal digits in quotes, found a number"),
    ] {
        let error = fault(&format!("listen: {{mode: {mode}}}"));
        assert!(error.starts_with(&format!("listen.mode: {expected}")), "{mode}: {error}");
    }
}

#[test]
fn an_ambiguous_number_does_not_hide_the_other_mistakes() {
    let error = refused("kek: {}\nlisten: {mode: 0600}\nepoch: 010\n");
    let paths: Vec<&str> = error.lines().filter_map(|l| l.split(':').next()).collect();
    assert_eq!(paths, ["epoch", "listen.mode", "kek"], "{error}");
}

#[test]
fn every_bound_is_taken_and_what_is_beyond_is_refused() {
    for (path, taken, beyond) in [
        ("epoch", ["0", "18446744073709551615"], ["-1", "18446744073709551616"]),
        ("dek.maxAge", ["1m", "365d"], ["59s", "366d"]),
        ("dek.maxUses", ["1", "4294967296"], ["0", "4294967297"]),
        ("cache.capacity", ["16", "65536"], ["15", "65537"]),
        ("cache.ttl", ["1s", "24h"], ["999ms", "86401s"]),
        ("probe.interval", ["3s", "1h"], ["999ms", "3601s"]),
        ("probe.timeout", ["100ms", "10s"], ["99ms", "10001ms"]),
        ("rotation.observations", ["1", "10"], ["0", "11"]),
        ("revocation.confirmations", ["1", "10"], ["0", "11"]),
        ("outage.grace", ["0s", "365d"], ["366d", "1000000000000000000000d"]),
        ("outage.stopAfter", ["1h", "365d"], ["59m", "366d"]),
        ("outage.onDenied", ["1m", "365d"], ["59s", "366d"]),
    ] {
        for value in taken {
            assert!(parse(&at(path, value)).is_ok(), "{path} {value}: {:?}", parse(&at(path, value)));
        }
        for value in beyond {
            let error = parse(&at(path, value)).unwrap_err();
            assert_eq!(error.problems().first().unwrap().path, path, "{value}");
        }
    }
}

#[test]
fn a_denial_coasts_revokes_or_does_the_one_for_so_long_and_then_the_other() {
    for (text, expected) in [
        ("coast", OnDenied::Coast),
        ("revoke", OnDenied::Revoke),
        ("24h", OnDenied::CoastFor(Duration::from_secs(86_400))),
    ] {
        let config = with(&format!("outage: {{onDenied: {text}}}")).unwrap();
        assert_eq!(config.settings.policy.on_denied, expected, "{text}");
    }
}

#[test]
fn rules_that_span_keys_are_reported_like_the_rest() {
    assert!(with("probe: {interval: 1s, timeout: 500ms}").is_ok());
    assert!(fault("probe: {interval: 2s, timeout: 2s}").starts_with("probe.timeout: is not less than probe.interval"));
    assert!(with("outage: {grace: 2h, stopAfter: 2h}").is_ok());
    assert!(fault("outage: {grace: 2h, stopAfter: 1h}").starts_with("outage.stopAfter: is less than outage.grace"));
    let arn = "arn:aws:kms:eu-central-1:123456789012:alias/a";
    assert!(parse(&format!("kek: {{aws: {{key: '{arn}', region: eu-central-1}}}}")).is_ok());
    let error = refused(&format!("kek: {{aws: {{key: '{arn}', region: eu-west-1}}}}"));
    assert!(error.starts_with("kek.aws.region: is not the region in the ARN of `key`"), "{error}");
}

#[test]
fn a_context_leaves_our_own_pair_and_those_of_aws_alone() {
    for (context, expected) in [
        ("{kube-kms: v2}", "kek.aws.context.kube-kms: is set by kube-kms itself"),
        ("{'aws:x': y}", "kek.aws.context.aws:x: keys that begin with `aws:` are AWS's own"),
        ("{a: ''}", "kek.aws.context.a: is empty"),
        ("{a: 1}", "kek.aws.context.a: expected text, found a number; put it in quotes"),
        ("{'': x}", "kek.aws.context: an empty key"),
        ("[a]", "kek.aws.context: expected pairs (key: text), found a list"),
    ] {
        let error = refused(&at("kek.aws.context", context));
        assert!(error.starts_with(expected), "{context}: {error}");
    }
    // `{"a":"…","kube-kms":"v1",}`: two braces, and six characters more than key and value per pair.
    let longest = 8192 - 1 - 2 - (6 + 1) - (6 + 10);
    assert!(parse(&at("kek.aws.context", &format!("{{a: {}}}", "x".repeat(longest)))).is_ok());
    let error = refused(&at("kek.aws.context", &format!("{{a: {}}}", "x".repeat(longest + 1))));
    assert_eq!(error, "kek.aws.context: is 8192 characters with ours; less than 8192");
}

#[test]
fn the_same_key_twice_is_refused() {
    assert_eq!(refused("epoch: 1\nepoch: 2\n"), "line 2, column 1: duplicate key `epoch`; each key may stand once");
}

#[test]
fn no_value_is_ever_printed() {
    // In the place of every key, as text, in a list, as a pair and under an unknown key.
    for key in KEYS {
        for value in ["CANARY", "[CANARY]", "{b: CANARY}", "{b: [CANARY]}", "[[CANARY]]", "[{aws: {x: CANARY}}]"] {
            let Err(error) = parse(&at(key.path, value)) else { continue };
            assert!(!error.to_string().contains("CANARY"), "{error}");
            assert!(!format!("{error:?}").contains("CANARY"), "{error:?}");
        }
    }
    for text in [
        "kek: {aws: {key: x, secretKey: CANARY}}",
        "kek: {aws: {key: alias/a, endpoint: 'http://u:CANARY@localhost'}}",
        "password: CANARY",
        "CANARY with blanks: 1",
        "- CANARY",
        "CANARY",
        "kek: CANARY: x",
        "kek: !CANARY {}",
        "kek: *CANARY",
        "kek: &CANARY [1",
        "%CANARY\n---\n",
    ] {
        assert!(!refused(text).contains("CANARY"), "{}", refused(text));
    }
}

#[test]
fn a_file_is_named_in_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.yaml");
    let error = load(&missing).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot be read: ", missing.display())), "{error}");
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    assert!(load(Path::new(&format!("{root}deploy/config/aws.yaml"))).is_ok());
    let path = dir.path().join("config.yaml");
    let mut file = File::options().write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"epoch: x\nlog: 1\n").unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
    assert!(error.lines().all(|l| l.starts_with(&format!("{}: ", path.display()))), "{error}");
}

#[test]
fn a_file_that_is_not_text_or_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let mut file = File::options().write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"kek: \xff").unwrap();
    assert!(load(&path).unwrap_err().to_string().ends_with(": is not UTF-8 text (byte 5)"));
    file.set_len(1024 * 1024 + 1).unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("is larger than 1 MiB"));
}

#[test]
fn a_restart_is_asked_for_exactly_where_the_table_says_so() {
    let old = parse(MINIMAL).unwrap();
    assert!(old.restart_only_changes(&old).is_empty());
    let text = r#"
listen: {socket: /other, mode: "0660", allowUids: [1]}
kek: {aws: {key: alias/a, region: x-1, endpoint: "https://x", context: {a: b}}}
read: [{aws: {key: alias/b}}]
epoch: 1
dek: {maxAge: 1h, maxUses: 1}
cache: {capacity: 16, ttl: 1s}
probe: {interval: 1s, timeout: 100ms}
rotation: {observations: 1}
revocation: {confirmations: 1}
outage: {grace: 1s, onDenied: revoke, onUnusable: revoke, stopAfter: 2s}
http: {listen: none}
otlp: {endpoint: 'http://c:4317'}
log: {format: json, level: trace}
stateDir: /other
harden: {landlock: none, seccomp: none}
"#;
    let of_table: Vec<&str> = KEYS.iter().filter(|k| k.change == Change::Restart).map(|k| k.path).collect();
    assert_eq!(old.restart_only_changes(&parse(text).unwrap()), of_table);
}

/// Without notes a key is only named: each section and each key that stands by itself has a paragraph.
#[test]
fn every_section_has_a_note_in_the_reference() {
    let notes: Vec<&str> =
        REFERENCE.split("## Notes").nth(1).unwrap().lines().filter(|l| l.starts_with("**")).collect();
    for key in KEYS {
        let top = key.path.split('.').next().unwrap();
        assert!(notes.iter().any(|n| n.split("**").nth(1).unwrap().contains(&format!("`{top}`"))), "no note on {top}");
    }
}

/// The other direction of `every_key_of_the_table_is_read`: what the sources read stands in the table.
#[test]
fn a_key_that_is_not_in_the_table_is_refused() {
    for key in KEYS {
        let unknown = format!("{}Q", key.path);
        let error = parse(&at(&unknown, "1")).unwrap_err();
        assert!(error.problems().iter().any(|p| p.what == "unknown key" && p.path == unknown), "{unknown}: {error}");
    }
}

#[test]
fn every_word_of_a_choice_is_taken() {
    for key in KEYS {
        let Takes::Choice(words) = key.takes else { continue };
        for word in words {
            assert!(parse(&at(key.path, word)).is_ok(), "{} {word}", key.path);
        }
        let listed: Vec<_> = refused(&at(key.path, "xyz")).split('`').map(str::to_owned).collect();
        assert!(words.iter().all(|w| listed.iter().any(|l| l.contains(w))), "{}: {listed:?}", key.path);
    }
}

#[test]
fn the_examples_parse_and_hold_the_defaults() {
    for (text, kind) in [(AWS, "aws"), (LOCAL, "local")] {
        let config = parse(text).unwrap();
        assert_eq!(config.kek.kind().as_str(), kind);
        assert_eq!(config.settings, parse(MINIMAL).unwrap().settings);
        for key in KEYS.iter().filter(|k| !k.path.starts_with("kek.") || k.path.starts_with(&format!("kek.{kind}."))) {
            let last = key.path.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("{last}:")), "deploy/config/{kind}.yaml lacks {}", key.path);
        }
    }
}

proptest! {
    #[test]
    fn parse_never_panics_on_any_text(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn parse_never_panics_on_yaml_like_text(text in "[a-z0-9:{}\\[\\],'\"&*!|>%@#\\- \n\t]{0,120}") {
        let _ = parse(&text);
    }

    #[test]
    fn parse_never_panics_on_a_mutated_example(cuts in prop::collection::vec((any::<prop::sample::Index>(), ".{0,3}"), 1..6)) {
        let mut chars: Vec<char> = AWS.chars().collect();
        for (index, with) in cuts {
            let at = index.index(chars.len());
            chars.splice(at..=at, with.chars());
        }
        let text: String = chars.into_iter().collect();
        if let Err(error) = parse(&text) {
            prop_assert!(!error.problems().is_empty());
        }
    }
}
