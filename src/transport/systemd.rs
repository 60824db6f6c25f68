//! The service manager: a socket that it passes to us, and what we tell it about our life.
//!
//! Guarantees: a passed socket is used as it is and never unlinked by us; without a service manager everything here does
//! nothing. Refuses to know: when the plugin is ready. SPEC: sd_listen_fds(3), sd_notify(3), systemd.service(5)
//! `Type=notify-reload`.

use super::socket::BoundSocket;
use kms_v2_api::address::SocketAddress;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::io;
use std::os::unix::net::UnixListener;

/// Why the passed socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// Not exactly one.
    #[error("the service manager passed {0} sockets and one is needed; keep one ListenStream= in the socket unit")]
    Count(usize),
    /// Not a unix stream socket.
    #[error("what the service manager passed is not a unix stream socket; use ListenStream= with a path or an @name")]
    Kind(#[source] io::Error),
    /// Connected, or not yet listening.
    #[error("the service manager passed a socket that does not listen; set Accept=no in the socket unit")]
    NotListening,
    /// It has no path and no name that we can show.
    #[error("the passed socket has no address that kube-apiserver could dial; use ListenStream= with a path")]
    Unnamed,
    /// The system said no.
    #[error("the passed socket cannot be used")]
    System(#[source] io::Error),
}

/// The socket that the service manager passed (LISTEN_FDS), if it did.
///
/// To be called once, before there are other threads: it takes the variables out of the environment, so that no child
/// process believes that they are meant for it.
///
/// # Errors
/// [`ActivationError`] when something was passed that is not exactly one listening unix stream socket.
pub fn activated() -> Result<Option<BoundSocket>, ActivationError> {
    let mut passed = ListenFd::from_env();
    match passed.len() {
        0 => Ok(None),
        1 => {
            let listener = passed.take_unix_listener(0).map_err(ActivationError::Kind)?;
            listener.map(adopt).transpose()
        }
        count => Err(ActivationError::Count(count)),
    }
}

fn adopt(listener: UnixListener) -> Result<BoundSocket, ActivationError> {
    let listens = rustix::net::sockopt::socket_acceptconn(&listener);
    if !listens.map_err(|e| ActivationError::System(e.into()))? {
        return Err(ActivationError::NotListening);
    }
    listener.set_nonblocking(true).map_err(ActivationError::System)?;
    let address = listener.local_addr().map_err(ActivationError::System)?;
    let address = SocketAddress::of_bound(&address).ok_or(ActivationError::Unnamed)?;
    Ok(BoundSocket::foreign(listener, address))
}

/// Tells that the plugin serves, or serves again after [`reloading`].
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// Tells that the configuration is being read again; [`ready`] must follow, whatever comes of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // SPEC: one message; without the time systemd takes the reload for failed.
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => {
            tracing::debug!(target: "kube_kms::transport", %error, "the service manager could not be told of the reload")
        }
    }
}

/// Tells that the plugin is going.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells in one line how things are; shown by `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(&one_line(status))]);
}

/// SECURITY: a line break would start another assignment of the protocol.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(target: "kube_kms::transport", %error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use command_fds::{CommandFdExt, FdMapping};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn a_passed_listener_keeps_its_path_when_we_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        let mut bound = adopt(UnixListener::bind(&path).unwrap()).unwrap();
        assert_eq!(bound.address().to_string(), path.to_str().unwrap());
        assert!(!bound.unlink_if_ours().unwrap());
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_passed_socket_that_does_not_listen_is_refused() {
        let (one, _other) = UnixStream::pair().unwrap();
        let error = adopt(UnixListener::from(OwnedFd::from(one))).unwrap_err();
        assert!(matches!(error, ActivationError::NotListening));
    }

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(one_line("ok\nMAINPID=1"), "ok MAINPID=1");
    }

    /// Not a test of its own: what the child process of the tests below does.
    #[test]
    #[ignore = "run as a child process by the tests below"]
    fn child() {
        reloading();
        match activated() {
            Ok(Some(bound)) => ready(&format!("listening on {}\nX=1", bound.address())),
            Ok(None) => ready("nothing passed"),
            Err(error) => status(&error.to_string()),
        }
        stopping();
    }

    /// Runs `child` with these sockets from fd 3 on, and returns what it told its service manager.
    fn child_with(fds: Vec<OwnedFd>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let count = fds.len();
        let child_fds = 3..;
        let mappings = fds.into_iter().zip(child_fds).map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["systemd::tests::child", "--exact", "--ignored"])
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("LISTEN_FDS", count.to_string())
            .env_remove("LISTEN_PID")
            .fd_mappings(mappings.collect())
            .unwrap()
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(done.success());
        let mut told = String::new();
        let mut buffer = [0; 1024];
        while !told.ends_with("STOPPING=1\n") {
            let n = manager.recv(&mut buffer).unwrap();
            told.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        told
    }

    #[test]
    fn a_child_of_the_service_manager_takes_its_socket_and_tells_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        let told = child_with(vec![UnixListener::bind(&path).unwrap().into()]);
        let (reload, rest) = told.split_once("READY=1\n").unwrap();
        assert!(reload.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told}");
        assert_eq!(rest, format!("STATUS=listening on {} X=1\nSTOPPING=1\n", path.display()));
        assert!(path.exists());
    }

    #[test]
    fn what_is_not_exactly_one_unix_listener_is_refused_in_words() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(child_with(vec![tcp.into()]).contains("STATUS=what the service manager passed is not a unix stream"));
        let dir = tempfile::tempdir().unwrap();
        let two = ["a", "b"].map(|name| UnixListener::bind(dir.path().join(name)).unwrap().into());
        assert!(child_with(two.into()).contains("STATUS=the service manager passed 2 sockets"));
        assert!(child_with(vec![]).contains("STATUS=nothing passed"));
    }
}
