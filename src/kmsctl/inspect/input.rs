//! A stored value from a file or from stdin, as it is, in base64 or in hex.
//!
//! Guarantees: what is detected is detected by what the bytes would be: only text that decodes to something that
//! kube-apiserver stores is taken as encoded. Refuses to know fields.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use kube_kms_cli::exit::{Exit, Failure};
use kube_kms_etcd::value::{Form, Value};
use std::io::Read;
use std::path::Path;

/// Bytes that are read at most: far over etcd's largest value, in hex.
const INPUT_MAX: u64 = 64 << 20;

/// How a value is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Encoding {
    /// Find out.
    #[default]
    Auto,
    /// The bytes themselves.
    Raw,
    /// Base64.
    Base64,
    /// Hexadecimal.
    Hex,
}

/// The value; from stdin when there is no file.
pub(super) fn read(file: Option<&Path>, encoding: Encoding) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let name = file.map_or_else(|| "stdin".to_owned(), |path| path.display().to_string());
    let read = match file {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(INPUT_MAX).read_to_end(&mut bytes)),
        None => std::io::stdin().lock().take(INPUT_MAX).read_to_end(&mut bytes),
    };
    read.map_err(|e| {
        Failure::new(Exit::Failed, format!("{name} cannot be read"))
            .because(&e)
            .hint("is the path right, and may this user read it?")
    })?;
    if bytes.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("{name} is empty"))
            .cause("a stored value has at least one byte")
            .hint("etcdctl get --print-value-only KEY prints a value; it prints nothing for a key that is not there"));
    }
    decode(bytes, encoding).ok_or_else(|| {
        Failure::new(Exit::Failed, format!("{name} is not what --encoding says"))
            .cause(format!("it is not {encoding:?}").to_lowercase())
            .hint("--encoding auto finds out")
    })
}

fn decode(bytes: Vec<u8>, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Raw => Some(bytes),
        Encoding::Base64 => base64(&bytes),
        Encoding::Hex => hex::decode(compact(&bytes)).ok(),
        Encoding::Auto => {
            let encoded = [hex::decode(compact(&bytes)).ok(), base64(&bytes)];
            let found = encoded.into_iter().flatten().find(|decoded| is_known(decoded));
            Some(found.unwrap_or_else(|| without_newline(bytes)))
        }
    }
}

/// etcdctl prints a newline after a value. One that was not in etcd makes a message that is none.
fn without_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    if let (Value::Damaged(_), Some(shorter)) = (Value::parse(&bytes), bytes.strip_suffix(b"\n"))
        && matches!(Value::parse(shorter), Value::KmsV2(_))
    {
        bytes.truncate(bytes.len().saturating_sub(1));
    }
    bytes
}

fn is_known(bytes: &[u8]) -> bool {
    !matches!(Value::parse(bytes), Value::Other(Form::Unknown | Form::Empty))
}

fn compact(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect()
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(compact(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_v2_api::stored;
    use kms_v2_api::v2::EncryptedObject;

    #[test]
    fn a_value_is_found_in_every_encoding() {
        let object = EncryptedObject {
            encrypted_data: vec![0xff; 9],
            key_id: "k".to_owned(),
            encrypted_dek_source: vec![1],
            ..Default::default()
        };
        let value = stored::encode("demo", &object);
        let auto = |bytes: &[u8]| decode(bytes.to_vec(), Encoding::Auto).unwrap();
        let hex = hex::encode(&value);
        let base64 = base64::prelude::BASE64_STANDARD.encode(&value);
        let wrapped: Vec<u8> = base64.as_bytes().chunks(20).collect::<Vec<_>>().join(&b'\n');
        for text in [
            value.clone(),
            [value.as_slice(), b"\n"].concat(),
            hex.clone().into_bytes(),
            format!("{}\n", hex.to_uppercase()).into_bytes(),
            base64.trim_end_matches('=').as_bytes().to_vec(),
            wrapped,
        ] {
            assert_eq!(auto(&text), value, "{}", text.escape_ascii());
        }
        assert_eq!(auto(b"deadbeef"), b"deadbeef", "it decodes to nothing that is known");
        assert_eq!(decode(b"deadbeef".to_vec(), Encoding::Hex).unwrap(), [0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(decode(b"xyz".to_vec(), Encoding::Hex), None);
        assert_eq!(decode(b"#".to_vec(), Encoding::Base64), None);
        assert_eq!(decode(b"a\n".to_vec(), Encoding::Raw).unwrap(), b"a\n");
    }
}
