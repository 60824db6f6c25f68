//! Who makes the KMS rotate, go away and come back, when a check asks for it.
//!
//! [`CommandControl`] runs a program of the operator's: no shell, its fixed arguments and one word more, 60 s at most. It knows
//! whether the KMS is away because of it, so that whoever is interrupted can end the outage.

use std::fmt;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a command may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
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

/// Done, or why not, some time later.
pub type ActFuture<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// See the module.
pub trait KmsControl: Send + Sync + fmt::Debug {
    /// Does it.
    ///
    /// # Errors
    /// Why it was not done, in words.
    ///
    /// # Cancel safety
    /// Not cancel safe: it may be half done.
    fn act(&self, act: Act) -> ActFuture<'_>;
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

    async fn run(&self, act: Act) -> Result<(), String> {
        let said = |why: &dyn fmt::Display| format!("`{} … {}`: {why}", self.program, act.word());
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(act.word()).stdin(Stdio::null()).stdout(Stdio::null());
        // An outage that was begun and not finished is one.
        self.away.fetch_or(act == Act::Outage, Ordering::SeqCst);
        let mut child = Waited(command.spawn().map_err(|e| said(&e))?);
        let ended = tokio::time::timeout(COMMAND_LIMIT, async {
            loop {
                match child.0.try_wait() {
                    Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                    Ok(Some(status)) => return Ok(status),
                    Err(error) => return Err(said(&error)),
                }
            }
        })
        .await;
        match ended {
            Ok(Ok(status)) if status.success() => {
                self.away.fetch_and(act != Act::Restore, Ordering::SeqCst);
                Ok(())
            }
            Ok(Ok(status)) => Err(said(&status)),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(said(&"it did not end within 60 s")),
        }
    }
}

impl KmsControl for CommandControl {
    fn act(&self, act: Act) -> ActFuture<'_> {
        Box::pin(self.run(act))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_gets_its_arguments_and_the_word_and_must_succeed() {
        let control = CommandControl::parse("  test rotate   =").unwrap();
        assert_eq!(control.act(Act::Rotate).await, Ok(()));
        let why = control.act(Act::Outage).await.unwrap_err();
        assert!(why.contains("`test … outage`") && why.contains("exit status: 1"), "{why}");
        let why = CommandControl::parse("/nobody/home").unwrap().act(Act::Restore).await.unwrap_err();
        assert!(why.contains("No such file"), "{why}");
        assert!(CommandControl::parse(" \t").is_none());
    }
}
