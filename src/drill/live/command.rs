//! A command of the operator's, run as it was given: a program and its arguments, without a shell.

use std::process::{Command, Stdio};
use std::time::Duration;

const ENDS_WITHIN: Duration = Duration::from_secs(300);

/// Runs it to its end.
///
/// # Errors
/// Why it could not be run, or how it ended, with the end of what it said.
///
/// # Cancel safety
/// The program goes on: half a restart is worse than one that nobody waits for.
pub(crate) async fn run(words: &[String]) -> Result<String, String> {
    let (program, arguments) = words.split_first().ok_or_else(|| "there is no command".to_owned())?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output());
    let ran = tokio::time::timeout(ENDS_WITHIN, ran).await;
    let ran = ran.map_err(|_| format!("{program} did not end within {ENDS_WITHIN:?}"))?;
    let ran = ran.map_err(|error| error.to_string())?.map_err(|error| format!("{program} cannot be run: {error}"))?;
    if ran.status.success() {
        return Ok(words.join(" "));
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    Err(format!("{program}: {}: {}", ran.status, said.lines().last().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_command_is_told() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(run(&words("true")).await.unwrap(), "true");
        assert!(run(&words("ls --no-such-flag")).await.unwrap_err().contains("ls: exit status"));
        assert!(run(&words("/no/such/program")).await.unwrap_err().contains("cannot be run"));
    }
}
