//! systemd: the socket that it passes, and what it is told (sd_listen_fds(3), sd_notify(3)).

use crate::support::site::{BINARY, Running, Site, sealed, uid};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::time::Duration;

/// `serve` in a process that knows its own pid before exec, as systemd's child does.
pub fn serve(site: &Site) -> Command {
    let config = site.write_config();
    let script = "LISTEN_PID=$$ exec \"$0\" serve --config \"$1\"";
    site.process("sh", &["-c", script, BINARY, config.to_str().unwrap()])
}

fn pass(command: &mut Command, sockets: Vec<OwnedFd>) {
    command.env("LISTEN_FDS", sockets.len().to_string());
    let numbered = sockets.into_iter().zip(3..);
    let mappings = numbered.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
}

fn activated(site: &Site, listener: &UnixListener) -> Running {
    let mut command = serve(site);
    pass(&mut command, vec![listener.try_clone().unwrap().into()]);
    site.run(&mut command)
}

struct Manager(UnixDatagram);

impl Manager {
    fn of(site: &Site) -> Self {
        let socket = UnixDatagram::bind(site.dir().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    /// The next message, which must begin with this assignment.
    fn is_told(&self, assignment: &str) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).unwrap();
        let told = String::from_utf8(buffer[..length].to_vec()).unwrap();
        assert!(told.starts_with(&format!("{assignment}\n")), "{assignment} was expected: {told:?}");
        told
    }
}

#[tokio::test]
async fn an_activated_plugin_serves_on_the_passed_socket_and_leaves_it_where_it_is() {
    let mut site = Site::local();
    let elsewhere = site.dir().join("not-bound.sock");
    let listener = UnixListener::bind(site.socket()).unwrap();
    let inode = std::fs::metadata(site.socket()).unwrap().ino();
    site.listen(&format!("{{socket: {}}}", elsewhere.display()));
    let running = activated(&site, &listener);
    running.until_ok().await;
    assert!(!elsewhere.exists(), "the service manager's socket goes before listen.socket");
    let (seed, answer) = sealed(&mut running.client().await).await;
    assert!(running.stop().await.success());
    assert_eq!(std::fs::metadata(site.socket()).unwrap().ino(), inode);

    // Nobody serves now, and a client that connects is not refused: it waits for the next process.
    let waiting = std::os::unix::net::UnixStream::connect(site.socket()).unwrap();
    let again = activated(&site, &listener);
    again.until_ok().await;
    assert_eq!(again.client().await.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    drop(waiting);
}

#[tokio::test]
async fn what_is_meant_for_another_process_is_not_touched() {
    let site = Site::local();
    let config = site.write_config();
    let mut command = site.process(BINARY, &["serve", "--config", config.to_str().unwrap()]);
    let foreign = UnixListener::bind(site.dir().join("foreign.sock")).unwrap();
    pass(&mut command, vec![foreign.into()]);
    command.env("LISTEN_PID", std::process::id().to_string());
    let running = site.run(&mut command);
    running.until_ok().await;
    assert!(site.socket().exists());
}

#[tokio::test]
async fn two_passed_sockets_are_refused_in_words() {
    let site = Site::local();
    let sockets = ["a", "b"].map(|name| UnixListener::bind(site.dir().join(name)).unwrap().into());
    let mut command = serve(&site);
    pass(&mut command, sockets.into());
    let mut running = site.run(&mut command);
    assert_eq!(running.wait().await.code(), Some(3));
    assert!(running.log().contains("passed 2 sockets and one is needed"), "{}", running.log());
}

#[tokio::test]
async fn the_service_manager_is_told_of_readiness_reload_and_the_end() {
    let mut site = Site::local();
    let manager = Manager::of(&site);
    let path = site.dir().join("notify");
    site.env("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut running = site.spawn();
    let ready = manager.is_told("READY=1");
    assert!(ready.contains("STATUS=serving on unix://"), "{ready:?}");
    running.until_ok().await;

    running.signal(Signal::HUP);
    let reloading = manager.is_told("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "in the same message: {reloading:?}");
    manager.is_told("READY=1");

    // A reload that fails ends as well, or systemd waits for it.
    site.write_raw_config("no such key: 1\n");
    running.signal(Signal::HUP);
    manager.is_told("RELOADING=1");
    manager.is_told("READY=1");

    running.signal(Signal::TERM);
    manager.is_told("STOPPING=1");
    assert_eq!(running.wait().await.code(), Some(0));
}

/// A unit of Type=notify that waited for the KMS would hold up the boot for as long as the KMS is away.
#[tokio::test]
async fn readiness_means_that_the_socket_answers_and_does_not_wait_for_the_kms() {
    let mut site = Site::aws();
    site.kms().stop();
    let manager = Manager::of(&site);
    let path = site.dir().join("notify");
    site.env("NOTIFY_SOCKET", path.to_str().unwrap());
    let running = site.spawn();
    manager.is_told("READY=1");
    let refused = running.client().await.status().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
}
