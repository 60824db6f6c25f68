//! Who makes the KMS rotate, go away and come back, and counts its calls, when a check asks for it.
//!
//! [`CommandControl`] runs a program of the operator's: no shell, its fixed arguments and one word more, 60 s at most. It knows
//! whether the KMS is away because of it, so that whoever is interrupted can end the outage. Guarantees: what cannot be run
//! at all is told from what ran and said no.

use std::fmt;
use std::io::Read as _;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a count that are read.
const PRINTED_MAX: usize = 64;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The KEK gets a new version, which wraps from now on.
    Rotate,
    /// The KMS stops answering the plugin.
    Outage,
    /// It answers again.
    Restore,
}

impl Act {
    /// The word for the command.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Outage => "outage",
            Self::Restore => "restore",
        }
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It ran and said that it cannot, or did not.
    #[error("{0}")]
    Declined(String),
    /// It could not be run, or did not end by itself.
    #[error("{0}")]
    NotRun(String),
}

/// Done, or why not, some time later.
pub type ActFuture<'a> = Pin<Box<dyn Future<Output = Result<(), ControlError>> + Send + 'a>>;
/// How many, or why nobody knows, some time later.
pub type CountFuture<'a> = Pin<Box<dyn Future<Output = Result<u64, ControlError>> + Send + 'a>>;

/// The word that asks for the number of calls.
const COUNT: &str = "count";
/// What a shell ends with when a program of a script is none, or is not there.
const SHELL_COULD_NOT: [i32; 2] = [126, 127];

/// See the module.
pub trait KmsControl: Send + Sync + fmt::Debug {
    /// Does it.
    ///
    /// # Errors
    /// Why it was not done.
    ///
    /// # Cancel safety
    /// Not cancel safe: it may be half done.
    fn act(&self, act: Act) -> ActFuture<'_>;

    /// How many calls the KMS has had so far, refused ones included.
    ///
    /// # Errors
    /// Why nobody knows.
    ///
    /// # Cancel safety
    /// Cancel safe: it changes nothing.
    fn count(&self) -> CountFuture<'_>;
}

/// A program and its arguments.
#[derive(Clone, Debug)]
pub struct CommandControl {
    program: String,
    arguments: Vec<String>,
    away: Arc<AtomicBool>,
}

/// A process that does not outlive whoever waits for it.
struct Waited(Child);

impl Drop for Waited {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl CommandControl {
    /// Splits a command line on blanks. `None` when there is nothing in it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let program = words.next()?;
        Some(Self { program, arguments: words.collect(), away: Arc::default() })
    }

    /// Whether an outage was asked for and has not been ended.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    async fn act(&self, act: Act) -> Result<(), ControlError> {
        // An outage that was begun and not finished is one.
        self.away.fetch_or(act == Act::Outage, Ordering::SeqCst);
        self.run(act.word()).await?;
        self.away.fetch_and(act != Act::Restore, Ordering::SeqCst);
        Ok(())
    }

    async fn counted(&self) -> Result<u64, ControlError> {
        let printed = self.run(COUNT).await?;
        printed.trim().parse().map_err(|_| ControlError::Declined(self.said(COUNT, &"it printed no number")))
    }

    fn said(&self, word: &str, why: &dyn fmt::Display) -> String {
        format!("`{} … {word}`: {why}", self.program)
    }

    /// What it printed.
    async fn run(&self, word: &str) -> Result<String, ControlError> {
        let not_run = |why: &dyn fmt::Display| ControlError::NotRun(self.said(word, why));
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(word).stdin(Stdio::null());
        // Only what counts is listened to: nobody reads the rest, which may be long.
        command.stdout(if word == COUNT { Stdio::piped() } else { Stdio::null() });
        let mut child = Waited(command.spawn().map_err(|e| not_run(&e))?);
        let ended = tokio::time::timeout(COMMAND_LIMIT, async {
            loop {
                match child.0.try_wait() {
                    Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                    Ok(Some(status)) => return Ok(status),
                    Err(error) => return Err(not_run(&error)),
                }
            }
        })
        .await;
        let status = ended.map_err(|_| not_run(&"it did not end within 60 s"))??;
        match status.code() {
            Some(0) => {
                let mut printed = Vec::new();
                // What a pipe holds, and no more: something that it left behind may keep the pipe open.
                let mut first = [0; PRINTED_MAX];
                if let Some(out) = &mut child.0.stdout {
                    let read = out.read(&mut first).map_err(|error| not_run(&error))?;
                    printed.extend_from_slice(first.get(..read).unwrap_or_default());
                }
                Ok(String::from_utf8_lossy(&printed).into_owned())
            }
            Some(code) if !SHELL_COULD_NOT.contains(&code) => Err(ControlError::Declined(self.said(word, &status))),
            _ => Err(not_run(&status)),
        }
    }
}

impl KmsControl for CommandControl {
    fn act(&self, act: Act) -> ActFuture<'_> {
        Box::pin(self.act(act))
    }

    fn count(&self) -> CountFuture<'_> {
        Box::pin(self.counted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_gets_its_arguments_and_the_word_and_must_succeed() {
        let control = CommandControl::parse("  test rotate   =").unwrap();
        assert_eq!(KmsControl::act(&control, Act::Rotate).await, Ok(()));
        let why = KmsControl::act(&control, Act::Outage).await.unwrap_err();
        assert_eq!(why, ControlError::Declined("`test … outage`: exit status: 1".to_owned()));
        let nobody = CommandControl::parse("/nobody/home").unwrap();
        let why = KmsControl::act(&nobody, Act::Restore).await.unwrap_err();
        assert!(matches!(&why, ControlError::NotRun(why) if why.contains("No such file")), "{why}");
        assert!(CommandControl::parse(" \t").is_none());
    }

    #[tokio::test]
    async fn a_count_is_the_number_that_the_command_prints() {
        let of = async |command: &str| CommandControl::parse(command).unwrap().count().await;
        // The word is the last argument: `expr length count`.
        assert_eq!(of("expr length").await, Ok(5));
        let none = |why: &str| Err(ControlError::Declined(why.to_owned()));
        assert_eq!(of("echo 7").await, none("`echo … count`: it printed no number"));
        assert_eq!(of("true").await, none("`true … count`: it printed no number"));
        assert_eq!(of("false").await, none("`false … count`: exit status: 1"));
    }
}
