//! The order of providers in an EncryptionConfiguration, as far as a rotation depends on it.
//!
//! Refuses to be a validator: kube-apiserver is one. SPEC: the first provider of a list writes, all of them read.

use serde_json::Value;
use std::path::Path;

/// What writes first, for each of these providers; or why that is not so.
pub(crate) fn check(path: &Path, providers: &[String]) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config: Value = serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    order(&config, providers)
}

fn order(config: &Value, providers: &[String]) -> Result<String, String> {
    let mut writes = Vec::new();
    for stanza in array(config, "/resources") {
        let resources: Vec<&str> = array(stanza, "/resources").filter_map(Value::as_str).collect();
        let resources = resources.join(", ");
        for (at, provider) in array(stanza, "/providers").enumerate() {
            let name = provider.pointer("/kms/name").and_then(Value::as_str).unwrap_or_default();
            if !providers.iter().any(|ours| ours == name) {
                continue;
            }
            if at > 0 {
                return Err(format!("for {resources} {name} only reads: it is entry {at} after the one that writes"));
            }
            writes.push(format!("{name} writes {resources}"));
        }
    }
    match providers.iter().find(|name| !writes.iter().any(|text| text.starts_with(&format!("{name} writes")))) {
        Some(name) => Err(format!("provider {name} is not in it")),
        None => Ok(writes.join("; ")),
    }
}

fn array<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_provider_has_to_be_the_one_that_writes() {
        let kms = |name: &str| json!({"kms": {"name": name, "apiVersion": "v2"}});
        let of = |providers: Value| json!({"resources": [{"resources": ["secrets"], "providers": providers}]});
        let ours = ["a".to_owned()];
        assert_eq!(order(&of(json!([kms("a"), {"identity": {}}])), &ours), Ok("a writes secrets".to_owned()));
        for wrong in [json!([{"identity": {}}, kms("a")]), json!([kms("b"), kms("a")])] {
            assert!(order(&of(wrong), &ours).is_err_and(|why| why.contains("only reads")));
        }
        assert!(order(&of(json!([kms("b")])), &ours).is_err_and(|why| why.contains("not in it")));
    }
}
