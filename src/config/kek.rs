//! Lifts one KEK: exactly one of `aws` and `local`, the same under `kek` and in each element of `read`.
//!
//! What is checked is the shape; whether the KEK is there is for `kube-kms check`. SPEC: AWS KMS API reference,
//! `KeyId` and `EncryptionContext`; docs/configuration.md.

use crate::model::{AwsKekConfig, KekConfig, LocalKekConfig};
use crate::problem::shown;
use crate::section::Section;
use kube_kms_core::context::OWN_PAIR;
use std::collections::BTreeMap;
use std::path::PathBuf;

const KEY_HINT: &str = "one of: a key id (uuid or mrk-…, lower case), a key ARN, alias/NAME, an alias ARN";
/// Characters of an AWS alias name at most, without `alias/`. SPEC: CreateAlias, 256 with it.
const ALIAS_MAX: usize = 250;
const REGION_MAX: usize = 32;
/// Characters of a context as JSON, ours included, stay under this. SPEC: AWS KMS, EncryptionContext.
const CONTEXT_MAX: usize = 8192;

/// Lifts a KEK; `None` when something in it was reported.
pub(super) fn lift(section: &Section<'_>) -> Option<KekConfig> {
    match (section.has("aws"), section.has("local")) {
        (true, false) => aws(&section.section("aws")).map(KekConfig::Aws),
        (false, true) => local(&section.section("local")).map(KekConfig::Local),
        (false, false) => {
            section.problems().add(section.path(), "names no KEK", "give exactly one of `aws` and `local`");
            None
        }
        (true, true) => {
            section.problems().add(section.path(), "both `aws` and `local`", "give exactly one of them");
            // Lifted for what else is wrong in them.
            let _ = (aws(&section.section("aws")), local(&section.section("local")));
            None
        }
    }
}

fn aws(section: &Section<'_>) -> Option<AwsKekConfig> {
    let key = section.required_text("key", KEY_HINT).and_then(|key| {
        let shape = KeyShape::parse(key);
        if shape.is_none() {
            let managed = key.starts_with("alias/aws/") || key.contains(":alias/aws/");
            let what = if managed { "is a key that AWS manages for its own services" } else { "does not name a key" };
            section.problem("key", what, KEY_HINT);
        }
        shape.map(|shape| (key, shape))
    });
    let region = section.text("region").filter(|region| {
        let ok = is_region(region);
        if !ok {
            section.problem("region", "is not a region", "such as eu-central-1");
        }
        ok
    });
    let endpoint = section.text("endpoint").filter(|endpoint| {
        let wrong = endpoint_fault(endpoint);
        if let Some((what, hint)) = wrong {
            section.problem("endpoint", what, hint);
        }
        wrong.is_none()
    });
    let context = context(section, true);
    let (key, shape) = key?;
    if let (Some(region), Some(of_arn)) = (region, shape.region)
        && region != of_arn
    {
        section.problem("region", "is not the region in the ARN of `key`", "leave the region out, or make them equal");
    }
    Some(AwsKekConfig {
        key: key.to_owned(),
        region: region.map(str::to_owned),
        endpoint: endpoint.map(str::to_owned),
        context,
    })
}

fn local(section: &Section<'_>) -> Option<LocalKekConfig> {
    let keyring = section.required_text("keyring", "the file that `kube-kms keyring init` made");
    let keyring = keyring.and_then(|path| absolute(section, "keyring", path));
    let context = context(section, false);
    Some(LocalKekConfig { keyring: keyring?, context })
}

/// An absolute path; a relative one would depend on where the process was started.
pub(super) fn absolute(section: &Section<'_>, name: &str, path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Some(path);
    }
    section.problem(name, "is not an absolute path", "begin it with `/`");
    None
}

fn context(section: &Section<'_>, aws: bool) -> BTreeMap<String, String> {
    let pairs = section.pairs("context");
    for key in pairs.keys() {
        let at = format!("context.{}", shown(key));
        if key.is_empty() {
            section.problem("context", "an empty key", "");
        } else if key == OWN_PAIR.0 {
            section.problem(&at, "is set by kube-kms itself", "choose another key");
        } else if aws && key.to_ascii_lowercase().starts_with("aws:") {
            section.problem(&at, "keys that begin with `aws:` are AWS's own", "choose another key");
        }
    }
    let all = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).chain([OWN_PAIR]);
    // As JSON, `{"k":"v",…}`: six characters more than key and value per pair.
    let size = all.fold(2_usize, |sum, (k, v)| {
        sum.saturating_add(k.chars().count()).saturating_add(v.chars().count()).saturating_add(6)
    });
    if size >= CONTEXT_MAX {
        section.problem("context", format!("is {size} characters with ours"), format!("less than {CONTEXT_MAX}"));
    }
    pairs
}

/// What the configured string tells of the key.
#[derive(Debug, PartialEq, Eq)]
struct KeyShape<'a> {
    region: Option<&'a str>,
}

impl<'a> KeyShape<'a> {
    fn parse(key: &'a str) -> Option<Self> {
        let Some(arn) = key.strip_prefix("arn:") else {
            return (is_key_id(key) || key.strip_prefix("alias/").is_some_and(is_alias))
                .then_some(Self { region: None });
        };
        let parts: Vec<&str> = arn.splitn(5, ':').collect();
        let [partition, "kms", region, account, resource] = parts.as_slice() else { return None };
        let partition_ok = *partition == "aws" || partition.strip_prefix("aws-").is_some_and(is_word);
        let account_ok = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let resource_ok = resource.strip_prefix("key/").is_some_and(is_key_id)
            || resource.strip_prefix("alias/").is_some_and(is_alias);
        (partition_ok && is_region(region) && account_ok && resource_ok).then_some(Self { region: Some(region) })
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_region(region: &str) -> bool {
    is_word(region) && region.len() <= REGION_MAX && !region.starts_with('-') && !region.ends_with('-')
}

fn is_key_id(id: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if let Some(multi_region) = id.strip_prefix("mrk-") {
        return multi_region.len() == 32 && is_hex(multi_region);
    }
    let parts: Vec<&str> = id.split('-').collect();
    parts.iter().map(|p| p.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|p| is_hex(p))
}

fn is_alias(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-');
    // `alias/aws/…` are keys that only AWS's own services may use.
    !name.is_empty() && name.len() <= ALIAS_MAX && name.bytes().all(plain) && !name.starts_with("aws/")
}

/// What is wrong with an endpoint, and what to do.
fn endpoint_fault(endpoint: &str) -> Option<(&'static str, &'static str)> {
    let url = endpoint.parse::<http::Uri>().ok();
    let parts = url.as_ref().and_then(|u| Some((u.scheme_str()?, u.authority()?, u.host()?)));
    let Some((scheme, authority, host)) = parts.filter(|(_, _, host)| !host.is_empty()) else {
        return Some(("is not a URL", "such as https://vpce-….kms.eu-central-1.vpce.amazonaws.com"));
    };
    if authority.as_str().contains('@') {
        // SECURITY: a password in a URL would be printed wherever the endpoint is.
        return Some(("has a user name or password in it", "credentials come from the SDK's own chain"));
    }
    match scheme {
        "https" => None,
        "http" if matches!(host, "127.0.0.1" | "[::1]" | "localhost") => None,
        // SECURITY: the DEK travels in this connection; AWS KMS has no other protection for it than TLS.
        "http" => Some(("http without TLS to another host", "https, or http to 127.0.0.1, [::1] or localhost")),
        _ => Some(("is neither http nor https", "https, or http to 127.0.0.1, [::1] or localhost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn the_four_shapes_of_a_key_are_taken() {
        let mrk = format!("mrk-{}", "0a".repeat(16));
        for key in [UUID, &mrk, "alias/prod-cluster", "alias/team/a_b"] {
            assert_eq!(KeyShape::parse(key), Some(KeyShape { region: None }), "{key}");
        }
        for resource in [format!("key/{UUID}"), format!("key/{mrk}"), "alias/prod".to_owned()] {
            for partition in ["aws", "aws-cn", "aws-us-gov"] {
                let arn = format!("arn:{partition}:kms:eu-central-1:123456789012:{resource}");
                assert_eq!(KeyShape::parse(&arn), Some(KeyShape { region: Some("eu-central-1") }), "{arn}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_key_is_refused() {
        let long = format!("alias/{}", "x".repeat(ALIAS_MAX + 1));
        let short_mrk = format!("mrk-{}", "0".repeat(31));
        for key in [
            "x",
            "alias/",
            "alias/a b",
            "alias/aws/ebs",
            "prod-cluster",
            &long,
            &short_mrk,
            "1234abcd-12ab-34cd-56ef-1234567890a",
            "1234abcd-12ab-34cd-56ef-1234567890ag",
            "1234ABCD-12ab-34cd-56ef-1234567890ab",
            "arn:aws:s3:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms::123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-central-1:12345678901:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-central-1:123456789012:1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-central-1:123456789012:alias/aws/s3",
            "arn:aws:kms",
        ] {
            assert_eq!(KeyShape::parse(key), None, "{key}");
        }
    }

    #[test]
    fn http_is_for_this_host_only() {
        for ok in
            ["https://kms.eu-central-1.amazonaws.com", "http://127.0.0.1:5000", "http://[::1]:1", "http://localhost"]
        {
            assert_eq!(endpoint_fault(ok), None, "{ok}");
        }
        for bad in [
            "http://kms.example.com",
            "http://127.0.0.1.example.com",
            "http://localhost@example.com",
            "https://user:pass@example.com",
            "ftp://localhost",
            "localhost:5000",
            "/path",
            "kms",
        ] {
            assert!(endpoint_fault(bad).is_some(), "{bad}");
        }
    }
}
