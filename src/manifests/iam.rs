//! The least that AWS has to allow, for each job.
//!
//! Guarantees: Encrypt and Decrypt only with the encryption context of the configuration; no statement names more keys than
//! the configuration lets `serve` use. By alias Decrypt covers the keys of the account under that context, because the
//! alias may have pointed to any of them; Encrypt goes through the alias alone. SPEC: AWS KMS Developer Guide, condition
//! keys kms:EncryptionContext:KEY, kms:RequestAlias, kms:ResourceAliases; ARCHITECTURE, which KEK may unwrap.

use super::facts::keks;
use super::{ManifestError, Options};
use crate::config::{AwsKekConfig, Config, KekConfig};
use crate::core::context::OWN_PAIR;
use serde_json::{Map, Value, json};

/// A key by what AWS needs to know of it.
struct Key<'a> {
    /// `arn:PARTITION:kms:REGION:ACCOUNT`.
    prefix: String,
    partition: String,
    account: String,
    resource: Resource,
    kek: &'a AwsKekConfig,
}

enum Resource {
    /// `key/ID`.
    Key(String),
    /// `alias/NAME`.
    Alias(String),
}

impl<'a> Key<'a> {
    fn of(at: &str, kek: &'a AwsKekConfig, options: &Options) -> Result<Self, ManifestError> {
        let account_given =
            options.account.as_deref().filter(|a| a.len() == 12 && a.bytes().all(|b| b.is_ascii_digit()));
        if options.account.is_some() && account_given.is_none() {
            return Err(ManifestError::option("account", "is twelve digits"));
        }
        let parts: Vec<&str> = kek.key.splitn(6, ':').collect();
        let (partition, region, account, resource) = match parts.as_slice() {
            ["arn", partition, "kms", region, account, resource] => {
                ((*partition).to_owned(), *region, *account, (*resource).to_owned())
            }
            _ => {
                let region = kek.region.as_deref().ok_or_else(|| {
                    ManifestError::config(
                        format!("{at}.aws.region"),
                        "is needed for a policy; or give the key by its ARN",
                    )
                })?;
                let account = account_given.ok_or_else(|| {
                    ManifestError::option("account", format!("is needed: {at}.aws.key does not say whose key it is"))
                })?;
                let resource = if kek.key.starts_with("alias/") { kek.key.clone() } else { format!("key/{}", kek.key) };
                (partition_of(region).to_owned(), region, account, resource)
            }
        };
        Ok(Self {
            prefix: format!("arn:{partition}:kms:{region}:{account}"),
            partition,
            account: account.to_owned(),
            resource: if resource.starts_with("alias/") { Resource::Alias(resource) } else { Resource::Key(resource) },
            kek,
        })
    }

    /// The keys that the name may mean.
    fn arn(&self) -> String {
        match &self.resource {
            Resource::Key(key) => format!("{}:{key}", self.prefix),
            Resource::Alias(_) => format!("{}:key/*", self.prefix),
        }
    }

    /// `StringEquals` of what every wrap is bound to.
    fn bound(&self) -> Map<String, Value> {
        let own = std::iter::once((OWN_PAIR.0, OWN_PAIR.1));
        let pairs = self.kek.context.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        own.chain(pairs).map(|(k, v)| (format!("kms:EncryptionContext:{k}"), json!(v))).collect()
    }

    fn wrap(&self, sid: &str) -> Value {
        let mut equals = self.bound();
        if let Resource::Alias(alias) = &self.resource {
            equals.insert("kms:RequestAlias".to_owned(), json!(alias));
        }
        json!({"Sid": format!("{sid}Wrap"), "Effect": "Allow", "Action": "kms:Encrypt", "Resource": self.arn(),
            "Condition": {"StringEquals": equals}})
    }

    fn unwrap(&self, sid: &str) -> Value {
        json!({"Sid": format!("{sid}Unwrap"), "Effect": "Allow", "Action": "kms:Decrypt", "Resource": self.arn(),
            "Condition": {"StringEquals": self.bound()}})
    }

    /// Only for saying why a key cannot be used.
    fn describe(&self, sid: &str) -> Value {
        self.on_key(&format!("{sid}Describe"), "kms:DescribeKey")
    }

    fn on_key(&self, sid: &str, action: &str) -> Value {
        let mut statement = json!({"Sid": sid, "Effect": "Allow", "Action": action, "Resource": self.arn()});
        if let (Resource::Alias(alias), Some(members)) = (&self.resource, statement.as_object_mut()) {
            members.insert("Condition".to_owned(), json!({"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}));
        }
        statement
    }
}

/// `serve` and `check`: the KEK that writes and those for recovery wrap and unwrap, those under `read` unwrap.
pub(super) fn role(config: &Config, options: &Options) -> Result<String, ManifestError> {
    let mut statements = Vec::new();
    for (at, kek) in keks(config) {
        let KekConfig::Aws(aws) = kek else { continue };
        let key = Key::of(&at, aws, options)?;
        let sid = sid(&at);
        if !at.starts_with("read") {
            statements.push(key.wrap(&sid));
        }
        statements.extend([key.unwrap(&sid), key.describe(&sid)]);
    }
    if statements.is_empty() {
        return Err(ManifestError::config("kek", "no KEK is in AWS, so there is no policy"));
    }
    document(statements)
}

/// The drill: rotates the key's material, or points the alias to another key. Nothing here disables or deletes.
pub(super) fn drill(config: &Config, options: &Options) -> Result<String, ManifestError> {
    let key = writing(config, options)?;
    let mut statements = vec![key.on_key("DrillRotate", "kms:RotateKeyOnDemand")];
    if let Resource::Alias(alias) = &key.resource {
        // AWS asks for it on the alias and on both keys; the alias is the one that limits.
        statements.push(json!({"Sid": "DrillAlias", "Effect": "Allow", "Action": "kms:UpdateAlias",
            "Resource": [format!("{}:{alias}", key.prefix), key.arn()]}));
    }
    document(statements)
}

/// The policy of the key that writes: the account keeps its power over it, the role gets what `serve` needs.
pub(super) fn key(config: &Config, options: &Options) -> Result<String, ManifestError> {
    let key = writing(config, options)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":/_+=,.@-".contains(&b);
    let role = options
        .role
        .as_deref()
        .filter(|role| role.starts_with("arn:") && role.contains(":role/") && role.bytes().all(plain));
    let Some(role) = role else {
        return Err(ManifestError::option(
            "role",
            "is needed: the ARN of the plugin's role, arn:aws:iam::ACCOUNT:role/NAME",
        ));
    };
    let of_role = |sid: &str, action: Value, condition: Option<Map<String, Value>>| {
        let mut statement =
            json!({"Sid": sid, "Effect": "Allow", "Principal": {"AWS": role}, "Action": action, "Resource": "*"});
        if let (Some(equals), Some(members)) = (condition, statement.as_object_mut()) {
            members.insert("Condition".to_owned(), json!({"StringEquals": equals}));
        }
        statement
    };
    document(vec![
        json!({"Sid": "AccountKeepsTheKey", "Effect": "Allow", "Action": "kms:*", "Resource": "*",
            "Principal": {"AWS": format!("arn:{}:iam::{}:root", key.partition, key.account)}}),
        of_role("KubeKmsWrapAndUnwrap", json!(["kms:Encrypt", "kms:Decrypt"]), Some(key.bound())),
        of_role("KubeKmsDescribe", json!("kms:DescribeKey"), None),
    ])
}

fn writing<'a>(config: &'a Config, options: &Options) -> Result<Key<'a>, ManifestError> {
    match &config.kek {
        KekConfig::Aws(aws) => Key::of("kek", aws, options),
        KekConfig::Local(_) => Err(ManifestError::config("kek", "is not in AWS, so there is no policy")),
    }
}

/// `recovery.keks[0]` as `RecoveryKeks0`: AWS takes letters and digits only.
fn sid(at: &str) -> String {
    let words = at.split(|c: char| !c.is_ascii_alphanumeric());
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    words.map(capital).collect()
}

/// SPEC: AWS General Reference, Amazon Resource Names.
fn partition_of(region: &str) -> &'static str {
    const OTHERS: [(&str, &str); 6] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("us-iso-", "aws-iso"),
        ("eusc-", "aws-eusc"),
    ];
    OTHERS.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}

fn document(statements: Vec<Value>) -> Result<String, ManifestError> {
    let mut text = serde_json::to_string_pretty(&json!({"Version": "2012-10-17", "Statement": statements}))
        .map_err(|error| ManifestError::config("kek", error.to_string()))?;
    text.push('\n');
    Ok(text)
}
