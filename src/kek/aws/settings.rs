//! What an operator says about an AWS KEK, checked before anything is connected.
//!
//! Guarantees: a key name of a known form, a region that does not contradict it, and an endpoint to which a DEK may be
//! sent. Refuses to know: credentials, which come from the SDK's own chain and never from our configuration.

use super::key_name::{KeyName, is_label};
use std::net::IpAddr;
use std::time::Duration;

/// How long a TCP and TLS connect may take.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);

/// Why the settings of an AWS KEK are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// `key` has no known form.
    #[error(
        "key `{given}` is not a KMS key: give a key id (a UUID, or mrk- and 32 hex digits), a key ARN \
         (arn:aws:kms:REGION:ACCOUNT:key/ID), an alias (alias/NAME) or an alias ARN (arn:aws:kms:REGION:ACCOUNT:alias/NAME)"
    )]
    Key {
        /// What was given.
        given: String,
    },
    /// `region` is not the name of a region.
    #[error("region `{given}` is not a region's name such as eu-central-1")]
    Region {
        /// What was given.
        given: String,
    },
    /// `key` and `region` contradict each other.
    #[error("key is in region {key} but region says {given}: leave region out, or name a key of that region")]
    RegionDiffers {
        /// The region in the ARN.
        key: String,
        /// The region that was given.
        given: String,
    },
    /// Nothing names a region.
    #[error("no region: set region, give the key as an ARN, or set AWS_REGION or a region in the AWS profile")]
    RegionMissing,
    /// `endpoint` is not a URL.
    #[error("endpoint `{given}` is not a URL such as https://kms.eu-central-1.amazonaws.com")]
    Endpoint {
        /// What was given.
        given: String,
    },
    /// `endpoint` would carry data keys in clear over a network.
    #[error(
        "endpoint `{given}` is not https: data keys would cross the network in clear; http is for a loopback address only"
    )]
    EndpointInClear {
        /// What was given.
        given: String,
    },
}

/// The settings of one AWS KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsSettings {
    key: KeyName,
    region: Option<String>,
    endpoint: Option<String>,
    connect_timeout: Duration,
}

impl AwsSettings {
    /// Checks what a configuration says: `key` in any form of [`KeyName`], the region when the key does not have one, and
    /// a URL to use in place of AWS's own.
    ///
    /// # Errors
    /// [`SettingsError`], which names the setting.
    pub fn parse(key: &str, region: Option<&str>, endpoint: Option<&str>) -> Result<Self, SettingsError> {
        let key = KeyName::parse(key)?;
        if let Some(given) = region {
            if !is_label(given) {
                return Err(SettingsError::Region { given: given.to_owned() });
            }
            if let Some(of_key) = key.region().filter(|of_key| *of_key != given) {
                return Err(SettingsError::RegionDiffers { key: of_key.to_owned(), given: given.to_owned() });
            }
        }
        if let Some(given) = endpoint {
            check_endpoint(given)?;
        }
        let region = region.or_else(|| key.region()).map(str::to_owned);
        let endpoint = endpoint.map(str::to_owned);
        Ok(Self { key, region, endpoint, connect_timeout: CONNECT_TIMEOUT_DEFAULT })
    }

    /// The same with another limit on connecting.
    #[must_use]
    pub fn with_connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> &KeyName {
        &self.key
    }

    /// The region, as set or from the key's ARN; without one the SDK's own sources decide.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// The URL to use in place of AWS's own.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// How long connecting may take.
    #[must_use]
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}

/// SECURITY: an Encrypt request carries the DEK itself; without TLS everyone on the path would have it.
pub(super) fn check_endpoint(given: &str) -> Result<(), SettingsError> {
    let uri: http::Uri = given.parse().map_err(|_| SettingsError::Endpoint { given: given.to_owned() })?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) => Ok(()),
        (Some("http"), Some(host)) if is_loopback(host) => Ok(()),
        (Some("http"), Some(_)) => Err(SettingsError::EndpointInClear { given: given.to_owned() }),
        _ => Err(SettingsError::Endpoint { given: given.to_owned() }),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn the_region_comes_from_the_arn_and_may_not_contradict_it() {
        assert_eq!(AwsSettings::parse(ARN, None, None).unwrap().region(), Some("eu-central-1"));
        assert_eq!(AwsSettings::parse(ARN, Some("eu-central-1"), None).unwrap().region(), Some("eu-central-1"));
        assert_eq!(AwsSettings::parse("alias/x", None, None).unwrap().region(), None);
        let differs = AwsSettings::parse(ARN, Some("us-east-1"), None).unwrap_err();
        assert!(matches!(differs, SettingsError::RegionDiffers { .. }), "{differs}");
        let region = AwsSettings::parse("alias/x", Some("eu central"), None).unwrap_err();
        assert!(matches!(region, SettingsError::Region { .. }), "{region}");
    }

    #[test]
    fn an_endpoint_in_clear_is_taken_on_a_loopback_address_only() {
        for good in ["https://kms.example", "http://127.0.0.1:5000", "http://[::1]:5000", "http://localhost:4566/"] {
            assert_eq!(AwsSettings::parse(ARN, None, Some(good)).unwrap().endpoint(), Some(good));
        }
        for clear in ["http://kms.example", "http://10.0.0.1:80", "http://localhost.example"] {
            let error = AwsSettings::parse(ARN, None, Some(clear)).unwrap_err();
            assert!(matches!(error, SettingsError::EndpointInClear { .. }), "{clear}: {error}");
        }
        for bad in ["", "kms.example", "ftp://kms.example", "/x", "http://"] {
            let error = AwsSettings::parse(ARN, None, Some(bad)).unwrap_err();
            assert!(matches!(error, SettingsError::Endpoint { .. }), "{bad}: {error}");
        }
    }
}
