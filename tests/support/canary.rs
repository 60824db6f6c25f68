//! Recognisable secrets, and the search for them in everything that a process lets out.
//!
//! Guarantees: a secret is found raw, in hex of both cases, in base64 of both alphabets whatever stands before it, as a
//! list of numbers and as escaped text; also when only its beginning, middle or end is there. Refuses to know where to look.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Bytes of a secret that are searched for at a time: fewer would be found by chance.
const WINDOW: usize = 12;

/// A secret and the name to report it by.
pub struct Canary {
    name: String,
    needles: Vec<(&'static str, Vec<u8>)>,
}

impl Canary {
    /// A secret of at least 12 bytes.
    pub fn new(name: &str, secret: &[u8]) -> Self {
        assert!(secret.len() >= WINDOW, "too short to be told from chance");
        let middle = (secret.len() - WINDOW) / 2;
        let mut needles = Vec::new();
        for at in [0, middle, secret.len() - WINDOW] {
            let window = &secret[at..at + WINDOW];
            needles.push(("raw", window.to_vec()));
            needles.push(("hex", hex::encode(window).into_bytes()));
            needles.push(("HEX", hex::encode_upper(window).into_bytes()));
            let list = format!("{window:?}");
            needles.push(("numbers", list.as_bytes()[1..list.len() - 1].to_vec()));
            needles.push(("escaped", window.escape_ascii().to_string().into_bytes()));
            for before in 0..3 {
                let text = [vec![0; before], window.to_vec()].concat();
                // Characters that hold bits of the window only.
                let (from, to) = ((before * 8).div_ceil(6), text.len() * 8 / 6);
                needles.push(("base64", STANDARD_NO_PAD.encode(&text).as_bytes()[from..to].to_vec()));
                needles.push(("base64url", URL_SAFE_NO_PAD.encode(&text).as_bytes()[from..to].to_vec()));
            }
        }
        Self { name: name.to_owned(), needles }
    }

    /// How the secret shows in this text, if it does.
    pub fn shows_in(&self, haystack: &[u8]) -> Option<&'static str> {
        self.needles.iter().find(|(_, needle)| contains(haystack, needle)).map(|(how, _)| *how)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Fails when any of them shows in `haystack`.
pub fn assert_none(canaries: &[Canary], place: &str, haystack: &[u8]) {
    for canary in canaries {
        if let Some(how) = canary.shows_in(haystack) {
            let text = String::from_utf8_lossy(haystack);
            let tail: String = text.chars().take(4000).collect();
            panic!("{} shows in {place}, in {how}; {place} begins:\n{tail}", canary.name);
        }
    }
}

#[test]
fn a_canary_is_found_however_it_is_spelled() {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let secret: Vec<u8> = (0xc0..0xe0).collect();
    let canary = Canary::new("test", &secret);
    for before in 0..5 {
        let mut text = vec![b'x'; before];
        text.extend(&secret);
        text.extend(b"yz");
        for (how, spelled) in [
            ("raw", text.clone()),
            ("hex", hex::encode(&text).into_bytes()),
            ("HEX", hex::encode_upper(&text).into_bytes()),
            ("numbers", format!("{text:?}").into_bytes()),
            ("escaped", text.escape_ascii().to_string().into_bytes()),
            ("base64", STANDARD.encode(&text).into_bytes()),
            ("base64url", URL_SAFE.encode(&text).into_bytes()),
            ("half", hex::encode(&secret[10..30]).into_bytes()),
        ] {
            assert!(canary.shows_in(&spelled).is_some(), "{how}, after {before} bytes");
        }
    }
    assert_eq!(canary.shows_in(hex::encode(&secret[1..8]).as_bytes()), None);
}
