//! Names of resources in an EncryptionConfiguration: which are allowed, and which stand in the shadow of an earlier one.
//!
//! SPEC: k8s.io/apiserver validation_encryption.go (`validateResourceNames`, `validateResourceOverlap`); earlier stanzas win.

/// Why kube-apiserver refuses a name.
pub(super) fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if name.chars().any(char::is_uppercase) {
        return Some("has capital letters");
    }
    if name == "*" {
        return Some("stands alone; write `*.*` for everything, or `*.` for the core group");
    }
    let group = name.split_once('.').map_or("", |(_, group)| group);
    match group {
        "extensions" => Some("is in the group `extensions`, which is not stored any more"),
        "events.k8s.io" if !name.starts_with("*.") => Some("is stored in the core group: write `events`"),
        _ if group.starts_with('.') || name.starts_with('.') => Some("is not NAME, NAME.GROUP, *.GROUP, `*.` or `*.*`"),
        _ if name.matches('*').count() > usize::from(name.starts_with('*')) && name != "*.*" => {
            Some("has a `*` in a place where none may be")
        }
        _ => None,
    }
}

/// Whether whatever the second names is named by the first already.
pub(super) fn covers(earlier: &str, later: &str) -> bool {
    let group = |name: &str| name.split_once('.').map_or("", |(_, group)| group).to_owned();
    earlier == later
        || earlier == "*.*"
        || earlier.strip_prefix("*.").is_some_and(|of| later != "*.*" && of == group(later))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kube_apiserver_takes_is_taken() {
        for name in ["secrets", "widgets.example.com", "*.apps", "*.", "*.*", "events", "configmaps"] {
            assert_eq!(fault(name), None, "{name}");
        }
        for name in
            ["", "*", "Secrets", "events.events.k8s.io", "deployments.extensions", "*.*.apps", "se*rets", ".apps"]
        {
            assert!(fault(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_wildcard_covers_its_group_and_two_cover_all() {
        for (earlier, later, covered) in [
            ("*.*", "secrets", true),
            ("*.*", "*.apps", true),
            ("*.", "secrets", true),
            ("*.", "deployments.apps", false),
            ("*.apps", "deployments.apps", true),
            ("*.apps", "*.*", false),
            ("*.", "*.*", false),
            ("secrets", "secrets", true),
            ("secrets", "*.", false),
        ] {
            assert_eq!(covers(earlier, later), covered, "{earlier} {later}");
        }
    }
}
