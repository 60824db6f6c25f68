//! Takes from the process what serving does not need: files, ports and system calls, for good.
//!
//! Guarantees: what [`Need`] names stays possible and the rest is refused with EACCES or EPERM, in every thread; `auto` never keeps
//! the plugin from starting, and what it could not take is said. To be called before there are other threads, which
//! inherit it. Refuses to know: what a request is. SPEC: SECURITY.md "Host and memory"; landlock(7), seccomp(2).

mod files;
mod need;
mod syscall;

pub use need::Need;

use super::harden::HardeningStep;
use kube_kms_config::surroundings::Surroundings;
use kube_kms_config::{Config, Enforce};
use std::io;
use std::path::Path;

/// A restriction that was required and could not be had.
#[derive(Debug, thiserror::Error)]
#[error("harden.{name} is `required`, and the kernel does not give it")]
pub struct Refused {
    /// `landlock` or `seccomp`.
    pub name: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What the process has left.
#[derive(Debug)]
pub struct Sandbox {
    need: Need,
    files_are_confined: bool,
}

impl Sandbox {
    /// Confines the calling thread and those that it makes, as `config.harden` says.
    ///
    /// # Errors
    /// [`Refused`], where `required` could not be had.
    pub fn enter(
        config: &Config,
        config_file: &Path,
        surroundings: &Surroundings,
    ) -> Result<(Self, Vec<HardeningStep>), Refused> {
        let need = Need::of(config, config_file, surroundings);
        let runs_programs = || match &surroundings.runs_programs {
            // An inherited restriction would stop the program in ways that nobody finds: better none, in words.
            Some(profile) => Err(io::Error::other(format!(
                "{} has a credential_process, which runs a program; give credentials in another way",
                profile.display()
            ))),
            None => Ok(()),
        };
        let apply = |name, enforce, apply: &dyn Fn() -> io::Result<String>| {
            let outcome = match enforce {
                Enforce::None => Ok("switched off in the configuration".to_owned()),
                Enforce::Auto => runs_programs().and_then(|()| apply()),
                Enforce::Required => Ok(apply().map_err(|source| Refused { name, source })?),
            };
            Ok(HardeningStep { name, outcome })
        };
        let landlock = apply("landlock", config.harden.landlock, &|| files::confine(&need))?;
        let seccomp = apply("seccomp", config.harden.seccomp, &|| syscall::confine(syscall::loads_modules(&need)))?;
        let files_are_confined = config.harden.landlock != Enforce::None && landlock.holds();
        Ok((Self { need, files_are_confined }, vec![landlock, seccomp]))
    }

    /// What the KEKs of another configuration would need and this process does not have any more: one line for each.
    #[must_use]
    pub fn lacks(&self, config: &Config) -> Vec<String> {
        if !self.files_are_confined {
            return Vec::new();
        }
        let say =
            |what| format!("{what} was not allowed when this process confined itself; restart it (serve --take-over)");
        self.need.lacks(&Need::of_keks(config)).into_iter().map(say).collect()
    }
}

#[cfg(test)]
mod tests;
