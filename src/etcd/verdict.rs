//! Whether one key_id is all that is needed, from a [`Tally`].
//!
//! Guarantees: says yes only when every value that was counted is known to need no other key: what is damaged, unknown
//! or not counted apart is a no, and so is a key_id that nothing is under. Refuses to know what was not counted: backups,
//! other prefixes, what the API servers write next; whoever prints a yes says so.

use crate::tally::Tally;
use kube_kms_core::key_id::KeyId;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The key_id that was asked about, or its hash.
    pub expected: String,
    /// Whether nothing else is in use.
    pub holds: bool,
    /// Objects under it.
    pub objects: u64,
    /// What else is in use or cannot be told, each as a sentence.
    pub against: Vec<String>,
}

/// `sha256:` and the digest: kube-apiserver's metric label `key_id_hash`.
#[must_use]
pub fn key_id_hash(key_id: &str) -> String {
    KeyId::parse(key_id.to_owned()).map(|key_id| key_id.metric_hash()).unwrap_or_default()
}

/// Whether a key_id is the one that is named, by itself or by its hash.
#[must_use]
pub fn is_named(key_id: &str, name: &str) -> bool {
    key_id == name || key_id_hash(key_id) == name
}

impl Verdict {
    /// Whether everything that was counted needs this key_id or no key. It may be given as its hash.
    #[must_use]
    pub fn expect_only(tally: &Tally, expected: &str) -> Self {
        let mut objects = 0_u64;
        let mut against = Vec::new();
        for group in tally.groups() {
            let n = group.extent.objects;
            if is_named(&group.key_id, expected) {
                objects = objects.saturating_add(n);
            } else {
                let (resource, key_id) = (&group.resource, printable(&group.key_id));
                let provider = printable(&group.provider);
                against.push(format!("{} of {resource} under key_id {key_id}, provider {provider}", count(n)));
            }
        }
        for group in tally.others().into_iter().filter(|group| !group.clear) {
            let (n, resource) = (count(group.extent.objects), &group.resource);
            against.push(match group.form {
                "unknown" | "empty" | "unknown-provider" => {
                    format!("{n} of {resource} in a form ({}) of which the key cannot be told", group.form)
                }
                form => format!("{n} of {resource} under {form}, key or provider {}", printable(&group.name)),
            });
        }
        for group in tally.damaged() {
            let (n, resource, reason) = (count(group.extent.objects), &group.resource, group.damage.reason());
            against.push(format!("{n} of {resource} damaged ({reason}): the key cannot be told"));
        }
        if tally.ungrouped() > 0 {
            against.push(format!("{} in more groups than are told apart", count(tally.ungrouped())));
        }
        if objects == 0 {
            against.push("no object is under the key_id that was named: is it spelled as in the list?".to_owned());
        }
        Self { expected: expected.to_owned(), holds: against.is_empty(), objects, against }
    }
}

fn printable(text: &str) -> std::borrow::Cow<'_, str> {
    kube_kms_core::printable::printable(text.as_bytes())
}

fn count(objects: u64) -> String {
    if objects == 1 { "1 object".to_owned() } else { format!("{objects} objects") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use kms_v2_api::stored;
    use kms_v2_api::v2::EncryptedObject;

    fn kms(key_id: &str, kind: i32) -> Vec<u8> {
        let object = EncryptedObject {
            encrypted_data: vec![1],
            key_id: key_id.to_owned(),
            encrypted_dek_source: vec![1],
            encrypted_dek_source_type: kind,
            ..Default::default()
        };
        stored::encode("demo", &object)
    }

    fn verdict(values: &[Vec<u8>]) -> Verdict {
        let mut tally = Tally::new(b"/registry");
        for value in values {
            tally.add(&Record { key: b"/registry/secrets/a/b", value, mod_revision: 1, create_revision: 1 });
        }
        Verdict::expect_only(&tally, "new")
    }

    #[test]
    fn only_what_needs_no_other_key_is_a_yes() {
        let (new, clear) = (kms("new", 1), b"k8s\0".to_vec());
        let yes = verdict(&[new.clone(), new.clone(), clear.clone(), b"{}".to_vec()]);
        assert_eq!((yes.holds, yes.objects, yes.against.len()), (true, 2, 0));
        for other in [
            kms("old", 1),
            kms("new", 2),
            b"k8s:enc:aescbc:v1:k:x".to_vec(),
            b"k8s:enc:kms:v1:k:x".to_vec(),
            b"k8s:enc:what:".to_vec(),
            b"garbage".to_vec(),
            Vec::new(),
        ] {
            let no = verdict(&[new.clone(), other.clone()]);
            assert!(!no.holds && no.against.len() == 1, "{}: {no:?}", other.escape_ascii());
        }
        assert!(!verdict(&[clear]).holds, "nothing is under the key_id");
        assert!(!verdict(&[]).holds);
    }

    #[test]
    fn a_key_id_may_be_named_by_its_hash() {
        let hash = key_id_hash("new");
        assert!(hash.starts_with("sha256:") && is_named("new", &hash) && is_named("new", "new"));
        assert!(!is_named("new", "sha256:") && !is_named("new", "ne") && !is_named("", "sha256:"));
    }
}
