//! The ways in which AWS KMS names a key, and which KEKs a name allows to unwrap.
//!
//! Guarantees: a [`KeyName`] is one of the four forms that Encrypt takes; a [`KeyArn`] is the ARN of a key, never of an
//! alias. Refuses to know: the network; whether such a key exists.
//! SPEC: AWS KMS Developer Guide, "Key identifiers (KeyId)"; docs/format.md.

use super::settings::SettingsError;
use kube_kms_core::aws_partition::partition_of;
use std::fmt;

/// Bytes of an alias's name at most, without `alias/`. SPEC: AWS KMS API, CreateAlias.
const ALIAS_MAX: usize = 250;
/// Bytes of a key id at most; a UUID has 36, and a multi-Region key's id as many.
const KEY_ID_MAX: usize = 128;

/// Where a key or an alias lives: what an ARN says besides its resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `aws`, `aws-cn`, `aws-us-gov`, …
    pub partition: String,
    /// `eu-central-1`
    pub region: String,
    /// Twelve digits.
    pub account: String,
}

/// The ARN of a key: what the KMS answers, and what stands in `kek.kube-kms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyArn {
    text: String,
    place: Place,
    id: String,
}

impl KeyArn {
    /// Reads `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`; nothing else is a key ARN.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (place, resource) = split_arn(text)?;
        let id = resource.strip_prefix("key/").filter(|id| is_id_text(id))?;
        Some(Self { id: id.to_owned(), place, text: text.to_owned() })
    }

    /// The ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the key lives.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// The key id alone.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// How a configuration names a KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// A key id in the caller's account: a UUID, or `mrk-` and 32 hex digits.
    Id(String),
    /// A key's ARN.
    Arn(KeyArn),
    /// `alias/NAME`, in the caller's account.
    Alias(String),
    /// An alias's ARN.
    AliasArn {
        /// The whole ARN.
        text: String,
        /// Where the alias lives, and so the key that it points to.
        place: Place,
    },
}

impl KeyName {
    /// Reads a key id, a key ARN, an alias or an alias ARN.
    ///
    /// # Errors
    /// [`SettingsError::Key`], which says what is accepted.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        if let Some(arn) = KeyArn::parse(text) {
            return Ok(Self::Arn(arn));
        }
        if is_alias(text) {
            return Ok(Self::Alias(text.to_owned()));
        }
        if is_uuid(text) || is_multi_region_id(text) {
            return Ok(Self::Id(text.to_owned()));
        }
        match split_arn(text) {
            Some((place, resource)) if is_alias(resource) => Ok(Self::AliasArn { text: text.to_owned(), place }),
            _ => Err(SettingsError::Key { given: text.to_owned() }),
        }
    }

    /// The name as it was given: what is sent as `KeyId`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Id(text) | Self::Alias(text) | Self::AliasArn { text, .. } => text,
            Self::Arn(arn) => arn.as_str(),
        }
    }

    /// The region, when the name has one.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.place().map(|place| place.region.as_str())
    }

    /// Where the key lives, when the name says so.
    #[must_use]
    pub const fn place(&self) -> Option<&Place> {
        match self {
            Self::Arn(arn) => Some(arn.place()),
            Self::AliasArn { place, .. } => Some(place),
            Self::Id(_) | Self::Alias(_) => None,
        }
    }

    /// Whether this name, in this region, allows unwrapping under that key.
    ///
    /// By key: exactly that key. By alias: every key of the same region and account, because the alias may have pointed to
    /// any of them. `account` is what the KMS has told of an account that the name leaves open; `None` until then.
    #[must_use]
    pub fn allows(&self, key: &KeyArn, region: &str, account: Option<&str>) -> bool {
        let place = key.place();
        let here = place.region == region
            && place.partition == partition_of(region)
            && account.is_none_or(|account| place.account == account);
        match self {
            Self::Arn(arn) => arn == key,
            Self::Id(id) => here && id == key.id(),
            Self::Alias(_) => here,
            Self::AliasArn { place: alias, .. } => alias == place,
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Splits `arn:PARTITION:kms:REGION:ACCOUNT:RESOURCE`.
fn split_arn(text: &str) -> Option<(Place, &str)> {
    let mut parts = text.splitn(6, ':');
    let (arn, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let sound = arn == "arn"
        && partition.starts_with("aws")
        && is_label(partition)
        && service == "kms"
        && is_label(region)
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit());
    let place = Place { partition: partition.to_owned(), region: region.to_owned(), account: account.to_owned() };
    sound.then_some((place, resource))
}

/// Lower-case letters, digits and dashes: a partition, a region.
pub(super) fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// As AWS writes it. SECURITY: one key has one name, so that what stands in etcd cannot name it in another way.
fn is_id_text(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=KEY_ID_MAX).contains(&text.len()) && text.bytes().all(plain)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => is_lower_hex(b),
        })
}

const fn is_lower_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

fn is_multi_region_id(text: &str) -> bool {
    text.strip_prefix("mrk-").is_some_and(|rest| rest.len() == 32 && rest.bytes().all(is_lower_hex))
}

fn is_alias(text: &str) -> bool {
    text.strip_prefix("alias/").is_some_and(|name| {
        (1..=ALIAS_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const OTHER: &str = "0987dcba-09fe-87dc-65ba-ab0987654321";
    const MRK: &str = "mrk-1234abcd12ab34cd56ef1234567890ab";

    fn arn(region: &str, account: &str, id: &str) -> KeyArn {
        KeyArn::parse(&format!("arn:aws:kms:{region}:{account}:key/{id}")).unwrap()
    }

    #[test]
    fn the_four_forms_are_told_apart_and_kept_as_they_were_given() {
        let key_arn = format!("arn:aws-cn:kms:cn-north-1:111122223333:key/{UUID}");
        let alias_arn = "arn:aws:kms:eu-central-1:111122223333:alias/prod/cluster_1";
        assert!(matches!(KeyName::parse(UUID).unwrap(), KeyName::Id(_)));
        assert!(matches!(KeyName::parse(MRK).unwrap(), KeyName::Id(_)));
        assert!(matches!(KeyName::parse("alias/prod-cluster").unwrap(), KeyName::Alias(_)));
        let KeyName::Arn(parsed) = KeyName::parse(&key_arn).unwrap() else { panic!("not an ARN") };
        assert_eq!(
            (parsed.place().partition.as_str(), parsed.place().region.as_str(), parsed.place().account.as_str()),
            ("aws-cn", "cn-north-1", "111122223333")
        );
        assert_eq!(parsed.id(), UUID);
        assert_eq!(KeyName::parse(alias_arn).unwrap().region(), Some("eu-central-1"));
        for text in [UUID, MRK, "alias/prod-cluster", &key_arn, alias_arn] {
            assert_eq!(KeyName::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_is_accepted() {
        let bad = [
            "",
            "prod-cluster",
            "alias/",
            "alias/a b",
            "mrk-1234",
            "1234abcd12ab34cd56ef1234567890ab",
            "arn:aws:s3:eu-central-1:111122223333:key/x",
            "arn:aws:kms:eu-central-1:1111:key/x",
            "arn:aws:kms::111122223333:key/x",
            "arn:aws:kms:eu-central-1:111122223333:key/",
            "arn:aws:kms:eu-central-1:111122223333:key/a/b",
            "arn:aws:kms:eu-central-1:111122223333:alias/",
            "arn:aws:kms:eu-central-1:111122223333:grant/x",
            "arn:gcp:kms:eu-central-1:111122223333:key/x",
        ];
        for text in bad {
            let said = KeyName::parse(text).unwrap_err().to_string();
            assert!(said.contains("alias/NAME") && said.contains("arn:"), "{text:?}: {said}");
        }
        let alias = "arn:aws:kms:eu-central-1:111122223333:alias/x";
        assert!(KeyArn::parse(alias).is_none(), "an alias is not a key");
    }

    #[test]
    fn a_key_allows_itself_and_an_alias_the_keys_of_its_region_and_account() {
        let (here, there) = ("eu-central-1", "us-east-1");
        let (ours, theirs) = ("111122223333", "444455556666");
        let by_arn = KeyName::Arn(arn(here, ours, UUID));
        let by_id = KeyName::parse(UUID).unwrap();
        let by_alias = KeyName::parse("alias/x").unwrap();
        let by_alias_arn = KeyName::parse(&format!("arn:aws:kms:{here}:{ours}:alias/x")).unwrap();
        // (name, account learned, region of the key, account of the key, id, allowed)
        let table = [
            (&by_arn, None, here, ours, UUID, true),
            (&by_arn, None, here, ours, OTHER, false),
            (&by_arn, None, there, ours, UUID, false),
            (&by_arn, None, here, theirs, UUID, false),
            (&by_id, None, here, ours, UUID, true),
            (&by_id, None, here, theirs, UUID, true),
            (&by_id, Some(ours), here, theirs, UUID, false),
            (&by_id, None, here, ours, OTHER, false),
            (&by_id, None, there, ours, UUID, false),
            (&by_alias, None, here, theirs, OTHER, true),
            (&by_alias, Some(ours), here, ours, OTHER, true),
            (&by_alias, Some(ours), here, theirs, OTHER, false),
            (&by_alias, Some(ours), there, ours, UUID, false),
            (&by_alias_arn, None, here, ours, OTHER, true),
            (&by_alias_arn, None, here, theirs, UUID, false),
            (&by_alias_arn, None, there, ours, UUID, false),
        ];
        for (name, learned, region, account, id, allowed) in table {
            let key = arn(region, account, id);
            assert_eq!(name.allows(&key, here, learned), allowed, "{name} {learned:?} {}", key.as_str());
        }
    }
}
