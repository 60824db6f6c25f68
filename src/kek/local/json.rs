//! The keyring as JSON, format version 1: read strictly, written by hand into memory that is wiped.
//!
//! Guarantees: an unknown field, a value twice, a uuid or time in another spelling is an error; what goes wrong is told
//! by line, column and kind, never by content; no copy of key material is left behind by parsing or writing.

use super::keyring::{Keyring, MATERIAL_LEN, Material, State, VERSIONS_MAX, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::error::Category;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;
use uuid::Uuid;
use zeroize::Zeroizing;

const FORMAT: &str = "kube-kms-keyring";
const VERSION: u64 = 1;
/// Characters of 32 bytes in base64, with the padding.
const MATERIAL_TEXT_LEN: usize = 44;
/// Bytes that one version takes at most, and everything around the versions.
const RENDERED_MAX: usize = 256;

/// Why the content of a file is not a keyring.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContentProblem {
    /// No bytes.
    #[error("it is empty")]
    Empty,
    /// It ends in the middle.
    #[error("it ends too early, at line {line}, column {column}")]
    Truncated {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// Not JSON.
    #[error("it is not JSON, at line {line}, column {column}")]
    Syntax {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// JSON with a field too many, too few, twice, or of the wrong kind.
    #[error("it has a field that is unknown, missing, repeated or of the wrong kind, at line {line}, column {column}")]
    Shape {
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// A backslash, which no keyring has.
    #[error("it has a backslash, which no keyring has")]
    Escape,
    /// JSON of something else.
    #[error("it is not a kube-kms keyring")]
    NotAKeyring,
    /// A format version of the future.
    #[error("it was made by a newer kube-kms: it has format version {version}, and this one reads version {VERSION}")]
    Newer {
        /// Its format version.
        version: u64,
    },
    /// A uuid in another spelling than lower-case with hyphens.
    #[error("its {0} is not a uuid in lower-case with hyphens")]
    IdInvalid(&'static str),
    /// The id of the n-th version is not one.
    #[error("the id of its version number {0} is not a uuid in lower-case with hyphens")]
    VersionIdInvalid(usize),
    /// Not an RFC 3339 time in UTC.
    #[error("version {0} was not created at a time in RFC 3339, UTC")]
    CreatedInvalid(Uuid),
    /// Not 32 bytes in base64.
    #[error("the material of version {0} is not 32 bytes in base64")]
    MaterialInvalid(Uuid),
    /// More versions than any keyring has.
    #[error("it has more than {VERSIONS_MAX} versions")]
    TooManyVersions,
    /// One id for two versions.
    #[error("it has version {0} twice")]
    IdTwice(Uuid),
    /// One key under two ids.
    #[error("its versions {0} and {1} have the same material")]
    MaterialTwice(Uuid, Uuid),
    /// The current version is not among the versions.
    #[error("its current version {0} is missing")]
    CurrentMissing(Uuid),
    /// The current version is retired.
    #[error("its current version {0} is retired")]
    CurrentRetired(Uuid),
}

impl ContentProblem {
    pub(super) fn hint(&self, path: &Path) -> String {
        match self {
            Self::Newer { version } => {
                format!("use the kube-kms that made it, or any that reads keyring version {version}; do not edit it")
            }
            Self::NotAKeyring => {
                format!("{} belongs to something else; name the keyring file, or make one with `init`", path.display())
            }
            _ => format!(
                "kube-kms never writes such a file: restore {} from a backup or a replica; do not repair it by hand, \
                 and keep the damaged one until everything opens again",
                path.display()
            ),
        }
    }

    /// SECURITY: the position and the kind of the error, and none of its text: serde quotes what it found.
    fn of(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        match error.classify() {
            Category::Eof => Self::Truncated { line, column },
            Category::Data => Self::Shape { line, column },
            Category::Syntax | Category::Io => Self::Syntax { line, column },
        }
    }
}

/// Read first and leniently, so that a keyring of the future is told apart from a damaged one.
#[derive(Deserialize)]
struct Header<'a> {
    format: &'a str,
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole<'a> {
    #[serde(rename = "format")]
    _format: &'a str,
    #[serde(rename = "version")]
    _version: u64,
    id: &'a str,
    current: &'a str,
    #[serde(borrow)]
    keys: Vec<Key<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key<'a> {
    id: &'a str,
    created: &'a str,
    state: State,
    material: &'a str,
}

/// Reads a keyring.
pub(super) fn parse(content: &[u8]) -> Result<Keyring, ContentProblem> {
    if content.is_empty() {
        return Err(ContentProblem::Empty);
    }
    // SECURITY: serde_json copies a string with an escape into a buffer of its own. The allocator of the binary wipes that one
    // when it is freed; the material is then in memory once more than it has to be, so it is refused.
    if content.contains(&b'\\') {
        return Err(ContentProblem::Escape);
    }
    let of = |error: serde_json::Error| ContentProblem::of(&error);
    let header: Header<'_> = serde_json::from_slice(content).map_err(of)?;
    if header.format != FORMAT || header.version < VERSION {
        return Err(ContentProblem::NotAKeyring);
    }
    if header.version > VERSION {
        return Err(ContentProblem::Newer { version: header.version });
    }
    let whole: Whole<'_> = serde_json::from_slice(content).map_err(of)?;
    let id = uuid(whole.id).ok_or(ContentProblem::IdInvalid("id"))?;
    let current = uuid(whole.current).ok_or(ContentProblem::IdInvalid("current version"))?;
    let versions = whole.keys.iter().zip(1..).map(|(key, number)| version(key, number)).collect::<Result<_, _>>()?;
    Keyring::assemble(id, current, versions)
}

fn version(key: &Key<'_>, number: usize) -> Result<Version, ContentProblem> {
    let id = uuid(key.id).ok_or(ContentProblem::VersionIdInvalid(number))?;
    let created = humantime::parse_rfc3339(key.created).map_err(|_| ContentProblem::CreatedInvalid(id))?;
    let material = Material::build(|bytes| decode(key.material, bytes).ok_or(ContentProblem::MaterialInvalid(id)))?;
    Ok(Version { id, created, state: key.state, material })
}

/// One spelling only, so that nothing that is compared or hashed has two.
fn uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|uuid| uuid.hyphenated().to_string() == text)
}

fn decode(text: &str, bytes: &mut [u8; MATERIAL_LEN]) -> Option<()> {
    if text.len() != MATERIAL_TEXT_LEN {
        return None;
    }
    // A byte more than needed: the decoder reckons with 44 characters that have no padding.
    let mut decoded = Zeroizing::new([0_u8; MATERIAL_LEN + 1]);
    let len = STANDARD.decode_slice(text, decoded.as_mut_slice()).ok()?;
    bytes.copy_from_slice(decoded.get(..len).filter(|d| d.len() == MATERIAL_LEN)?);
    Some(())
}

/// Whether [`render`] can write that time.
pub(super) fn is_writable_time(time: SystemTime) -> bool {
    const YEAR_10000: u64 = 253_402_300_800;
    time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since.as_secs() < YEAR_10000)
}

/// Writes a keyring, one version a line; `None` when something has no spelling, which [`is_writable_time`] prevents.
pub(super) fn render(keyring: &Keyring) -> Option<Zeroizing<Vec<u8>>> {
    let capacity = keyring.versions().len().saturating_add(1).saturating_mul(RENDERED_MAX);
    // SECURITY: as large as it will get: a buffer that grows leaves copies of the keys behind.
    let mut out = Zeroizing::new(Vec::with_capacity(capacity));
    let (id, current) = (keyring.id(), keyring.current_id());
    write!(out, r#"{{"format":"{FORMAT}","version":{VERSION},"id":"{id}","current":"{current}","keys":["#).ok()?;
    for (index, version) in keyring.versions().iter().enumerate() {
        let separator = if index == 0 { "\n" } else { ",\n" };
        let (id, state) = (version.id, version.state.as_str());
        let created = humantime::format_rfc3339_seconds(version.created);
        let mut material = Zeroizing::new([0_u8; MATERIAL_TEXT_LEN]);
        STANDARD.encode_slice(version.material.expose_bytes(), material.as_mut_slice()).ok()?;
        write!(out, r#"{separator}{{"id":"{id}","created":"{created}","state":"{state}","material":""#).ok()?;
        out.extend_from_slice(material.as_slice());
        out.extend_from_slice(br#""}"#);
    }
    out.extend_from_slice(b"\n]}\n");
    debug_assert!(out.len() <= capacity, "the buffer never grew");
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{
        Counting, KEYRING, MATERIAL, OTHER, OTHER_MATERIAL, VERSION, assert_no_canary, file_of, known_file, moment,
    };
    use proptest::prelude::*;

    fn refusal(text: &str) -> ContentProblem {
        let problem = parse(text.as_bytes()).err().unwrap_or_else(|| panic!("taken: {text}"));
        let shown = format!("{problem} {problem:?} {}", problem.hint(Path::new("/k")));
        assert_no_canary(&shown);
        assert!(!shown.contains("canary"), "{shown}");
        problem
    }

    #[test]
    fn the_known_file_is_read_and_written_as_it_is() {
        let keyring = parse(known_file().as_bytes()).ok().unwrap();
        assert_eq!(String::from_utf8(render(&keyring).unwrap().to_vec()).unwrap(), known_file());
        assert!(keyring.versions()[0].material.expose_bytes().iter().copied().eq(0x80..0xa0));
        assert_eq!(keyring.id().to_string(), KEYRING);
        assert_eq!(keyring.current_id().to_string(), VERSION);
    }

    #[test]
    fn a_file_that_ends_anywhere_in_the_middle_is_truncated() {
        let whole = known_file();
        let whole = whole.trim_end();
        assert_eq!(refusal(""), ContentProblem::Empty);
        for len in 1..whole.len() {
            let problem = refusal(&whole[..len]);
            assert!(matches!(problem, ContentProblem::Truncated { .. }), "{len}: {problem}");
        }
    }

    #[test]
    fn what_is_not_a_keyring_is_told_apart_from_a_newer_one() {
        let newer = known_file().replace(r#""version":1"#, r#""version":2,"canary":[]"#);
        assert_eq!(refusal(&newer), ContentProblem::Newer { version: 2 });
        assert!(ContentProblem::Newer { version: 2 }.hint(Path::new("/k")).contains("version 2"));
        assert_eq!(refusal(&known_file().replace(r#""version":1"#, r#""version":0"#)), ContentProblem::NotAKeyring);
        assert_eq!(refusal(&known_file().replace("kube-kms-keyring", "canary")), ContentProblem::NotAKeyring);
        assert!(matches!(refusal("canary"), ContentProblem::Syntax { line: 1, .. }));
        assert!(matches!(refusal(&(known_file() + "x")), ContentProblem::Syntax { .. }));
        assert!(matches!(refusal(&"\0".repeat(500)), ContentProblem::Syntax { .. }));
        assert_eq!(refusal(&known_file().replace("Oj5C", "Oj5C\\u0041")), ContentProblem::Escape);
    }

    #[test]
    fn a_field_too_many_too_few_twice_or_of_another_kind_is_a_shape() {
        let file = known_file();
        for (from, to) in [
            (r#","keys""#, r#","canary":"x","keys""#),
            (r#","material""#, r#","canary":1,"material""#),
            (r#""created":"2026-01-02T03:04:05Z","#, ""),
            (r#""state":"enabled""#, r#""state":"canary""#),
            (r#""state":"enabled""#, r#""state":"enabled","state":"enabled""#),
            (r#""version":1"#, r#""version":"canary""#),
            (r#""version":1"#, r#""version":-1"#),
            (r#""current":"#, r#""id":"canary","current":"#),
            // The material where something else belongs: serde would quote it.
            (r#""state":"enabled""#, &format!(r#""state":"{MATERIAL}""#)),
            (r#","keys""#, &format!(r#","{MATERIAL}":1,"keys""#)),
            (r#""version":1"#, &format!(r#""version":"{MATERIAL}""#)),
        ] {
            assert!(file.contains(from), "{from}");
            let problem = refusal(&file.replacen(from, to, 1));
            assert!(matches!(problem, ContentProblem::Shape { .. }), "{from} → {to}: {problem}");
        }
    }

    #[test]
    fn a_value_in_another_spelling_is_refused() {
        let (file, id) = (known_file(), VERSION.parse().unwrap());
        for spelling in
            [KEYRING.to_uppercase(), KEYRING.replace('-', ""), format!("{{{KEYRING}}}"), "canary".to_owned()]
        {
            assert_eq!(refusal(&file.replace(KEYRING, &spelling)), ContentProblem::IdInvalid("id"));
        }
        let upper = VERSION.to_uppercase();
        assert_eq!(refusal(&file.replacen(VERSION, &upper, 1)), ContentProblem::IdInvalid("current version"));
        assert_eq!(refusal(&file.replace(OTHER, "canary")), ContentProblem::VersionIdInvalid(2));
        for time in ["2026-01-02 03:04:05", "2026-01-02T03:04:05+01:00", "canary", "", "1969-01-02T03:04:05Z"] {
            assert_eq!(
                refusal(&file.replace("2026-01-02T03:04:05Z", time)),
                ContentProblem::CreatedInvalid(id),
                "{time}"
            );
        }
        let material = [
            &MATERIAL[..43],
            &MATERIAL[..40],
            "",
            "canary",
            &MATERIAL.replace('=', "A"),
            &MATERIAL.replace("8=", "9="),
        ];
        for material in material {
            assert_eq!(refusal(&file.replace(MATERIAL, material)), ContentProblem::MaterialInvalid(id), "{material}");
        }
    }

    #[test]
    fn versions_that_do_not_belong_together_are_refused() {
        let (file, id, other) = (known_file(), VERSION.parse().unwrap(), OTHER.parse().unwrap());
        assert_eq!(refusal(&file.replace(OTHER, VERSION)), ContentProblem::IdTwice(id));
        assert_eq!(refusal(&file.replace(OTHER_MATERIAL, MATERIAL)), ContentProblem::MaterialTwice(id, other));
        let missing = file.replacen(VERSION, KEYRING, 1);
        assert_eq!(refusal(&missing), ContentProblem::CurrentMissing(KEYRING.parse().unwrap()));
        assert_eq!(refusal(&file.replacen("enabled", "retired", 1)), ContentProblem::CurrentRetired(id));
        let none = file.split_once("[").unwrap().0.to_owned() + "[]}";
        assert_eq!(refusal(&none), ContentProblem::CurrentMissing(id));
    }

    #[test]
    fn the_largest_keyring_is_read_and_one_more_is_not() {
        let full = parse(file_of(VERSIONS_MAX).as_bytes()).ok().unwrap();
        assert_eq!(full.versions().len(), VERSIONS_MAX);
        assert!((render(&full).unwrap().len() as u64) < crate::file::SIZE_MAX / 4);
        assert_eq!(refusal(&file_of(VERSIONS_MAX + 1)), ContentProblem::TooManyVersions);
    }

    #[test]
    fn only_a_time_that_can_be_read_back_is_writable() {
        for (seconds, writable) in [(0, true), (253_402_300_799, true), (253_402_300_800, false)] {
            assert_eq!(is_writable_time(moment(seconds)), writable, "{seconds}");
        }
        assert!(!is_writable_time(SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            first in any::<u8>(),
            // Less than 256 / 32 versions, so that the counting entropy gives none twice.
            extra in proptest::collection::vec((0..253_402_300_800_u64, any::<bool>()), 0..7),
        ) {
            let entropy = Counting::from(first);
            let mut keyring = Keyring::new(Version::generate(moment(0), &entropy).unwrap());
            for (seconds, retired) in extra {
                let version = Version::generate(moment(seconds), &entropy).unwrap();
                let id = version.id;
                keyring.add(version).unwrap();
                if retired {
                    keyring.retire(id).unwrap();
                }
            }
            let text = render(&keyring).unwrap();
            let back = parse(&text).ok().unwrap();
            prop_assert_eq!((back.id(), back.current_id()), (keyring.id(), keyring.current_id()));
            prop_assert_eq!(back.versions().len(), keyring.versions().len());
            for (a, b) in back.versions().iter().zip(keyring.versions()) {
                prop_assert_eq!((a.id, a.created, a.state), (b.id, b.created, b.state));
                prop_assert_eq!(a.material.expose_bytes(), b.material.expose_bytes());
            }
        }

        #[test]
        fn no_bytes_at_all_make_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..300), at in 0..500_usize) {
            let _ = parse(&noise);
            let mut file = known_file().into_bytes();
            for (byte, noise) in file.iter_mut().skip(at).zip(&noise) {
                *byte = *noise;
            }
            if let Err(problem) = parse(&file) {
                assert_no_canary(&format!("{problem} {problem:?}"));
            }
        }
    }
}
