//! The list: a call, what real AWS answers (a summary, or the error's code), and whether moto agrees.
//!
//! Guarantees: every item makes its own keys, so the order does not matter and the server need not be fresh.

use super::peer::{Peer, Said, code};
use Moto::{Agrees, Differs};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use futures_util::future::BoxFuture;

/// Whether moto is right here, or why not.
pub enum Moto {
    Agrees,
    Differs(&'static str),
}

pub struct Item {
    pub name: &'static str,
    pub moto: Moto,
    pub expected: &'static str,
    pub call: fn(Peer) -> BoxFuture<'static, Said<String>>,
}

macro_rules! item {
    ($name:literal, $moto:expr, $expected:literal, $peer:ident => $body:block) => {
        Item {
            name: $name,
            moto: $moto,
            expected: $expected,
            call: |$peer: Peer| -> BoxFuture<'static, Said<String>> { Box::pin(async move { $body }) },
        }
    };
}

const DONE: &str = "done";
const NO_STATES: &str = "moto ignores key states";
const NO_MATERIAL: &str = "moto has no material ids";
const NO_ROTATION: &str = "moto's rotation only appends to a list";

fn done<T>(_: T) -> String {
    DONE.to_owned()
}

/// `yes`, or what was there instead.
fn same(left: &str, right: &str) -> String {
    if left == right { "yes".to_owned() } else { format!("{left} is not {right}") }
}

pub fn items() -> Vec<Item> {
    [keys_and_aliases(), encrypting(), decrypting(), data_keys(), states(), rotating()].into_iter().flatten().collect()
}

fn keys_and_aliases() -> Vec<Item> {
    vec![
        item!("a key is described by its id", Agrees, "yes", peer => {
            let key = peer.key().await?;
            Ok(same(&peer.describe(&key.id).await?.arn.unwrap_or_default(), &key.arn))
        }),
        item!("a key is described by its ARN", Agrees, "yes", peer => {
            let key = peer.key().await?;
            Ok(same(&peer.describe(&key.arn).await?.key_id, &key.id))
        }),
        item!("a key is described by its alias", Agrees, "yes", peer => {
            let (key, alias) = peer.aliased().await?;
            Ok(same(&peer.describe(&alias).await?.key_id, &key.id))
        }),
        item!("a key is described by its alias ARN", Agrees, "yes", peer => {
            let (key, alias) = peer.aliased().await?;
            Ok(same(&peer.describe(&peer.alias_arn(&alias)).await?.key_id, &key.id))
        }),
        item!("a new key is enabled", Agrees, "Enabled", peer => { peer.state(&peer.key().await?.id).await }),
        item!("a key has current material", Differs(NO_MATERIAL), "64 lower-case hex digits", peer => {
            let material = peer.material(&peer.key().await?.id).await?;
            let hex = material.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
            Ok(format!("{}{}", material.len(), if hex { " lower-case hex digits" } else { " of something" }))
        }),
        item!("an unknown key id is not found", Agrees, "NotFoundException", peer => {
            peer.describe(&uuid::Uuid::new_v4().to_string()).await.map(done)
        }),
        item!("an unknown key ARN is not found", Agrees, "NotFoundException", peer => {
            peer.describe(&peer.unknown_key()).await.map(done)
        }),
        item!("an unknown alias is not found", Agrees, "NotFoundException", peer => {
            peer.describe("alias/nobody").await.map(done)
        }),
        item!("an alias is made once", Agrees, "AlreadyExistsException", peer => {
            let (key, alias) = peer.aliased().await?;
            peer.create_alias(&alias, &key.id).await.map(done)
        }),
        item!("an alias begins with alias/", Agrees, "ValidationException", peer => {
            let key = peer.key().await?;
            peer.create_alias("prod", &key.id).await.map(done)
        }),
        item!("an alias points to no alias", Agrees, "ValidationException", peer => {
            let (_, alias) = peer.aliased().await?;
            peer.create_alias("alias/to-an-alias", &alias).await.map(done)
        }),
        item!("an alias moves to another key", Agrees, "yes", peer => {
            let ((_, alias), other) = (peer.aliased().await?, peer.key().await?);
            peer.client.update_alias().alias_name(&alias).target_key_id(&other.id).send().await.map_err(code)?;
            Ok(same(&peer.describe(&alias).await?.key_id, &other.id))
        }),
        item!("an alias that moved leaves old ciphertexts readable", Agrees, "hello", peer => {
            let ((_, alias), other) = (peer.aliased().await?, peer.key().await?);
            let blob = peer.encrypt(&alias, b"hello", &[]).await?;
            peer.client.update_alias().alias_name(&alias).target_key_id(&other.id).send().await.map_err(code)?;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("aliases are listed with their keys", Agrees, "yes", peer => {
            let (key, alias) = peer.aliased().await?;
            let listed = peer.client.list_aliases().send().await.map_err(code)?;
            let found = listed.aliases().iter().find(|entry| entry.alias_name() == Some(&alias));
            Ok(same(found.and_then(|entry| entry.target_key_id()).unwrap_or_default(), &key.id))
        }),
        item!("a deleted alias is not found", Agrees, "NotFoundException", peer => {
            let (_, alias) = peer.aliased().await?;
            peer.client.delete_alias().alias_name(&alias).send().await.map_err(code)?;
            peer.describe(&alias).await.map(done)
        }),
    ]
}

fn encrypting() -> Vec<Item> {
    vec![
        item!("encrypting by alias answers the key's ARN", Agrees, "yes", peer => {
            let (key, alias) = peer.aliased().await?;
            let call = peer.client.encrypt().key_id(&alias).plaintext(Blob::new("hello"));
            Ok(same(&call.send().await.map_err(code)?.key_id.unwrap_or_default(), &key.arn))
        }),
        item!("4096 bytes are encrypted", Agrees, "done", peer => {
            peer.encrypt(&peer.key().await?.id, &[7; 4096], &[]).await.map(done)
        }),
        item!("4097 bytes are refused", Agrees, "ValidationException", peer => {
            peer.encrypt(&peer.key().await?.id, &[7; 4097], &[]).await.map(done)
        }),
        item!("nothing is refused", Agrees, "ValidationException", peer => {
            peer.encrypt(&peer.key().await?.id, b"", &[]).await.map(done)
        }),
        item!("encrypting under an unknown key is refused", Agrees, "NotFoundException", peer => {
            peer.encrypt(&peer.unknown_key(), b"hello", &[]).await.map(done)
        }),
        item!("two ciphertexts of one plaintext differ", Agrees, "differ", peer => {
            let key = peer.key().await?;
            let (one, two) = (peer.encrypt(&key.id, b"hello", &[]).await?, peer.encrypt(&key.id, b"hello", &[]).await?);
            Ok(if one == two { "equal" } else { "differ" }.to_owned())
        }),
        item!("a seed's ciphertext is as long as AWS's", Differs("moto's is shorter"), "150 to 190 bytes", peer => {
            let length = peer.encrypt(&peer.key().await?.id, &[7; 32], &[]).await?.len();
            Ok(if (150..=190).contains(&length) { "150 to 190 bytes".to_owned() } else { format!("{length} bytes") })
        }),
        item!("a dry run of Encrypt says so", Differs("moto ignores DryRun"), "DryRunOperationException", peer => {
            let key = peer.key().await?;
            let call = peer.client.encrypt().key_id(&key.id).plaintext(Blob::new("hello")).dry_run(true);
            call.send().await.map(done).map_err(code)
        }),
    ]
}

fn decrypting() -> Vec<Item> {
    const CONTEXT: &[(&str, &str)] = &[("cluster", "prod"), ("kube-kms", "v1")];
    vec![
        item!("decrypting needs no key id", Agrees, "hello", peer => {
            peer.round_trip(&peer.key().await?.id, None).await
        }),
        item!("decrypting takes a key id", Agrees, "hello", peer => {
            let key = peer.key().await?;
            peer.round_trip(&key.arn, Some(&key.id)).await
        }),
        item!("decrypting takes a key ARN", Agrees, "hello", peer => {
            let key = peer.key().await?;
            peer.round_trip(&key.id, Some(&key.arn)).await
        }),
        item!("decrypting takes an alias", Agrees, "hello", peer => {
            let (_, alias) = peer.aliased().await?;
            peer.round_trip(&alias, Some(&alias)).await
        }),
        item!("decrypting takes an alias ARN", Agrees, "hello", peer => {
            let (_, alias) = peer.aliased().await?;
            let arn = peer.alias_arn(&alias);
            peer.round_trip(&arn, Some(&arn)).await
        }),
        item!("decrypting answers the key's ARN", Agrees, "yes", peer => {
            let key = peer.key().await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            Ok(same(&peer.decrypt_output(None, &blob, &[]).await?.key_id.unwrap_or_default(), &key.arn))
        }),
        item!("the right context opens", Agrees, "hello", peer => {
            let blob = peer.encrypt(&peer.key().await?.id, b"hello", CONTEXT).await?;
            peer.decrypt(None, &blob, CONTEXT).await
        }),
        item!("another context does not open", Agrees, "InvalidCiphertextException", peer => {
            let blob = peer.encrypt(&peer.key().await?.id, b"hello", CONTEXT).await?;
            peer.decrypt(None, &blob, &[("cluster", "test"), ("kube-kms", "v1")]).await
        }),
        item!("a missing context does not open", Agrees, "InvalidCiphertextException", peer => {
            let blob = peer.encrypt(&peer.key().await?.id, b"hello", CONTEXT).await?;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("a context too many does not open", Agrees, "InvalidCiphertextException", peer => {
            let blob = peer.encrypt(&peer.key().await?.id, b"hello", &[]).await?;
            peer.decrypt(None, &blob, CONTEXT).await
        }),
        item!(
            "a context split elsewhere does not open",
            Differs("moto runs names and values together"),
            "InvalidCiphertextException",
            peer => {
                let blob = peer.encrypt(&peer.key().await?.id, b"hello", &[("a", "bc")]).await?;
                peer.decrypt(None, &blob, &[("ab", "c")]).await
            }
        ),
        item!("a flipped last bit does not open", Agrees, "InvalidCiphertextException", peer => {
            let mut blob = peer.encrypt(&peer.key().await?.id, b"hello", &[]).await?;
            *blob.last_mut().ok_or("empty")? ^= 1;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("no flipped byte opens", Agrees, "none", peer => {
            let blob = peer.encrypt(&peer.key().await?.id, b"hello", &[]).await?;
            for index in 0..blob.len() {
                let mut flipped = blob.clone();
                flipped[index] ^= 0x80;
                let said = peer.decrypt(None, &flipped, &[]).await;
                if said != Err("InvalidCiphertextException".to_owned()) {
                    return Ok(format!("byte {index}: {said:?}"));
                }
            }
            Ok("none".to_owned())
        }),
        item!("a cut blob does not open", Agrees, "InvalidCiphertextException", peer => {
            let blob = peer.encrypt(&peer.key().await?.id, b"hello", &[]).await?;
            peer.decrypt(None, &blob[..blob.len() - 1], &[]).await
        }),
        item!("garbage does not open", Differs("moto: AccessDenied"), "InvalidCiphertextException", peer => {
            peer.decrypt(None, &[7; 184], &[]).await
        }),
        item!("6145 bytes are refused", Differs("moto does not look"), "ValidationException", peer => {
            peer.decrypt(None, &[7; 6145], &[]).await
        }),
        item!("another key's id is refused", Differs("moto: AccessDenied"), "IncorrectKeyException", peer => {
            let (key, other) = (peer.key().await?, peer.key().await?);
            peer.round_trip(&key.id, Some(&other.id)).await
        }),
        item!("decrypting under an unknown key is refused", Agrees, "NotFoundException", peer => {
            let key = peer.key().await?;
            peer.round_trip(&key.id, Some(&peer.unknown_key())).await
        }),
        item!("decrypting says which material", Differs(NO_MATERIAL), "yes", peer => {
            let key = peer.key().await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            let opened = peer.decrypt_output(None, &blob, &[]).await?.key_material_id.unwrap_or_default();
            Ok(same(&opened, &peer.material(&key.id).await?))
        }),
    ]
}

fn data_keys() -> Vec<Item> {
    const CONTEXT: &[(&str, &str)] = &[("cluster", "prod")];
    vec![
        item!("a data key decrypts to its plaintext", Agrees, "32 bytes, the same", peer => {
            let key = peer.data_key(&peer.key().await?.id, CONTEXT).await?;
            let plaintext = key.plaintext.ok_or("no plaintext")?.into_inner();
            let blob = key.ciphertext_blob.ok_or("no ciphertext")?.into_inner();
            let opened = peer.decrypt_output(None, &blob, CONTEXT).await?.plaintext.map(Blob::into_inner);
            let compared = if opened.as_ref() == Some(&plaintext) { "the same" } else { "another" };
            Ok(format!("{} bytes, {compared}", plaintext.len()))
        }),
        item!("a data key is bound to its context", Agrees, "InvalidCiphertextException", peer => {
            let key = peer.data_key(&peer.key().await?.id, CONTEXT).await?;
            let blob = key.ciphertext_blob.ok_or("no ciphertext")?.into_inner();
            peer.decrypt_output(None, &blob, &[]).await.map(done)
        }),
        item!("a data key answers the key's ARN", Agrees, "yes", peer => {
            let (key, alias) = peer.aliased().await?;
            Ok(same(&peer.data_key(&alias, &[]).await?.key_id.unwrap_or_default(), &key.arn))
        }),
        item!("a data key says which material", Differs(NO_MATERIAL), "yes", peer => {
            let key = peer.key().await?;
            let made = peer.data_key(&key.id, &[]).await?.key_material_id.unwrap_or_default();
            Ok(same(&made, &peer.material(&key.id).await?))
        }),
        item!("a data key without plaintext decrypts", Agrees, "32 bytes", peer => {
            let key = peer.key().await?;
            let call = peer.client.generate_data_key_without_plaintext().key_id(&key.id);
            let made = call.key_spec(DataKeySpec::Aes256).send().await.map_err(code)?;
            let blob = made.ciphertext_blob.ok_or("no ciphertext")?.into_inner();
            let opened = peer.decrypt_output(None, &blob, &[]).await?.plaintext.ok_or("no plaintext")?;
            Ok(format!("{} bytes", opened.as_ref().len()))
        }),
        item!("a data key has as many bytes as asked for", Agrees, "64 bytes", peer => {
            let key = peer.key().await?;
            let made = peer.client.generate_data_key().key_id(&key.id).number_of_bytes(64).send().await.map_err(code)?;
            Ok(format!("{} bytes", made.plaintext.ok_or("no plaintext")?.as_ref().len()))
        }),
        item!("a data key needs a length", Agrees, "ValidationException", peer => {
            let key = peer.key().await?;
            peer.client.generate_data_key().key_id(&key.id).send().await.map(done).map_err(code)
        }),
        item!("a data key has one length", Agrees, "ValidationException", peer => {
            let key = peer.key().await?;
            let call = peer.client.generate_data_key().key_id(&key.id).key_spec(DataKeySpec::Aes256);
            call.number_of_bytes(32).send().await.map(done).map_err(code)
        }),
    ]
}

fn states() -> Vec<Item> {
    vec![
        item!("a disabled key says so", Agrees, "Disabled", peer => {
            let key = peer.key().await?;
            peer.disable(&key.id).await?;
            peer.state(&key.id).await
        }),
        item!("a disabled key does not encrypt", Differs(NO_STATES), "DisabledException", peer => {
            let key = peer.key().await?;
            peer.disable(&key.id).await?;
            peer.encrypt(&key.id, b"hello", &[]).await.map(done)
        }),
        item!("a disabled key does not decrypt", Differs(NO_STATES), "DisabledException", peer => {
            let key = peer.key().await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            peer.disable(&key.id).await?;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("a disabled key makes no data key", Differs(NO_STATES), "DisabledException", peer => {
            let key = peer.key().await?;
            peer.disable(&key.id).await?;
            peer.data_key(&key.id, &[]).await.map(done)
        }),
        item!("an enabled key decrypts again", Agrees, "hello", peer => {
            let key = peer.key().await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            peer.disable(&key.id).await?;
            peer.enable(&key.id).await?;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("a key is pending deletion for 7 days", Agrees, "PendingDeletion", peer => {
            let key = peer.key().await?;
            peer.schedule_deletion(&key.id, 7).await?;
            peer.state(&key.id).await
        }),
        item!("3 days are too few", Differs("moto accepts 3"), "ValidationException", peer => {
            peer.schedule_deletion(&peer.key().await?.id, 3).await.map(done)
        }),
        item!("31 days are too many", Differs("moto accepts 31"), "ValidationException", peer => {
            peer.schedule_deletion(&peer.key().await?.id, 31).await.map(done)
        }),
        item!("a key pending deletion does not encrypt", Differs(NO_STATES), "KMSInvalidStateException", peer => {
            let key = peer.key().await?;
            peer.schedule_deletion(&key.id, 7).await?;
            peer.encrypt(&key.id, b"hello", &[]).await.map(done)
        }),
        item!("a key pending deletion does not decrypt", Differs(NO_STATES), "KMSInvalidStateException", peer => {
            let key = peer.key().await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            peer.schedule_deletion(&key.id, 7).await?;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("a key pending deletion is not enabled", Differs(NO_STATES), "KMSInvalidStateException", peer => {
            let key = peer.key().await?;
            peer.schedule_deletion(&key.id, 7).await?;
            peer.enable(&key.id).await.map(done)
        }),
        item!("a key taken back from deletion is disabled", Agrees, "Disabled", peer => {
            let key = peer.key().await?;
            peer.schedule_deletion(&key.id, 7).await?;
            peer.client.cancel_key_deletion().key_id(&key.id).send().await.map_err(code)?;
            peer.state(&key.id).await
        }),
        item!("only a pending deletion is cancelled", Differs(NO_STATES), "KMSInvalidStateException", peer => {
            let key = peer.key().await?;
            peer.client.cancel_key_deletion().key_id(&key.id).send().await.map(done).map_err(code)
        }),
        item!("disabling takes no alias", Agrees, "NotFoundException", peer => {
            let (_, alias) = peer.aliased().await?;
            peer.disable(&alias).await.map(done)
        }),
    ]
}

fn rotating() -> Vec<Item> {
    vec![
        item!("automatic rotation is switched on", Agrees, "true", peer => {
            let key = peer.key().await?;
            let call = peer.client.enable_key_rotation().key_id(&key.id).rotation_period_in_days(90);
            call.send().await.map_err(code)?;
            let status = peer.client.get_key_rotation_status().key_id(&key.id).send().await.map_err(code)?;
            Ok(status.key_rotation_enabled.to_string())
        }),
        item!("automatic rotation is off at first", Agrees, "false", peer => {
            let key = peer.key().await?;
            let status = peer.client.get_key_rotation_status().key_id(&key.id).send().await.map_err(code)?;
            Ok(status.key_rotation_enabled.to_string())
        }),
        item!("the rotation status names its key", Differs("moto's has no KeyId"), "yes", peer => {
            let key = peer.key().await?;
            let status = peer.client.get_key_rotation_status().key_id(&key.id).send().await.map_err(code)?;
            Ok(same(&status.key_id.unwrap_or_default(), &key.arn))
        }),
        item!("10 days are too short a period", Differs("moto accepts 10"), "ValidationException", peer => {
            let key = peer.key().await?;
            let call = peer.client.enable_key_rotation().key_id(&key.id).rotation_period_in_days(10);
            call.send().await.map(done).map_err(code)
        }),
        item!("an on-demand rotation changes the material", Differs(NO_ROTATION), "changed", peer => {
            let key = peer.key().await?;
            let before = peer.material(&key.id).await?;
            peer.rotate(&key.id).await?;
            Ok(if peer.material(&key.id).await? == before { "unchanged" } else { "changed" }.to_owned())
        }),
        item!("a rotated key reads what it encrypted before", Agrees, "hello", peer => {
            let key = peer.key().await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            peer.rotate(&key.id).await?;
            peer.decrypt(None, &blob, &[]).await
        }),
        item!("an old ciphertext names its old material", Differs(NO_MATERIAL), "yes", peer => {
            let key = peer.key().await?;
            let before = peer.material(&key.id).await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            peer.rotate(&key.id).await?;
            Ok(same(&peer.decrypt_output(None, &blob, &[]).await?.key_material_id.unwrap_or_default(), &before))
        }),
        item!("a new ciphertext names its new material", Differs(NO_MATERIAL), "yes", peer => {
            let key = peer.key().await?;
            peer.rotate(&key.id).await?;
            let blob = peer.encrypt(&key.id, b"hello", &[]).await?;
            let opened = peer.decrypt_output(None, &blob, &[]).await?.key_material_id.unwrap_or_default();
            Ok(same(&opened, &peer.material(&key.id).await?))
        }),
        item!("rotations are listed", Agrees, "1 ON_DEMAND", peer => {
            let key = peer.key().await?;
            peer.rotate(&key.id).await?;
            let listed = peer.client.list_key_rotations().key_id(&key.id).send().await.map_err(code)?;
            let kind = listed.rotations().first().and_then(|entry| entry.rotation_type());
            Ok(format!("{} {}", listed.rotations().len(), kind.map_or("of no type", |kind| kind.as_str())))
        }),
        item!("a listed rotation has its material", Differs(NO_MATERIAL), "yes", peer => {
            let key = peer.key().await?;
            peer.rotate(&key.id).await?;
            let listed = peer.client.list_key_rotations().key_id(&key.id).send().await.map_err(code)?;
            let listed = listed.rotations().first().and_then(|entry| entry.key_material_id()).unwrap_or_default();
            Ok(same(listed, &peer.material(&key.id).await?))
        }),
        item!("a disabled key does not rotate", Differs(NO_STATES), "DisabledException", peer => {
            let key = peer.key().await?;
            peer.disable(&key.id).await?;
            peer.rotate(&key.id).await.map(done)
        }),
        item!("the 26th on-demand rotation is refused", Differs("moto: 10"), "after 25: LimitExceededException", peer => {
            let key = peer.key().await?;
            for rotation in 0..30 {
                if let Err(code) = peer.rotate(&key.id).await {
                    return Ok(format!("after {rotation}: {code}"));
                }
            }
            Ok("30 rotations".to_owned())
        }),
    ]
}
