//! Which resource an etcd key is of: `<prefix>/secrets/ns/name`, `<prefix>/example.com/widgets/ns/name`.
//!
//! Guarantees: never fails and never allocates for it; every key has a directory, and the keys of one directory are in a
//! row except at the top level. Refuses to know values. SPEC: the storage prefixes of kube-apiserver's registries; custom
//! resources have their group before their plural; some built-in ones are stored under another word than their own.

use kube_kms_core::printable::printable;

/// Built-in directories whose word is not the name of the resource.
const ODD: [(&str, &str); 10] = [
    ("minions", "nodes"),
    ("controllers", "replicationcontrollers"),
    ("services/specs", "services"),
    ("services/endpoints", "endpoints"),
    ("ingress", "ingresses.networking.k8s.io"),
    ("podsecuritypolicy", "podsecuritypolicies.policy"),
    ("ranges/serviceips", "ranges/serviceips"),
    ("ranges/servicenodeports", "ranges/servicenodeports"),
    ("masterleases", "masterleases"),
    ("peerserverleases", "peerserverleases"),
];
/// Groups of built-in resources whose name does not end in `.k8s.io`.
const BUILT_IN_GROUPS: [&str; 5] = ["apps", "batch", "autoscaling", "policy", "extensions"];
/// Directories whose first word says nothing without the second.
const NESTED: [&[u8]; 2] = [b"services", b"ranges"];
/// What kube-apiserver writes past its encryption, because no REST storage stands before it.
const NEVER_ENCRYPTED: [&[u8]; 4] =
    [b"masterleases", b"peerserverleases", b"ranges/serviceips", b"ranges/servicenodeports"];

/// The directory of a key: what follows the prefix, up to the namespace or the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory<'a>(&'a [u8]);

impl<'a> Directory<'a> {
    /// The directory of this key. A key outside the prefix is taken by its own first segments.
    #[must_use]
    pub fn of(key: &'a [u8], prefix: &[u8]) -> Self {
        let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
        let rest = key.strip_prefix(prefix).unwrap_or(key);
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        let first = segment(rest, 0);
        let nested = NESTED.contains(&first) || first.contains(&b'.');
        // A key that ends where its directory would is a directory of its own.
        let end =
            if nested { segment(rest, first.len().saturating_add(1)).len().saturating_add(first.len()) } else { 0 };
        let end = if nested && end > first.len() { end.saturating_add(1) } else { first.len() };
        Self(rest.get(..end).unwrap_or(rest))
    }

    /// As bytes, for comparing and hashing.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether kube-apiserver stores its keys in clear whatever the EncryptionConfiguration says.
    #[must_use]
    pub fn is_never_encrypted(self) -> bool {
        NEVER_ENCRYPTED.contains(&self.0)
    }

    /// The resource as the EncryptionConfiguration names it, as far as the key tells: built-in ones without their group.
    #[must_use]
    pub fn resource(self) -> String {
        let text = printable(self.0);
        if let Some((_, name)) = ODD.iter().find(|(directory, _)| *directory == text) {
            return (*name).to_owned();
        }
        match text.split_once('/') {
            Some((group, plural)) => format!("{plural}.{group}"),
            None => text.into_owned(),
        }
    }
}

/// The directories in which this resource may be: `secrets`, `widgets.example.com`, `deployments.apps`.
#[must_use]
pub fn directories(resource: &str) -> Vec<String> {
    if let Some((directory, _)) = ODD.iter().find(|(_, name)| *name == resource) {
        return vec![(*directory).to_owned()];
    }
    match resource.split_once('.') {
        None => vec![resource.to_owned()],
        Some((plural, group)) => {
            let own = format!("{group}/{plural}");
            let built_in = BUILT_IN_GROUPS.contains(&group) || group.ends_with(".k8s.io");
            if built_in { vec![plural.to_owned(), own] } else { vec![own] }
        }
    }
}

/// The segment that begins there.
fn segment(path: &[u8], from: usize) -> &[u8] {
    path.get(from..).and_then(|rest| rest.split(|b| *b == b'/').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resource(key: &str) -> String {
        Directory::of(key.as_bytes(), b"/registry").resource()
    }

    #[test]
    fn keys_are_told_by_their_first_segments() {
        for (key, expected) in [
            ("/registry/secrets/ns/name", "secrets"),
            ("/registry/example.com/widgets/ns/name", "widgets.example.com"),
            ("/registry/apiregistration.k8s.io/apiservices/v1.", "apiservices.apiregistration.k8s.io"),
            ("/registry/services/specs/default/kubernetes", "services"),
            ("/registry/services/endpoints/default/kubernetes", "endpoints"),
            ("/registry/minions/node-1", "nodes"),
            ("/registry/controllers/ns/rc", "replicationcontrollers"),
            ("/registry/ranges/serviceips", "ranges/serviceips"),
            ("/registry/deployments/ns/x", "deployments"),
            ("/registry/health", "health"),
            ("/registry/example.com", "example.com"),
            ("/registry/", ""),
            ("/elsewhere/secrets/x", "elsewhere"),
        ] {
            assert_eq!(resource(key), expected, "{key}");
        }
        let with_slash = Directory::of(b"/registry/secrets/ns/name", b"/registry/");
        assert_eq!(with_slash.as_bytes(), b"secrets");
        assert_eq!(Directory::of(b"/registry/\xff\x00/x", b"/registry").resource(), "\\xff\\x00");
    }

    #[test]
    fn only_the_directories_that_are_never_encrypted_are() {
        for key in ["masterleases/10.0.0.1", "peerserverleases/x", "ranges/serviceips", "ranges/servicenodeports"] {
            let key = format!("/registry/{key}");
            assert!(Directory::of(key.as_bytes(), b"/registry").is_never_encrypted(), "{key}");
        }
        for key in ["secrets/masterleases/x", "ranges/other", "example.com/masterleases/x"] {
            let key = format!("/registry/{key}");
            assert!(!Directory::of(key.as_bytes(), b"/registry").is_never_encrypted(), "{key}");
        }
    }

    #[test]
    fn a_resource_is_looked_for_where_it_may_be() {
        assert_eq!(directories("secrets"), ["secrets"]);
        assert_eq!(directories("widgets.example.com"), ["example.com/widgets"]);
        assert_eq!(directories("deployments.apps"), ["deployments", "apps/deployments"]);
        assert_eq!(directories("nodes"), ["minions"]);
        assert_eq!(directories("endpoints"), ["services/endpoints"]);
    }

    proptest! {
        #[test]
        fn any_key_has_a_directory_that_it_begins_with(key: Vec<u8>) {
            let whole = [b"/registry/".as_slice(), &key].concat();
            let directory = Directory::of(&whole, b"/registry");
            let rest = key.strip_prefix(b"/registry").unwrap_or(&key);
            prop_assert!(rest.starts_with(directory.as_bytes()) || key.starts_with(directory.as_bytes()));
            let name = directory.resource();
            prop_assert!(!name.chars().any(char::is_control));
        }
    }
}
