//! Where the socket is: a path, or a name in the abstract namespace.
//!
//! Guarantees: what parses can be bound and can be dialled by kube-apiserver, and [`SocketAddress::endpoint`] is exactly
//! what EncryptionConfiguration needs. Refuses to know: the file system. SPEC: kube-apiserver `kms/util.go` ParseEndpoint
//! (an URL of scheme `unix`; the host is dropped, the path percent-decoded, `/@name` means abstract); unix(7).

use std::fmt;
use std::path::{Path, PathBuf};

/// Bytes of a path or of an abstract name that the kernel takes: sun_path has 108, one is the NUL. SPEC: unix(7).
const SUN_PATH_MAX: usize = 107;
/// Bytes that the temporary name has more than the name: `.` and `.new`.
const TEMPORARY_EXTRA: usize = 5;
/// Bytes of a file socket's path at most, so that its temporary name still fits.
pub const FILE_PATH_MAX: usize = SUN_PATH_MAX - TEMPORARY_EXTRA;

/// The address of the listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAddress(Inner);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Inner {
    File(PathBuf),
    Abstract(String),
}

/// What a [`SocketAddress`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A file: absolute, with a parent and a name.
    File(&'a Path),
    /// A name in the abstract namespace, without the leading `@` or NUL. It has no permissions: only the check of the peer stands.
    Abstract(&'a str),
}

/// Why a text is no address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing there.
    #[error("the socket address is empty; give a path such as /run/kube-kms/kms.sock, or @name")]
    Empty,
    /// NUL, line breaks, tabs: neither the kernel's names nor kube-apiserver's URLs can have them.
    #[error("the socket address has a control character in it; remove it")]
    ControlCharacter,
    /// `unix://host/path`.
    #[error(
        "kube-apiserver would drop the host {0:?} and dial another socket; write three slashes: unix:///path/to/socket"
    )]
    Host(String),
    /// `?` or `#`, where an URL's path ends.
    #[error("kube-apiserver would cut the endpoint at {0:?}; write it as {escaped} or rename the socket", escaped = escape(*.0))]
    CutShort(char),
    /// Another scheme than unix.
    #[error("{0:?} is not a unix socket; give a path, @name, or unix:///path")]
    Scheme(String),
    /// `%` without two hex digits, or bytes that are not UTF-8.
    #[error("the % escapes in the socket address are not valid; write a % itself as %25")]
    Escape,
    /// Ends with a slash, `.` or `..`.
    #[error("{0:?} names a directory; give the path of the socket inside it, such as {0}/kms.sock")]
    Directory(String),
    /// `/@name` as a file.
    #[error("kube-apiserver would take {0:?} for an abstract socket; use @name for that, or another file name")]
    LooksAbstract(String),
    /// Longer than the kernel takes.
    #[error(
        "the socket address has {len} bytes and at most {max} are possible; use a shorter one, such as /run/kube-kms/kms.sock"
    )]
    TooLong {
        /// Bytes it has.
        len: usize,
        /// Bytes it may have.
        max: usize,
    },
}

impl SocketAddress {
    /// Reads `/path`, `path` (taken from `base`), `unix:///path`, `unix:path`, `@name` or `unix:///@name`.
    ///
    /// # Errors
    /// [`AddressError`], whose text says what to write instead.
    pub fn parse(text: &str, base: &Path) -> Result<Self, AddressError> {
        let is_url = text.starts_with("unix:");
        let path = match text.strip_prefix("unix:") {
            Some(rest) => url_path(rest)?,
            None => text.to_owned(),
        };
        if path.is_empty() {
            return Err(AddressError::Empty);
        }
        if path.chars().any(char::is_control) {
            return Err(AddressError::ControlCharacter);
        }
        let name =
            if is_url { path.strip_prefix("/@").or_else(|| path.strip_prefix('@')) } else { path.strip_prefix('@') };
        if let Some(name) = name {
            return Self::abstract_name(name);
        }
        if let Some((scheme, _)) = path.split_once("://") {
            return Err(AddressError::Scheme(scheme.to_owned()));
        }
        Self::file(base.join(&path), &path)
    }

    fn abstract_name(name: &str) -> Result<Self, AddressError> {
        // One byte of sun_path is the leading NUL; there is no trailing one.
        match name.len() {
            0 => Err(AddressError::Empty),
            len if len > SUN_PATH_MAX => Err(AddressError::TooLong { len, max: SUN_PATH_MAX }),
            _ => Ok(Self(Inner::Abstract(name.to_owned()))),
        }
    }

    fn file(path: PathBuf, written: &str) -> Result<Self, AddressError> {
        let trimmed = written.trim_end_matches('/');
        if trimmed.len() != written.len() || written.ends_with("/.") || path.file_name().is_none() || written == "." {
            return Err(AddressError::Directory(trimmed.to_owned()));
        }
        let len = path.as_os_str().len();
        if len > FILE_PATH_MAX {
            return Err(AddressError::TooLong { len, max: FILE_PATH_MAX });
        }
        if path.to_string_lossy().starts_with("/@") {
            return Err(AddressError::LooksAbstract(path.to_string_lossy().into_owned()));
        }
        Ok(Self(Inner::File(path)))
    }

    /// The address of a socket that somebody else bound (systemd), which may be longer than those that we bind.
    #[must_use]
    pub fn of_bound(address: &std::os::unix::net::SocketAddr) -> Option<Self> {
        use std::os::linux::net::SocketAddrExt;
        if let Some(path) = address.as_pathname() {
            return Some(Self(Inner::File(path.to_owned())));
        }
        let name = std::str::from_utf8(address.as_abstract_name()?).ok()?;
        (!name.is_empty()).then(|| Self(Inner::Abstract(name.to_owned())))
    }

    /// The file or the abstract name.
    #[must_use]
    pub fn place(&self) -> Place<'_> {
        match &self.0 {
            Inner::File(path) => Place::File(path),
            Inner::Abstract(name) => Place::Abstract(name),
        }
    }

    /// The value of `endpoint:` in an EncryptionConfiguration that dials this socket.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let path = match &self.0 {
            Inner::File(path) => path.to_string_lossy().into_owned(),
            Inner::Abstract(name) => format!("/@{name}"),
        };
        path.chars().fold("unix://".to_owned(), |mut url, c| {
            if c.is_ascii_alphanumeric() || "/@-._~:+=,".contains(c) {
                url.push(c)
            } else {
                url.push_str(&escape(c))
            }
            url
        })
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::File(path) => write!(f, "{}", path.display()),
            Inner::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// The path of an URL after `unix:`, as Go's net/url reads it.
fn url_path(rest: &str) -> Result<String, AddressError> {
    let path = match rest.strip_prefix("//") {
        Some(after) if after.is_empty() || after.starts_with('/') => after,
        Some(after) => {
            return Err(AddressError::Host(after.split('/').next().unwrap_or_default().to_owned()));
        }
        None => rest,
    };
    if let Some(cut) = path.chars().find(|c| *c == '?' || *c == '#') {
        return Err(AddressError::CutShort(cut));
    }
    unescape(path)
}

fn unescape(path: &str) -> Result<String, AddressError> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let pair = [rest.next().ok_or(AddressError::Escape)?, rest.next().ok_or(AddressError::Escape)?];
        let mut decoded = [0];
        hex::decode_to_slice(pair, &mut decoded).map_err(|_| AddressError::Escape)?;
        bytes.extend_from_slice(&decoded);
    }
    String::from_utf8(bytes).map_err(|_| AddressError::Escape)
}

fn escape(c: char) -> String {
    let mut buffer = [0; 4];
    c.encode_utf8(&mut buffer).bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SocketAddress, AddressError> {
        SocketAddress::parse(text, Path::new("/base"))
    }

    #[test]
    fn every_way_to_write_an_address_means_what_kube_apiserver_takes_it_for() {
        for (text, shown, endpoint) in [
            ("/run/kms.sock", "/run/kms.sock", "unix:///run/kms.sock"),
            ("kms.sock", "/base/kms.sock", "unix:///base/kms.sock"),
            ("a/kms.sock", "/base/a/kms.sock", "unix:///base/a/kms.sock"),
            ("unix:///run/kms.sock", "/run/kms.sock", "unix:///run/kms.sock"),
            ("unix:/run/kms.sock", "/run/kms.sock", "unix:///run/kms.sock"),
            ("unix:kms.sock", "/base/kms.sock", "unix:///base/kms.sock"),
            ("unix:///run/a%20b", "/run/a b", "unix:///run/a%20b"),
            ("/run/50%?", "/run/50%?", "unix:///run/50%25%3F"),
            ("/run/ü", "/run/ü", "unix:///run/%C3%BC"),
            ("@kms", "@kms", "unix:///@kms"),
            ("unix:///@kms", "@kms", "unix:///@kms"),
            ("unix:@kms", "@kms", "unix:///@kms"),
        ] {
            let address = parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(address.endpoint(), endpoint, "{text}");
            assert_eq!(parse(&address.endpoint()).unwrap(), address, "{text}: the endpoint means the same socket");
        }
        assert_eq!(parse("@kms").unwrap().place(), Place::Abstract("kms"));
        assert_eq!(parse("/a/b").unwrap().place(), Place::File(Path::new("/a/b")));
    }

    #[test]
    fn an_address_that_would_dial_another_socket_is_refused() {
        for (text, error) in [
            ("", AddressError::Empty),
            ("unix:", AddressError::Empty),
            ("unix://", AddressError::Empty),
            ("@", AddressError::Empty),
            ("unix:///@", AddressError::Empty),
            ("/run/\0", AddressError::ControlCharacter),
            ("@a\0", AddressError::ControlCharacter),
            ("unix:///run/%00", AddressError::ControlCharacter),
            ("/run/a\nb", AddressError::ControlCharacter),
            ("unix://host/kms.sock", AddressError::Host("host".into())),
            ("unix://run", AddressError::Host("run".into())),
            ("unix://@name", AddressError::Host("@name".into())),
            ("unix:///run/a?b", AddressError::CutShort('?')),
            ("unix:///run/a#b", AddressError::CutShort('#')),
            ("unix:///run/%zz", AddressError::Escape),
            ("unix:///run/%4", AddressError::Escape),
            ("unix:///run/%ff", AddressError::Escape),
            ("tcp://127.0.0.1:80", AddressError::Scheme("tcp".into())),
            ("/run/", AddressError::Directory("/run".into())),
            ("/run/..", AddressError::Directory("/run/..".into())),
            ("/run/.", AddressError::Directory("/run/.".into())),
            (".", AddressError::Directory(".".into())),
            ("/", AddressError::Directory(String::new())),
            ("/@kms", AddressError::LooksAbstract("/@kms".into())),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn a_path_leaves_room_for_the_temporary_name_and_an_abstract_name_for_its_nul() {
        let longest = format!("/{}", "x".repeat(FILE_PATH_MAX - 1));
        assert!(parse(&longest).is_ok());
        assert_eq!(parse(&format!("{longest}x")).unwrap_err(), AddressError::TooLong { len: 103, max: 102 });
        assert!(parse(&format!("@{}", "x".repeat(107))).is_ok());
        assert_eq!(parse(&format!("@{}", "x".repeat(108))).unwrap_err(), AddressError::TooLong { len: 108, max: 107 });
        // The base counts too.
        assert!(SocketAddress::parse(&"x".repeat(98), Path::new("/base")).is_err());
    }
}
