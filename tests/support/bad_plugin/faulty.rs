//! A plugin with one fault on a socket, its KMS in a folder, and the script that controls that KMS.

use super::connection::serve;
use super::fault::Fault;
use super::sound::Sound;
use kms_v2_client::kms::Target;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

/// It serves until it is dropped, on a runtime of its own, as a process has.
pub struct Faulty {
    dir: TempDir,
    target: Target,
    runtime: Option<Runtime>,
}

impl Faulty {
    /// Listens on a socket file before it returns.
    pub fn start(fault: Fault) -> Self {
        let dir = tempfile::Builder::new().prefix("faulty-").tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        Self::on(StdUnixListener::bind(&path).unwrap(), dir, Target::File(path), fault)
    }

    /// Likewise, on an abstract socket.
    pub fn start_abstract(fault: Fault) -> Self {
        let dir = tempfile::Builder::new().prefix("faulty-").tempdir().unwrap();
        let name = format!("faulty-{}", uuid::Uuid::new_v4().simple());
        let listener = StdUnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Self::on(listener, dir, Target::Abstract(name), fault)
    }

    fn on(listener: StdUnixListener, dir: TempDir, target: Target, fault: Fault) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entered = runtime.enter();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        runtime.spawn(serve(listener, Arc::new(Sound::new(fault, dir.path().to_owned()))));
        drop(entered);
        Self { dir, target, runtime: Some(runtime) }
    }

    /// Where clients connect.
    pub fn target(&self) -> Target {
        self.target.clone()
    }

    /// Likewise, as an argument.
    pub fn address(&self) -> String {
        match &self.target {
            Target::File(path) => path.to_str().unwrap().to_owned(),
            Target::Abstract(name) => format!("@{name}"),
        }
    }

    /// Whether the control has taken its KMS away.
    pub fn outage(&self) -> bool {
        self.dir.path().join("outage").exists()
    }

    /// A program for `--kms-control`.
    pub fn control(&self) -> String {
        let (path, kms) = (self.dir.path().join("kms-control"), self.dir.path().display());
        let script = format!(
            "#!/bin/sh\nset -e\ncase \"$1\" in\nrotate) printf . >>{kms}/rotations ;;\noutage) : >{kms}/outage ;;\n\
             restore) rm {kms}/outage ;;\n\
             count) [ -e {kms}/calls ] || : >{kms}/calls; wc -c <{kms}/calls ;;\n*) exit 1 ;;\nesac\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
