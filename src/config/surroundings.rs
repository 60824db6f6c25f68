//! What the environment and the AWS profiles name: files that the SDK reads, ports that it connects to, programs that it runs.
//!
//! Guarantees: nothing is interpreted but the shape of a value, so that a variable which a later SDK brings is understood too: an
//! absolute path is a file, a URL is a port. Values are not kept. Refuses to know what is done with it. SPEC: AWS SDKs and Tools Reference
//! Guide, "Environment variables" and "Shared config and credentials files"; OpenTelemetry's environment variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A profile is a few lines; what is larger is none.
const PROFILE_MAX: u64 = 1 << 20;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Files and directories that are read.
    pub files: Vec<PathBuf>,
    /// TCP ports that are connected to.
    pub ports: Vec<u16>,
    /// The profile that has a program run for credentials.
    pub runs_programs: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn read() -> Self {
        Self::of(std::env::vars_os())
    }

    fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut found = Self::default();
        let (mut profiles, mut home) = ([None, None], None);
        for (name, value) in variables {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            match name {
                "HOME" => home = Some(PathBuf::from(value)),
                "AWS_CONFIG_FILE" => profiles[0] = Some(PathBuf::from(value)),
                "AWS_SHARED_CREDENTIALS_FILE" => profiles[1] = Some(PathBuf::from(value)),
                _ if is_about_us(name) => found.note(value),
                _ => {}
            }
        }
        for (profile, name) in profiles.into_iter().zip(["config", "credentials"]) {
            let usual = || home.as_ref().map(|home| home.join(".aws").join(name));
            if let Some(path) = profile.or_else(usual) {
                found.note_profile(&path);
            }
        }
        found
    }

    fn note_profile(&mut self, path: &Path) {
        self.files.push(path.to_owned());
        let small = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= PROFILE_MAX);
        let text = if small { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            if name.trim() == "credential_process" {
                self.runs_programs = Some(path.to_owned());
            } else {
                self.note(value.trim());
            }
        }
    }

    fn note(&mut self, value: &str) {
        if value.starts_with('/') {
            self.files.push(PathBuf::from(value));
        } else if let Some(port) = port_of(value) {
            self.ports.push(port);
        }
    }
}

fn is_about_us(name: &str) -> bool {
    ["AWS_", "OTEL_", "SSL_CERT_"].iter().any(|prefix| name.starts_with(prefix))
        || name.to_ascii_uppercase().ends_with("_PROXY")
}

/// The TCP port of a URL, or of the `host:port` that proxies are given as.
#[must_use]
pub fn port_of(value: &str) -> Option<u16> {
    let uri: http::Uri = value.parse().ok()?;
    uri.port_u16().or_else(|| match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "what somebody else would have put there")]
    fn put(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
        std::fs::write(path, text).unwrap();
    }

    fn of(variables: &[(&str, &str)]) -> Surroundings {
        Surroundings::of(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn a_path_is_a_file_a_url_is_a_port_and_everything_else_is_nothing() {
        let found = of(&[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
            ("AWS_ENDPOINT_URL_STS", "https://sts.example:8443/x"),
            ("AWS_SECRET_ACCESS_KEY", "abc/def+ghi"),
            ("https_proxy", "proxy.example:3128"),
            ("PATH", "/usr/bin"),
            ("AWS_REGION", "eu-central-1"),
        ]);
        assert_eq!(found.files, [Path::new("/var/run/secrets/token")]);
        assert_eq!(found.ports, [80, 8443, 3128]);
        assert_eq!(found.runs_programs, None);
    }

    #[test]
    fn the_profiles_are_read_where_they_are_and_a_program_in_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        let config = dir.path().join(".aws/config");
        let text = "[default]\nendpoint_url = http://127.0.0.1:4566\nweb_identity_token_file=/t\n";
        put(&config, text);
        let home = dir.path().to_str().unwrap();
        let found = of(&[("HOME", home)]);
        assert_eq!(found.files, [config.clone(), "/t".into(), dir.path().join(".aws/credentials")]);
        assert_eq!((found.ports, found.runs_programs), (vec![4566], None));

        put(&config, "[profile p]\n credential_process = /opt/helper --x\n");
        assert_eq!(of(&[("HOME", home)]).runs_programs, Some(config.clone()));
        let moved = of(&[("HOME", "/nowhere"), ("AWS_CONFIG_FILE", config.to_str().unwrap())]);
        assert_eq!(moved.runs_programs, Some(config));
    }
}
