//! What a deployment needs to know of a configuration, checked so that it can be pasted into YAML and unit files as it is.
//!
//! Guarantees: every path is absolute, of plain characters, and lies in a directory of its own, so that no manifest needs
//! quoting and no mount hides a directory of the system. Refuses to know: the syntax of any manifest.

use super::{ManifestError, Options};
use kms_v2_api::address::{Place, SocketAddress};
use kube_kms_config::{Config, KekConfig};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// Environment variables that carry a secret. SECURITY: a manifest is a file in clear, and `kubectl` prints it.
const SECRET_VARIABLES: [&str; 4] = ["SECRET", "TOKEN", "PASSWORD", "PRIVATE"];
/// Words that name the place of a secret and not the secret.
const PLACES_OF_SECRETS: [&str; 2] = ["_FILE", "_URI"];

/// A directory of the host that the plugin sees.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) read_only: bool,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) options: &'a Options,
    pub(super) config_path: String,
    pub(super) state_dir: String,
    /// The socket as a path, or `@name`.
    pub(super) socket: String,
    /// Of a file socket.
    pub(super) socket_dir: Option<String>,
    pub(super) socket_mode: u32,
    /// Keyring files.
    pub(super) keyrings: Vec<String>,
    pub(super) mounts: Vec<Mount>,
    /// Where the probes of kubelet, who is in the same network namespace, find the HTTP port.
    pub(super) http: Option<SocketAddr>,
    /// What the pod may use of memory at most, in MiB.
    pub(super) memory_limit_mib: u64,
    /// What it may lock at most, in MiB: one page for each data key.
    pub(super) memlock_mib: u64,
}

impl<'a> Facts<'a> {
    pub(super) fn of(config: &Config, options: &'a Options) -> Result<Self, ManifestError> {
        check_options(options)?;
        let address = address(config)?;
        let config_path = plain("config", &options.config_path)?;
        let state_dir = plain("stateDir", &config.state_dir)?;
        own_directory("stateDir", &config.state_dir)?;
        let mut mounts = Mounts::default();
        let (socket, socket_dir) = match address.place() {
            Place::Abstract(name) => (format!("@{}", plain_text("listen.socket", name)?), None),
            Place::File(path) => {
                let dir = parent("listen.socket", path)?;
                mounts.add("socket", &dir, false);
                (plain("listen.socket", path)?, Some(dir))
            }
        };
        mounts.add("state", &state_dir, false);
        mounts.add("config", &parent("config", &options.config_path)?, true);
        let mut keyrings = Vec::new();
        for (key, kek) in keks(config) {
            if let KekConfig::Local(local) = kek {
                keyrings.push(plain(&key, &local.keyring)?);
                mounts.add("keyring", &parent(&key, &local.keyring)?, true);
            }
        }
        for path in &options.mounts {
            own_directory("mount", path)?;
            mounts.add("extra", &plain("mount", path)?, true);
        }
        let capacity = u64::try_from(config.settings.cache_capacity).unwrap_or(u64::MAX);
        Ok(Self {
            options,
            config_path,
            state_dir,
            socket,
            socket_dir,
            socket_mode: config.listen.mode,
            keyrings,
            mounts: mounts.0,
            http: config.http.filter(|http| http.port() != 0).map(reachable),
            // An unwrapped DEK takes 1.2 KiB of locked pages and 0.7 for what finds it; more with recovery KEKs and long ARNs.
            memory_limit_mib: 128_u64.saturating_add(capacity.div_ceil(128)),
            memlock_mib: 48_u64.saturating_add(capacity.div_ceil(256)),
        })
    }

    pub(super) const fn is_root(&self) -> bool {
        self.options.user == 0
    }
}

/// The socket's address, which must not depend on where a process is started.
pub(super) fn address(config: &Config) -> Result<SocketAddress, ManifestError> {
    let written = &config.listen.socket;
    let address = SocketAddress::parse(written, Path::new("/"))
        .map_err(|error| ManifestError::config("listen.socket", error.to_string()))?;
    if !written.starts_with(['/', '@']) && !written.starts_with("unix:") {
        return Err(ManifestError::config("listen.socket", "is a relative path; give an absolute one"));
    }
    Ok(address)
}

/// Every KEK, with the key of the configuration that it stands under.
pub(super) fn keks(config: &Config) -> Vec<(String, &KekConfig)> {
    let read = config.read.iter().enumerate().map(|(n, kek)| (format!("read[{n}]"), kek));
    let recovery = config.recovery.keks.iter().enumerate().map(|(n, kek)| (format!("recovery.keks[{n}]"), kek));
    std::iter::once(("kek".to_owned(), &config.kek)).chain(read).chain(recovery).collect()
}

#[derive(Default)]
struct Mounts(Vec<Mount>);

impl Mounts {
    /// Each directory once; one that must be written to is.
    fn add(&mut self, name: &str, path: &str, read_only: bool) {
        if let Some(there) = self.0.iter_mut().find(|mount| mount.path == path) {
            there.read_only &= read_only;
            return;
        }
        let alike =
            self.0.iter().filter(|mount| mount.name.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit()) == name);
        let name = match alike.count() {
            0 => name.to_owned(),
            n => format!("{name}-{n}"),
        };
        self.0.push(Mount { name, path: path.to_owned(), read_only });
    }
}

fn reachable(http: SocketAddr) -> SocketAddr {
    let ip = match http.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, http.port())
}

fn plain(key: &str, path: &Path) -> Result<String, ManifestError> {
    if !path.is_absolute() {
        return Err(ManifestError::config(key, "is a relative path; give an absolute one"));
    }
    plain_text(key, &path.to_string_lossy())
}

/// SECURITY: what needs no quoting cannot be quoted wrongly, in four syntaxes at once.
fn plain_text(key: &str, text: &str) -> Result<String, ManifestError> {
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@".contains(&b));
    if is_plain && !text.split('/').any(|part| part == "..") {
        return Ok(text.to_owned());
    }
    Err(ManifestError::config(
        key,
        "has characters that unit files and YAML would need quoted; use letters, digits and /._-+",
    ))
}

fn parent(key: &str, file: &Path) -> Result<String, ManifestError> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    own_directory(key, dir)?;
    plain(key, dir)
}

fn own_directory(key: &str, dir: &Path) -> Result<(), ManifestError> {
    const SYSTEM: [&str; 6] = ["/var/lib", "/var/run", "/etc/kubernetes", "/usr/local", "/var/log", "/etc/ssl"];
    if dir.components().count() < 3 || SYSTEM.iter().any(|system| dir == Path::new(system)) {
        let what = format!("{} is mounted as a whole; use a directory of its own below it", dir.display());
        return Err(ManifestError::config(key, what));
    }
    Ok(())
}

fn check_options(options: &Options) -> Result<(), ManifestError> {
    let image_ok = |b: u8| b.is_ascii_alphanumeric() || b"/._-:@".contains(&b);
    if !options.image.starts_with(|c: char| c.is_ascii_alphanumeric()) || !options.image.bytes().all(image_ok) {
        return Err(ManifestError::option("image", "is not the name of an image"));
    }
    if let Some(profile) = &options.seccomp
        && (profile.starts_with('/') || plain_text("seccomp", profile).is_err())
    {
        let what = "is relative to the seccomp directory of kubelet, such as profiles/kube-kms.json";
        return Err(ManifestError::option("seccomp-profile", what));
    }
    let mut seen = BTreeMap::new();
    for (name, value) in &options.env {
        check_variable(name, value)?;
        if seen.insert(name, value).is_some() {
            return Err(ManifestError::option("env", format!("{name} is given twice")));
        }
    }
    Ok(())
}

fn check_variable(name: &str, value: &str) -> Result<(), ManifestError> {
    let name_ok = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if !name_ok {
        return Err(ManifestError::option("env", "is NAME=VALUE, and the name of upper-case letters, digits and _"));
    }
    let is_place = PLACES_OF_SECRETS.iter().any(|end| name.ends_with(end));
    if SECRET_VARIABLES.iter().any(|word| name.contains(word)) && !is_place {
        let what =
            format!("{name} would put a secret into a manifest; name a file that has it (AWS_SHARED_CREDENTIALS_FILE)");
        return Err(ManifestError::option("env", what));
    }
    if value.bytes().any(|b| !(b.is_ascii_alphanumeric() || b"/._-+@:,=".contains(&b))) {
        return Err(ManifestError::option("env", format!("{name} has a character that would need quoting")));
    }
    Ok(())
}
