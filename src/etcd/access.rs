//! How to reach etcd: members, TLS, user. What `etcdctl` is given, checked.
//!
//! Guarantees: an [`Access`] names at least one member, and never a password over a connection in clear unless its address
//! says `http://`. Refuses to know flags, the environment and files. SPEC: etcdctl(1): an address without a scheme is
//! taken with TLS when TLS is configured.

use std::fmt;
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

/// PEM texts for TLS.
#[derive(Clone, Default)]
pub struct Tls {
    /// The certificate authorities of the members.
    pub ca: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub identity: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    /// The name that the members' certificates must have, when it is not that of their address.
    pub server_name: Option<String>,
}

/// For an etcd with its own authentication.
#[derive(Clone)]
pub struct User {
    /// Name.
    pub name: String,
    /// Password.
    pub password: Zeroizing<String>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Access {
    pub(super) members: Vec<Member>,
    pub(super) user: Option<User>,
    pub(super) timeout: Duration,
}

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// As a person names it.
    pub(super) address: String,
    pub(super) endpoint: Endpoint,
}

/// What is wrong with it, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no address.
    #[error("no endpoint is named")]
    NoEndpoint,
    /// An address that is none.
    #[error("{0:?} is not the address of an etcd member: HOST:PORT, http://HOST:PORT or https://HOST:PORT")]
    Address(String),
    /// TLS without a certificate authority.
    #[error("{0} is reached over TLS, and no certificate authority is named to know it by")]
    NoCa(String),
    /// A PEM file that holds no such thing.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls(secret, server_name: {:?})", self.server_name)
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({:?}, secret)", self.name)
    }
}

impl Access {
    /// `timeout` bounds the making of a connection.
    ///
    /// # Errors
    /// What is wrong with an address or a certificate.
    pub fn parse(addresses: &[String], tls: &Tls, user: Option<User>, timeout: Duration) -> Result<Self, AccessError> {
        let named = addresses.iter().map(|a| a.trim()).filter(|a| !a.is_empty());
        let members: Vec<_> = named.map(|address| member(address, tls, timeout)).collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err(AccessError::NoEndpoint);
        }
        Ok(Self { members, user, timeout })
    }

    /// The members, as a person names them.
    #[must_use]
    pub fn addresses(&self) -> String {
        let all: Vec<_> = self.members.iter().map(|m| m.address.as_str()).collect();
        all.join(", ")
    }
}

fn member(address: &str, tls: &Tls, timeout: Duration) -> Result<Member, AccessError> {
    let wrong = || AccessError::Address(address.to_owned());
    let configured = tls.ca.is_some() || tls.identity.is_some();
    let url = match address.split_once("://") {
        Some(("http" | "https", _)) => address.trim_end_matches('/').to_owned(),
        Some(_) => return Err(wrong()),
        None if configured => format!("https://{address}"),
        None => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|_| wrong())?;
    let uri = endpoint.uri().clone();
    if uri.host().is_none_or(str::is_empty) || uri.port().is_none() || uri.path().len() > 1 {
        return Err(wrong());
    }
    let mut endpoint = endpoint
        .connect_timeout(timeout)
        .tcp_keepalive(Some(Duration::from_secs(10)))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        // A page is some MiB; the default window makes it wait for many round trips.
        .http2_adaptive_window(true);
    if url.starts_with("https://") {
        let ca = tls.ca.as_ref().ok_or_else(|| AccessError::NoCa(url.clone()))?;
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((certificate, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        endpoint = endpoint.tls_config(config).map_err(|e| AccessError::Tls(chain(&e)))?;
    }
    Ok(Member { address: url, endpoint })
}

/// An error and its sources in one line, without what says nothing.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if text != "transport error" && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    if parts.is_empty() { "transport error".to_owned() } else { parts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(addresses: &[&str], tls: &Tls) -> Result<String, AccessError> {
        let addresses: Vec<_> = addresses.iter().map(|a| (*a).to_owned()).collect();
        Access::parse(&addresses, tls, None, Duration::from_secs(1)).map(|a| a.addresses())
    }

    #[test]
    fn addresses_are_taken_as_etcdctl_takes_them() {
        let none = Tls::default();
        assert_eq!(parse(&["127.0.0.1:2379"], &none).unwrap(), "http://127.0.0.1:2379");
        assert_eq!(parse(&["http://[::1]:1/", " h:2"], &none).unwrap(), "http://[::1]:1, http://h:2");
        assert_eq!(parse(&[], &none), Err(AccessError::NoEndpoint));
        assert_eq!(parse(&[""], &none), Err(AccessError::NoEndpoint));
        for bad in ["ftp://h:1", "h", "http://h", "h:1/path", "h:x", "http://:1"] {
            assert_eq!(parse(&[bad], &none), Err(AccessError::Address(bad.to_owned())), "{bad}");
        }
        assert_eq!(parse(&["https://h:1"], &none), Err(AccessError::NoCa("https://h:1".to_owned())));
        let with_identity = Tls { identity: Some((Vec::new(), Zeroizing::default())), ..Tls::default() };
        assert_eq!(parse(&["h:1"], &with_identity), Err(AccessError::NoCa("https://h:1".to_owned())));
        let bad_ca = Tls { ca: Some(b"no pem".to_vec()), ..Tls::default() };
        assert_eq!(parse(&["http://h:1"], &bad_ca).unwrap(), "http://h:1");
    }

    #[test]
    fn nothing_secret_is_printed() {
        let user = User { name: "root".to_owned(), password: Zeroizing::new("hunter2".to_owned()) };
        let tls = Tls { identity: Some((b"c".to_vec(), Zeroizing::new(b"hunter2".to_vec()))), ..Tls::default() };
        assert!(!format!("{user:?}{tls:?}").contains("hunter2"));
    }
}
