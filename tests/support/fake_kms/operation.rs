//! What each operation does with its JSON input: the order of checks and the shape of the answers.
//!
//! Guarantees: no input makes it panic; whatever is not as AWS documents it is a refusal. The rule comes from the AWS KMS
//! API reference and the "real AWS" column of the project's comparison of fakes. Refuses to know HTTP and faults.

use super::account::{ACCOUNT, Account};
use super::blob::{Context, random};
use super::key::{Key, KeyState, Material, now};
use super::refusal::Refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

const DAY: f64 = 86_400.0;
const PLAINTEXT_MAX: usize = 4096;
const CIPHERTEXT_MAX: usize = 6144;
const ALGORITHM: &str = "SYMMETRIC_DEFAULT";

type Answer = Result<Value, Refusal>;

/// Performs one call.
pub(super) fn perform(account: &mut Account, op: &str, input: &Map<String, Value>) -> Answer {
    account.tick();
    let input = Input(input);
    match op {
        "CreateKey" => create_key(account, input),
        "DescribeKey" => describe_key(account, input),
        "CreateAlias" => account.create_alias(input.need("AliasName")?, input.need("TargetKeyId")?).map(|()| json!({})),
        "UpdateAlias" => account.update_alias(input.need("AliasName")?, input.need("TargetKeyId")?).map(|()| json!({})),
        "DeleteAlias" => account.delete_alias(input.need("AliasName")?).map(|()| json!({})),
        "ListAliases" => list_aliases(account, input),
        "Encrypt" => encrypt(account, input),
        "Decrypt" => decrypt(account, input),
        "GenerateDataKey" => generate_data_key(account, input, true),
        "GenerateDataKeyWithoutPlaintext" => generate_data_key(account, input, false),
        "EnableKey" => set_state(account, input, KeyState::Enabled),
        "DisableKey" => set_state(account, input, KeyState::Disabled),
        "ScheduleKeyDeletion" => schedule_key_deletion(account, input),
        "CancelKeyDeletion" => cancel_key_deletion(account, input),
        "EnableKeyRotation" => enable_key_rotation(account, input),
        "GetKeyRotationStatus" => get_key_rotation_status(account, input),
        "RotateKeyOnDemand" => rotate_key_on_demand(account, input),
        "ListKeyRotations" => list_key_rotations(account, input),
        _ => Err(Refusal::unknown_operation()),
    }
}

/// The members of a request, with the refusals for what is missing or of another type.
#[derive(Clone, Copy)]
struct Input<'a>(&'a Map<String, Value>);

impl<'a> Input<'a> {
    fn value(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(self, name: &str) -> Result<Option<&'a str>, Refusal> {
        let wrong = || Refusal::serialization(format!("{name}: a string is expected"));
        self.value(name).map(|value| value.as_str().ok_or_else(wrong)).transpose()
    }

    fn need(self, name: &str) -> Result<&'a str, Refusal> {
        self.text(name)?.ok_or_else(|| Refusal::constraint(name, "Member must not be null"))
    }

    fn integer(self, name: &str) -> Result<Option<i64>, Refusal> {
        let wrong = || Refusal::serialization(format!("{name}: an integer is expected"));
        self.value(name).map(|value| value.as_i64().ok_or_else(wrong)).transpose()
    }

    fn flag(self, name: &str) -> Result<bool, Refusal> {
        let wrong = || Refusal::serialization(format!("{name}: a boolean is expected"));
        self.value(name).map_or(Ok(false), |value| value.as_bool().ok_or_else(wrong))
    }

    /// Base64, between 1 and `max` bytes.
    fn bytes(self, name: &str, max: usize) -> Result<Vec<u8>, Refusal> {
        let bytes = STANDARD
            .decode(self.need(name)?)
            .map_err(|_| Refusal::serialization(format!("{name}: base64 is expected")))?;
        match bytes.len() {
            0 => Err(Refusal::constraint(name, "Member must have length greater than or equal to 1")),
            len if len > max => {
                Err(Refusal::constraint(name, &format!("Member must have length less than or equal to {max}")))
            }
            _ => Ok(bytes),
        }
    }

    fn context(self) -> Result<Context, Refusal> {
        let wrong = || Refusal::serialization("EncryptionContext: a map of strings is expected");
        let Some(value) = self.value("EncryptionContext") else { return Ok(Context::new()) };
        let pairs = value.as_object().ok_or_else(wrong)?;
        pairs.iter().map(|(name, value)| Ok((name.clone(), value.as_str().ok_or_else(wrong)?.to_owned()))).collect()
    }

    fn symmetric(self) -> Result<(), Refusal> {
        match self.text("EncryptionAlgorithm")? {
            None | Some(ALGORITHM) => Ok(()),
            Some(_) => Err(Refusal::validation("Algorithm and key spec do not match.")),
        }
    }

    fn unless_dry_run(self, answer: Value) -> Answer {
        if self.flag("DryRun")? { Err(Refusal::dry_run()) } else { Ok(answer) }
    }

    /// One page of `items`, in the members that every List operation has.
    fn page(self, member: &str, items: Vec<Value>) -> Answer {
        let limit = self.integer("Limit")?.unwrap_or(100);
        let limit = usize::try_from(limit).ok().filter(|limit| (1..=1000).contains(limit));
        let limit = limit.ok_or_else(|| Refusal::constraint("limit", "Member must be between 1 and 1000"))?;
        let marker = self.text("Marker")?.unwrap_or("0").parse::<usize>();
        let start = marker.map_err(|_| Refusal::validation("The marker is not valid."))?;
        let total = items.len();
        let page: Vec<Value> = items.into_iter().skip(start).take(limit).collect();
        let end = start.saturating_add(page.len());
        let mut answer = json!({member: page, "Truncated": end < total});
        if end < total {
            answer["NextMarker"] = json!(end.to_string());
        }
        Ok(answer)
    }
}

fn with_material(mut answer: Value, member: &str, id: String, material_ids: bool) -> Value {
    if material_ids {
        answer[member] = json!(id);
    }
    answer
}

fn metadata(key: &mut Key, material_ids: bool) -> Value {
    let current = key.current().id();
    let (state, enabled) = match key.state {
        KeyState::Enabled => ("Enabled", true),
        KeyState::Disabled => ("Disabled", false),
        KeyState::PendingDeletion { .. } => ("PendingDeletion", false),
    };
    let mut answer = json!({
        "AWSAccountId": ACCOUNT, "KeyId": key.id.to_string(), "Arn": key.arn, "CreationDate": key.created,
        "Enabled": enabled, "Description": key.description, "KeyUsage": "ENCRYPT_DECRYPT", "KeyState": state,
        "Origin": "AWS_KMS", "KeyManager": "CUSTOMER", "CustomerMasterKeySpec": ALGORITHM, "KeySpec": ALGORITHM,
        "EncryptionAlgorithms": [ALGORITHM], "MultiRegion": false,
    });
    if let KeyState::PendingDeletion { date, .. } = key.state {
        answer["DeletionDate"] = json!(date);
    }
    if key.store.is_some() {
        answer["Origin"] = json!("EXTERNAL_KEY_STORE");
        answer["CustomKeyStoreId"] = json!("cks-1234567890abcdef0");
        // SPEC: KeyMaterialId and its like are of keys whose material AWS KMS has.
        return answer;
    }
    with_material(answer, "CurrentKeyMaterialId", current, material_ids)
}

fn create_key(account: &mut Account, input: Input<'_>) -> Answer {
    let spec = input.text("KeySpec")?.or(input.text("CustomerMasterKeySpec")?).unwrap_or(ALGORITHM);
    if spec != ALGORITHM || input.text("KeyUsage")?.unwrap_or("ENCRYPT_DECRYPT") != "ENCRYPT_DECRYPT" {
        return Err(Refusal::unsupported("This fake makes symmetric encryption keys only."));
    }
    let description = input.text("Description")?.unwrap_or_default().to_owned();
    let material_ids = account.material_ids;
    Ok(json!({"KeyMetadata": metadata(account.create_key(description), material_ids)}))
}

fn describe_key(account: &mut Account, input: Input<'_>) -> Answer {
    let material_ids = account.material_ids;
    Ok(json!({"KeyMetadata": metadata(account.key(input.need("KeyId")?)?, material_ids)}))
}

fn list_aliases(account: &mut Account, input: Input<'_>) -> Answer {
    let only = input.text("KeyId")?.map(|sent| account.key_itself(sent).map(|key| key.id)).transpose()?;
    let aliases = account
        .aliases
        .iter()
        .filter(|(_, alias)| only.is_none_or(|id| alias.target == id))
        .map(|(name, alias)| {
            json!({
                "AliasName": name, "AliasArn": account.alias_arn(name), "TargetKeyId": alias.target.to_string(),
                "CreationDate": alias.created, "LastUpdatedDate": alias.updated,
            })
        })
        .collect();
    input.page("Aliases", aliases)
}

fn encrypt(account: &mut Account, input: Input<'_>) -> Answer {
    let plaintext = input.bytes("Plaintext", PLAINTEXT_MAX)?;
    let context = input.context()?;
    input.symmetric()?;
    let key = account.key(input.need("KeyId")?)?;
    key.usable()?;
    let (id, arn, material) = (key.id, key.arn.clone(), key.current());
    let blob = account.secret.seal(id, &material, &context, &plaintext);
    input.unless_dry_run(json!({
        "CiphertextBlob": STANDARD.encode(blob), "KeyId": arn, "EncryptionAlgorithm": ALGORITHM,
    }))
}

fn decrypt(account: &mut Account, input: Input<'_>) -> Answer {
    let blob = input.bytes("CiphertextBlob", CIPHERTEXT_MAX)?;
    let context = input.context()?;
    input.symmetric()?;
    let named = input.text("KeyId")?.map(|sent| account.key(sent).map(|key| key.id)).transpose()?;
    let (key_id, material_id) = {
        let opened = account.secret.open(&blob).ok_or_else(Refusal::invalid_ciphertext)?;
        (opened.key, opened.material)
    };
    if named.is_some_and(|named| named != key_id) {
        return Err(Refusal::incorrect_key());
    }
    let material_ids = account.material_ids;
    let key = account.by_id(key_id)?;
    key.usable()?;
    let (arn, material) = (key.arn.clone(), key.material(&material_id).cloned());
    let material = material.ok_or_else(Refusal::invalid_ciphertext)?;
    let plaintext = account.secret.open(&blob).and_then(|opened| opened.plaintext(&material.cipher, &context));
    let plaintext = plaintext.ok_or_else(Refusal::invalid_ciphertext)?;
    let answer = json!({"Plaintext": STANDARD.encode(plaintext), "KeyId": arn, "EncryptionAlgorithm": ALGORITHM});
    input.unless_dry_run(with_material(answer, "KeyMaterialId", material.id(), material_ids))
}

fn data_key_length(input: Input<'_>) -> Result<usize, Refusal> {
    match (input.text("KeySpec")?, input.integer("NumberOfBytes")?) {
        (Some("AES_256"), None) => Ok(32),
        (Some("AES_128"), None) => Ok(16),
        (Some(_), None) => {
            Err(Refusal::constraint("keySpec", "Member must satisfy enum value set: [AES_256, AES_128]"))
        }
        (None, Some(bytes)) => usize::try_from(bytes)
            .ok()
            .filter(|bytes| (1..=1024).contains(bytes))
            .ok_or_else(|| Refusal::constraint("numberOfBytes", "Member must be between 1 and 1024")),
        _ => Err(Refusal::validation("Please specify either number of bytes or key spec.")),
    }
}

fn generate_data_key(account: &mut Account, input: Input<'_>, with_plaintext: bool) -> Answer {
    let length = data_key_length(input)?;
    let context = input.context()?;
    let material_ids = account.material_ids;
    let key = account.key(input.need("KeyId")?)?;
    key.usable()?;
    let (id, arn, material) = (key.id, key.arn.clone(), key.current());
    let plaintext = &random::<1024>()[..length];
    let blob = account.secret.seal(id, &material, &context, plaintext);
    let mut answer = json!({"CiphertextBlob": STANDARD.encode(blob), "KeyId": arn});
    if with_plaintext {
        answer["Plaintext"] = json!(STANDARD.encode(plaintext));
    }
    input.unless_dry_run(with_material(answer, "KeyMaterialId", material.id(), material_ids))
}

fn set_state(account: &mut Account, input: Input<'_>, state: KeyState) -> Answer {
    let key = account.key_itself(input.need("KeyId")?)?;
    key.not_pending_deletion()?;
    key.state = state;
    Ok(json!({}))
}

fn schedule_key_deletion(account: &mut Account, input: Input<'_>) -> Answer {
    let days = input.integer("PendingWindowInDays")?.unwrap_or(30);
    if !(7..=30).contains(&days) {
        return Err(Refusal::constraint("pendingWindowInDays", "Member must be between 7 and 30"));
    }
    let key = account.key_itself(input.need("KeyId")?)?;
    key.not_pending_deletion()?;
    let date = now() + f64::from(i32::try_from(days).unwrap_or(30)) * DAY;
    key.state = KeyState::PendingDeletion { days, date };
    Ok(json!({"KeyId": key.arn, "DeletionDate": date, "KeyState": "PendingDeletion", "PendingWindowInDays": days}))
}

fn cancel_key_deletion(account: &mut Account, input: Input<'_>) -> Answer {
    let key = account.key_itself(input.need("KeyId")?)?;
    if key.not_pending_deletion().is_ok() {
        return Err(Refusal::not_pending_deletion(&key.arn));
    }
    key.state = KeyState::Disabled;
    Ok(json!({"KeyId": key.arn}))
}

fn enable_key_rotation(account: &mut Account, input: Input<'_>) -> Answer {
    let period = input.integer("RotationPeriodInDays")?.unwrap_or(365);
    if !(90..=2560).contains(&period) {
        return Err(Refusal::constraint("rotationPeriodInDays", "Member must be between 90 and 2560"));
    }
    let key = account.key_itself(input.need("KeyId")?)?;
    key.usable()?;
    key.rotation_period = Some(period);
    Ok(json!({}))
}

fn get_key_rotation_status(account: &mut Account, input: Input<'_>) -> Answer {
    let key = account.key_itself(input.need("KeyId")?)?;
    // SPEC: GetKeyRotationStatus: "while a KMS key is pending deletion, its key rotation status is false".
    let period = key.rotation_period.filter(|_| key.not_pending_deletion().is_ok());
    let mut answer = json!({"KeyId": key.arn, "KeyRotationEnabled": period.is_some()});
    if let Some(period) = period {
        let last = key.materials.last().map_or(key.created, |material| material.since);
        answer["RotationPeriodInDays"] = json!(period);
        answer["NextRotationDate"] = json!(last + f64::from(i32::try_from(period).unwrap_or(365)) * DAY);
    }
    if let Some(since) = key.rotation_running() {
        answer["OnDemandRotationStartDate"] = json!(since);
    }
    Ok(answer)
}

fn rotate_key_on_demand(account: &mut Account, input: Input<'_>) -> Answer {
    let (end, limit) = (account.rotation_end, account.on_demand_limit);
    let key = account.key_itself(input.need("KeyId")?)?;
    key.usable()?;
    if key.rotation_running().is_some() {
        return Err(Refusal::rotation_in_progress(&key.arn));
    }
    if key.on_demand_rotations >= limit {
        return Err(Refusal::limit_exceeded());
    }
    key.begin_rotation(end);
    Ok(json!({"KeyId": key.arn}))
}

fn list_key_rotations(account: &mut Account, input: Input<'_>) -> Answer {
    let material_ids = account.material_ids;
    let all = match input.text("IncludeKeyMaterial")? {
        None | Some("ROTATIONS_ONLY") => false,
        Some("ALL_KEY_MATERIAL") => true,
        Some(_) => return Err(Refusal::constraint("includeKeyMaterial", "Member must satisfy enum value set")),
    };
    let key = account.key_itself(input.need("KeyId")?)?;
    let newest = key.materials.last().map(|material| material.id_bytes);
    let entry = |material: &Material| {
        let current = if Some(material.id_bytes) == newest { "CURRENT" } else { "NON_CURRENT" };
        let mut entry = json!({"KeyId": key.arn, "KeyMaterialState": current});
        if let Some(rotation) = material.rotation {
            entry["RotationType"] = json!(rotation);
            entry["RotationDate"] = json!(material.since);
        }
        with_material(entry, "KeyMaterialId", material.id(), material_ids)
    };
    let listed = key.materials.iter().filter(|material| all || material.rotation.is_some());
    let entries = listed.map(|material| entry(material)).collect();
    input.page("Rotations", entries)
}
