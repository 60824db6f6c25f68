//! The account: keys and aliases of one region, and how a KeyId finds one.
//!
//! Guarantees: a key is found by id, ARN, alias name and alias ARN wherever AWS takes them and by nothing else; a deleted
//! key stays known as deleted. Refuses to know JSON and HTTP.

use super::blob::BlobSecret;
use super::key::{Key, RotationEnd, now};
use super::refusal::Refusal;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// AWS's example account.
pub const ACCOUNT: &str = "111122223333";

pub(super) struct Alias {
    pub(super) target: Uuid,
    pub(super) created: f64,
    pub(super) updated: f64,
}

pub(super) struct Account {
    pub(super) region: String,
    pub(super) secret: BlobSecret,
    pub(super) keys: BTreeMap<Uuid, Key>,
    pub(super) deleted: BTreeSet<Uuid>,
    pub(super) aliases: BTreeMap<String, Alias>,
    pub(super) material_ids: bool,
    pub(super) rotation_end: RotationEnd,
    pub(super) on_demand_limit: u32,
}

impl Account {
    pub(super) fn new(region: &str) -> Self {
        Self {
            region: region.to_owned(),
            secret: BlobSecret::new(),
            keys: BTreeMap::new(),
            deleted: BTreeSet::new(),
            aliases: BTreeMap::new(),
            material_ids: true,
            rotation_end: RotationEnd::AtOnce,
            on_demand_limit: 25,
        }
    }

    fn arn(&self, resource: &str) -> String {
        format!("arn:aws:kms:{}:{ACCOUNT}:{resource}", self.region)
    }

    pub(super) fn alias_arn(&self, name: &str) -> String {
        self.arn(name)
    }

    pub(super) fn create_key(&mut self, description: String) -> &mut Key {
        let key = Key::new(&self.region, ACCOUNT, description);
        self.keys.entry(key.id).or_insert(key)
    }

    /// Every key hears of every call: a rotation that is to be late counts them.
    pub(super) fn tick(&mut self) {
        self.keys.values_mut().for_each(Key::tick);
    }

    /// By key id, key ARN, alias name or alias ARN.
    pub(super) fn key(&mut self, sent: &str) -> Result<&mut Key, Refusal> {
        let resource = self.resource(sent)?;
        let id = if resource.starts_with("alias/") {
            let alias = self.aliases.get(resource).ok_or_else(|| Refusal::alias_not_found(&self.arn(resource)))?;
            alias.target
        } else {
            self.parse_id(sent, resource)?
        };
        self.by_id(id)
    }

    /// By key id or key ARN: the operations that change a key take no alias.
    pub(super) fn key_itself(&mut self, sent: &str) -> Result<&mut Key, Refusal> {
        let resource = self.resource(sent)?;
        if resource.starts_with("alias/") {
            return Err(Refusal::invalid_key_id(sent));
        }
        let id = self.parse_id(sent, resource)?;
        self.by_id(id)
    }

    pub(super) fn by_id(&mut self, id: Uuid) -> Result<&mut Key, Refusal> {
        let arn = self.arn(&format!("key/{id}"));
        self.keys.get_mut(&id).ok_or_else(|| Refusal::key_not_found(&arn))
    }

    fn parse_id(&self, sent: &str, resource: &str) -> Result<Uuid, Refusal> {
        let id = resource.strip_prefix("key/").unwrap_or(resource);
        if sent.is_empty() || sent.len() > 2048 {
            return Err(Refusal::constraint("keyId", "Member must have length between 1 and 2048"));
        }
        Uuid::try_parse(id).map_err(|_| match id.is_ascii() && !id.contains(char::is_whitespace) {
            true => Refusal::key_not_found(&self.arn(&format!("key/{id}"))),
            false => Refusal::invalid_key_id(sent),
        })
    }

    /// What follows the account in an ARN, or all of what was sent.
    fn resource<'a>(&self, sent: &'a str) -> Result<&'a str, Refusal> {
        if !sent.starts_with("arn:") {
            return Ok(sent);
        }
        let mut parts = sent.splitn(6, ':').skip(2);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("kms"), Some(region), Some(_), Some(_)) if region != self.region => Err(Refusal::invalid_arn(region)),
            (Some("kms"), Some(_), Some(ACCOUNT), Some(resource)) => Ok(resource),
            (Some("kms"), Some(_), Some(_), Some(_)) => Err(Refusal::access_denied(ACCOUNT, "DescribeKey", Some(sent))),
            _ => Err(Refusal::invalid_key_id(sent)),
        }
    }

    pub(super) fn create_alias(&mut self, name: &str, target: &str) -> Result<(), Refusal> {
        check_alias_name(name)?;
        let target = self.alias_target(target)?;
        if self.aliases.contains_key(name) {
            return Err(Refusal::alias_exists(&self.alias_arn(name)));
        }
        let created = now();
        self.aliases.insert(name.to_owned(), Alias { target, created, updated: created });
        Ok(())
    }

    pub(super) fn update_alias(&mut self, name: &str, target: &str) -> Result<(), Refusal> {
        check_alias_name(name)?;
        let target = self.alias_target(target)?;
        let missing = Refusal::alias_not_found(&self.alias_arn(name));
        let alias = self.aliases.get_mut(name).ok_or(missing)?;
        alias.target = target;
        alias.updated = now();
        Ok(())
    }

    pub(super) fn delete_alias(&mut self, name: &str) -> Result<(), Refusal> {
        check_alias_name(name)?;
        let missing = Refusal::alias_not_found(&self.alias_arn(name));
        self.aliases.remove(name).map(|_| ()).ok_or(missing)
    }

    fn alias_target(&mut self, target: &str) -> Result<Uuid, Refusal> {
        if self.resource(target)?.starts_with("alias/") {
            return Err(Refusal::validation("Aliases must refer to keys. Not aliases"));
        }
        let key = self.key_itself(target)?;
        key.not_pending_deletion()?;
        Ok(key.id)
    }

    /// The end of the waiting period: key and aliases are gone, for good.
    pub(super) fn delete(&mut self, id: Uuid) {
        self.keys.remove(&id);
        self.aliases.retain(|_, alias| alias.target != id);
        self.deleted.insert(id);
    }
}

fn check_alias_name(name: &str) -> Result<(), Refusal> {
    let Some(rest) = name.strip_prefix("alias/") else {
        return Err(Refusal::validation("Invalid identifier: an alias must start with the prefix \"alias/\""));
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "/_-".contains(c);
    if rest.is_empty() || !rest.chars().all(valid) || name.len() > 256 {
        return Err(Refusal::invalid_alias_name());
    }
    Ok(())
}
