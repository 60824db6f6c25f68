//! The IAM and key policies: what they allow is what the plugin does, and no more.

use super::{ROLE, rendered, run, sample};
use crate::support::site::Site;
use serde_json::{Value, json};

const ACCOUNT: &str = "111122223333";
const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER: &str = "arn:aws:kms:us-east-1:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321";

fn statements(text: &str) -> Vec<Value> {
    let policy: Value = serde_json::from_str(text).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    let statements = policy["Statement"].as_array().unwrap().clone();
    for statement in &statements {
        assert!(statement["Sid"].as_str().unwrap().bytes().all(|b| b.is_ascii_alphanumeric()), "{statement}");
        assert_eq!(statement["Effect"], "Allow");
        assert_ne!(statement["Resource"], "arn:aws:kms:*", "{statement}");
    }
    statements
}

/// The statement that allows an action.
fn allowing<'a>(statements: &'a [Value], action: &str, resource: &str) -> Vec<&'a Value> {
    let names = |s: &Value| match &s["Action"] {
        Value::String(one) => one == action,
        many => many.as_array().unwrap().iter().any(|a| a == action),
    };
    statements.iter().filter(|s| names(s) && s["Resource"] == resource).collect()
}

#[test]
fn by_key_the_policy_names_that_key_and_the_context() {
    let mut site = Site::local();
    site.set(&format!(
        "kek: {{aws: {{key: '{KEY}', context: {{cluster: prod}}}}}}\nread: [{{aws: {{key: '{OTHER}'}}}}]\n\
         recovery: {{keks: [{{aws: {{key: '{}'}}}}]}}",
        OTHER.replace("0987dcba", "aaaaaaaa")
    ));
    let all = statements(&rendered(&site.write_config(), &["--kind", "iam"]));
    let ours =
        json!({"StringEquals": {"kms:EncryptionContext:kube-kms": "v1", "kms:EncryptionContext:cluster": "prod"}});
    for action in ["kms:Encrypt", "kms:Decrypt"] {
        assert_eq!(allowing(&all, action, KEY)[0]["Condition"], ours);
    }
    // What only reads may not wrap; what recovers does both.
    assert!(allowing(&all, "kms:Encrypt", OTHER).is_empty() && allowing(&all, "kms:Decrypt", OTHER).len() == 1);
    let recovery = OTHER.replace("0987dcba", "aaaaaaaa");
    assert!(["kms:Encrypt", "kms:Decrypt"].iter().all(|a| allowing(&all, a, &recovery).len() == 1));
    assert_eq!(all.len(), 8, "{all:#?}");
}

/// An alias may have pointed to any key of its account, and a role that may decrypt with any key can be made to open what any
/// of them wrapped. So no statement of any kind has a wildcard, and what the alias means is asked for.
#[test]
fn by_alias_the_keys_are_asked_for_and_named_and_wrapping_goes_through_the_alias() {
    let mut site = Site::local();
    site.set("kek: {aws: {key: alias/prod-cluster, region: eu-central-1, context: {cluster: prod}}}");
    let config = site.write_config();
    for kind in ["iam", "iam-drill"] {
        for arguments in
            [&["--kind", kind, "--account", ACCOUNT][..], &["--kind", kind, "--account", ACCOUNT, "--key-arn", OTHER]]
        {
            let refused = run(&config, arguments);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "{arguments:?}: {said}");
            assert!(said.contains("--key-arn: is needed: kek.aws.key is an alias"), "{said}");
        }
    }
    // The account stands in the ARN.
    let all = statements(&rendered(&config, &["--kind", "iam", "--key-arn", KEY]));
    let wrap = &allowing(&all, "kms:Encrypt", KEY)[0]["Condition"]["StringEquals"];
    assert_eq!(wrap["kms:RequestAlias"], "alias/prod-cluster");
    let context = json!({"kms:EncryptionContext:kube-kms": "v1", "kms:EncryptionContext:cluster": "prod"});
    // Not by the alias: a value from before the alias was re-targeted must open.
    assert_eq!(allowing(&all, "kms:Decrypt", KEY)[0]["Condition"], json!({"StringEquals": context}));
    // The one before it as well, and one that nothing in the configuration can mean is a mistake.
    let before = KEY.replace("1234abcd", "5678abcd");
    let both = statements(&rendered(&config, &["--kind", "iam", "--key-arn", KEY, "--key-arn", &before]));
    assert!(both.iter().all(|s| s["Resource"] == json!([KEY, before])), "{both:#?}");
    let stray = run(&config, &["--kind", "iam", "--key-arn", KEY, "--key-arn", OTHER]);
    assert_eq!(stray.status.code(), Some(2));
    for wrong in
        ["alias/x", "arn:aws:kms:eu-central-1:111122223333:alias/x", "arn:aws:kms:eu-central-1:111122223333:key/*"]
    {
        assert_eq!(run(&config, &["--kind", "iam", "--key-arn", wrong]).status.code(), Some(2), "{wrong}");
    }
    for text in [sample(&["--kind", "iam"]), sample(&["--kind", "iam-drill"])] {
        assert!(!text.contains('*'), "{text}");
    }
}

#[test]
fn the_key_policy_keeps_the_account_in_power_and_gives_the_role_the_least() {
    let all = statements(&sample(&["--kind", "key-policy", "--role", ROLE]));
    assert_eq!(all[0]["Principal"]["AWS"], "arn:aws:iam::111122223333:root");
    let of_role: Vec<_> = all.iter().filter(|s| s["Principal"]["AWS"] == ROLE).collect();
    assert_eq!(of_role.len(), 2);
    assert_eq!(of_role[0]["Action"], json!(["kms:Encrypt", "kms:Decrypt"]));
    assert_eq!(of_role[0]["Condition"]["StringEquals"]["kms:EncryptionContext:cluster"], "prod");
}

#[test]
fn the_drill_may_rotate_and_by_alias_point_that_alias_elsewhere() {
    let mut site = Site::local();
    site.set("kek: {aws: {key: alias/prod-cluster, region: eu-central-1}}");
    let next = KEY.replace("1234abcd", "5678abcd");
    let by_alias = ["--kind", "iam-drill", "--key-arn", KEY, "--key-arn", &next];
    let all = statements(&rendered(&site.write_config(), &by_alias));
    let actions: Vec<_> = all.iter().map(|s| s["Action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["kms:RotateKeyOnDemand", "kms:UpdateAlias"]);
    assert_eq!(all[0]["Condition"]["ForAnyValue:StringEquals"]["kms:ResourceAliases"], "alias/prod-cluster");
    assert_eq!(all[1]["Resource"], json!(["arn:aws:kms:eu-central-1:111122223333:alias/prod-cluster", KEY, next]));
    let by_key = statements(&sample(&["--kind", "iam-drill"]));
    assert_eq!((by_key.len(), &by_key[0]["Resource"]), (1, &json!(KEY)));
}

#[test]
fn nothing_rendered_disables_or_deletes_a_key() {
    for kind in ["iam", "iam-drill"] {
        let text = sample(&["--kind", kind]);
        for word in ["Disable", "Delete", "Deletion", "kms:*", "PutKeyPolicy", "CreateGrant"] {
            assert!(!text.contains(word), "{kind}: {word}");
        }
    }
}

#[test]
fn what_a_policy_cannot_know_is_asked_for() {
    let mut site = Site::local();
    let local = run(&site.write_config(), &["--kind", "iam"]);
    assert_eq!(local.status.code(), Some(3));
    site.set("kek: {aws: {key: alias/x}}");
    let no_region = run(&site.write_config(), &["--kind", "iam", "--account", ACCOUNT]);
    assert_eq!(no_region.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&no_region.stderr).contains("kek.aws.region"));
    let mut site = Site::local();
    site.set("kek: {aws: {key: 1234abcd-12ab-34cd-56ef-1234567890ab, region: eu-central-1}}");
    let config = site.write_config();
    assert_eq!(run(&config, &["--kind", "iam", "--account", ACCOUNT]).status.code(), Some(0));
    for arguments in
        [&["--kind", "iam"][..], &["--kind", "iam", "--account", "12"], &["--kind", "key-policy", "--account", ACCOUNT]]
    {
        let refused = run(&config, arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
    }
}
