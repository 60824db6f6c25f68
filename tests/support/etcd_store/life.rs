//! An etcd that is killed, comes back on the same address, or serves over TLS.

use super::{EtcdStore, free_port, tool};
use std::path::Path;
use std::process::{Command, Stdio};

impl EtcdStore {
    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on its data, on the same address. Does not wait until it answers.
    pub fn respawn(&mut self) {
        self.child = serve(&self.dir, &self.url, &[]);
    }

    /// Starts it again on its data, over TLS only: certificates and keys are `server.*`, and clients need one of `ca.crt`.
    pub fn respawn_with_tls(&mut self) -> String {
        self.kill();
        let url = format!("https://127.0.0.1:{}", free_port());
        let at = |name: &str| self.dir.join(name).display().to_string();
        let tls = ["--client-cert-auth".to_owned(), "--cert-file".to_owned(), at("server.crt")];
        let more = ["--key-file".to_owned(), at("server.key"), "--trusted-ca-file".to_owned(), at("ca.crt")];
        let flags: Vec<&str> = tls.iter().chain(&more).map(String::as_str).collect();
        self.child = serve(&self.dir, &url, &flags);
        url
    }
}

fn serve(dir: &Path, url: &str, flags: &[&str]) -> std::process::Child {
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut command = Command::new(tool("etcd", "etcd-server").unwrap());
    command.arg("--data-dir").arg(dir.join("etcd")).args(["--listen-client-urls", url, "--advertise-client-urls", url]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--log-level=error"]);
    command.args(["--initial-cluster", &format!("default={peer}")]).args(flags);
    let log = std::fs::File::options().append(true).create(true).open(dir.join("etcd.log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}
