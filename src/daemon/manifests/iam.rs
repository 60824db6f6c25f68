//! The least that AWS has to allow, for each job.
//!
//! Guarantees: Encrypt and Decrypt only with the encryption context of the configuration, and only on keys by name. An alias may
//! have pointed to any key of its account, so the keys that it means are asked for (`--key-arn`) and never left open: whatever
//! key the role may decrypt with can vouch for a stored value. SPEC: AWS KMS Developer Guide, condition keys
//! kms:EncryptionContext:KEY, kms:RequestAlias, kms:ResourceAliases; ARCHITECTURE, which KEK may unwrap.

use super::facts::keks;
use super::{ManifestError, Options};
use kube_kms_config::{AwsKekConfig, Config, KekConfig};
use kube_kms_core::aws_partition::partition_of;
use kube_kms_core::context::OWN_PAIR;
use serde_json::{Map, Value, json};

/// A key by what AWS needs to know of it.
struct Key<'a> {
    /// `arn:PARTITION:kms:REGION:ACCOUNT`.
    prefix: String,
    partition: String,
    account: String,
    resource: Resource,
    /// The keys that the name means; none where an alias was not explained.
    arns: Vec<String>,
    at: String,
    kek: &'a AwsKekConfig,
}

enum Resource {
    Key,
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
                let of_region = |arn: &&String| arn.split(':').nth(3) == Some(region);
                let told = options.key_arns.iter().find(of_region).and_then(|arn| arn.split(':').nth(4));
                let account = account_given.or(told).ok_or_else(|| {
                    ManifestError::option("account", format!("is needed: {at}.aws.key does not say whose key it is"))
                })?;
                let resource = if kek.key.starts_with("alias/") { kek.key.clone() } else { format!("key/{}", kek.key) };
                (partition_of(region).to_owned(), region, account, resource)
            }
        };
        let prefix = format!("arn:{partition}:kms:{region}:{account}");
        let (resource, arns) = if resource.starts_with("alias/") {
            let is_here = |arn: &&String| arn.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with(":key/"));
            (Resource::Alias(resource), options.key_arns.iter().filter(is_here).cloned().collect())
        } else {
            let arn = format!("{prefix}:{resource}");
            (Resource::Key, vec![arn])
        };
        Ok(Self { prefix, partition, account: account.to_owned(), resource, arns, at: at.to_owned(), kek })
    }

    /// The keys that the name means, as `Resource`.
    fn arns(&self) -> Result<Value, ManifestError> {
        match self.arns.as_slice() {
            [] => Err(ManifestError::option(
                "key-arn",
                format!(
                    "is needed: {}.aws.key is an alias, and a policy names keys. Give the ARN of the key that it points to \
                     (`kube-kms check` prints it after `KEK`), and once more for each key before it that stored values need",
                    self.at
                ),
            )),
            [one] => Ok(json!(one)),
            many => Ok(json!(many)),
        }
    }

    /// `StringEquals` of what every wrap is bound to.
    fn bound(&self) -> Map<String, Value> {
        let own = std::iter::once((OWN_PAIR.0, OWN_PAIR.1));
        let pairs = self.kek.context.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        own.chain(pairs).map(|(k, v)| (format!("kms:EncryptionContext:{k}"), json!(v))).collect()
    }

    fn wrap(&self, sid: &str) -> Result<Value, ManifestError> {
        let mut equals = self.bound();
        if let Resource::Alias(alias) = &self.resource {
            equals.insert("kms:RequestAlias".to_owned(), json!(alias));
        }
        Ok(json!({"Sid": format!("{sid}Wrap"), "Effect": "Allow", "Action": "kms:Encrypt", "Resource": self.arns()?,
            "Condition": {"StringEquals": equals}}))
    }

    fn unwrap(&self, sid: &str) -> Result<Value, ManifestError> {
        Ok(json!({"Sid": format!("{sid}Unwrap"), "Effect": "Allow", "Action": "kms:Decrypt", "Resource": self.arns()?,
            "Condition": {"StringEquals": self.bound()}}))
    }

    /// Only for saying why a key cannot be used.
    fn describe(&self, sid: &str) -> Result<Value, ManifestError> {
        self.on_key(&format!("{sid}Describe"), "kms:DescribeKey")
    }

    fn on_key(&self, sid: &str, action: &str) -> Result<Value, ManifestError> {
        let mut statement = json!({"Sid": sid, "Effect": "Allow", "Action": action, "Resource": self.arns()?});
        if let (Resource::Alias(alias), Some(members)) = (&self.resource, statement.as_object_mut()) {
            members.insert("Condition".to_owned(), json!({"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}));
        }
        Ok(statement)
    }
}

/// `serve` and `check`: the KEK that writes and those for recovery wrap and unwrap, those under `read` unwrap.
pub(super) fn role(config: &Config, options: &Options) -> Result<String, ManifestError> {
    let mut statements = Vec::new();
    let mut unused: Vec<&String> = options.key_arns.iter().collect();
    for (at, kek) in keks(config) {
        let KekConfig::Aws(aws) = kek else { continue };
        let key = Key::of(&at, aws, options)?;
        unused.retain(|arn| !key.arns.contains(arn));
        let sid = sid(&at);
        if !at.starts_with("read") {
            statements.push(key.wrap(&sid)?);
        }
        statements.extend([key.unwrap(&sid)?, key.describe(&sid)?]);
    }
    if let Some(arn) = unused.first() {
        return Err(ManifestError::option(
            "key-arn",
            format!("{arn} is in the region and account of no KEK that is an alias"),
        ));
    }
    if statements.is_empty() {
        return Err(ManifestError::config("kek", "no KEK is in AWS, so there is no policy"));
    }
    document(statements)
}

/// The drill: rotates the key's material, or points the alias to another key. Nothing here disables or deletes.
pub(super) fn drill(config: &Config, options: &Options) -> Result<String, ManifestError> {
    let key = writing(config, options)?;
    let mut statements = vec![key.on_key("DrillRotate", "kms:RotateKeyOnDemand")?];
    if let Resource::Alias(alias) = &key.resource {
        // AWS asks for it on the alias and on both keys.
        let resources: Vec<String> =
            std::iter::once(format!("{}:{alias}", key.prefix)).chain(key.arns.iter().cloned()).collect();
        statements
            .push(json!({"Sid": "DrillAlias", "Effect": "Allow", "Action": "kms:UpdateAlias", "Resource": resources}));
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

fn document(statements: Vec<Value>) -> Result<String, ManifestError> {
    let mut text = serde_json::to_string_pretty(&json!({"Version": "2012-10-17", "Statement": statements}))
        .map_err(|error| ManifestError::config("kek", error.to_string()))?;
    text.push('\n');
    Ok(text)
}
