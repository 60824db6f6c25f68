//! A real etcd with a store of its own, a client for filling it, and `etcdctl snapshot save`.
//!
//! Guarantees: etcd and etcdctl are those on the path, or Debian's, unpacked under the target directory and never
//! installed; ports that the kernel chose; a process that ends with its handle. What is missing is a reason to skip with.
//! Refuses to know what the values are: see [`objects`].

mod life;
pub mod objects;
mod rpc;

use super::site::PATIENCE;
use super::skip::target_dir;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rpc::{DeleteRequest, Op, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// Writes in one transaction; etcd takes 128.
const OPS: usize = 100;
/// Transactions under way at once.
const AT_ONCE: usize = 8;
/// Keys of one page of [`EtcdStore::range`].
const PAGE: i64 = 5_000;
/// Bytes of one transaction's values at most; etcd takes 1.5 MiB a request.
const TXN_BYTES: usize = 1 << 20;
const MESSAGE_MAX: usize = 64 << 20;

/// One key as etcd itself gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub mod_revision: i64,
    pub create_revision: i64,
}

/// A running etcd; dropped, it is killed.
pub struct EtcdStore {
    child: Child,
    dir: PathBuf,
    url: String,
    channel: Channel,
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl EtcdStore {
    /// Starts etcd with its data in `dir` and waits until it answers.
    ///
    /// # Errors
    /// Why there is no etcd here.
    pub async fn start(dir: &Path, flags: &[&str]) -> Result<Self, String> {
        let binary = tool("etcd", "etcd-server")?;
        let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let log = File::create(dir.join("etcd.log")).map_err(|e| e.to_string())?;
        let mut command = Command::new(binary);
        command.arg("--data-dir").arg(dir.join("etcd")).args(["--listen-client-urls", &client]).args(flags);
        command.args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer, "--log-level=error"]);
        command.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        let child = command.spawn().map_err(|e| format!("etcd does not start: {e}"))?;
        let channel = Endpoint::from_shared(client.clone()).map_err(|e| e.to_string())?.connect_lazy();
        let store = Self { child, dir: dir.to_path_buf(), url: client, channel };
        let began = Instant::now();
        while let Err(error) = store.try_count(b"\0").await {
            let log = || fs::read_to_string(dir.join("etcd.log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "etcd does not answer: {error}\n{}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(store)
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Writes them all, a hundred in a transaction, in any order: no key may come twice.
    pub async fn put(&self, pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) {
        let mut batches = vec![Vec::new()];
        let mut bytes = 0;
        for (key, value) in pairs {
            bytes += value.len();
            if batches.last().unwrap().len() == OPS || bytes > TXN_BYTES {
                batches.push(Vec::new());
                bytes = value.len();
            }
            batches.last_mut().unwrap().push(Op::Put(PutRequest { key, value }));
        }
        self.transact(batches).await;
    }

    /// Deletes these keys, one by one within transactions.
    pub async fn delete(&self, keys: impl IntoIterator<Item = Vec<u8>>) {
        let ops: Vec<Op> =
            keys.into_iter().map(|key| Op::Delete(DeleteRequest { key, range_end: Vec::new() })).collect();
        self.transact(ops.chunks(OPS).map(<[Op]>::to_vec)).await;
    }

    /// Deletes whatever begins with this.
    pub async fn delete_prefix(&self, prefix: &[u8]) {
        self.transact([vec![Op::Delete(DeleteRequest { key: prefix.to_vec(), range_end: after(prefix) })]]).await;
    }

    /// How many keys etcd counts that begin with this.
    pub async fn count(&self, prefix: &[u8]) -> u64 {
        u64::try_from(self.try_count(prefix).await.unwrap().count).unwrap()
    }

    /// The revision of the store.
    pub async fn revision(&self) -> i64 {
        self.try_count(b"\0").await.unwrap().header.unwrap().revision
    }

    /// Everything that begins with this, at one revision, in the order of the keys.
    pub async fn range(&self, prefix: &[u8]) -> Vec<Stored> {
        let mut found: Vec<Stored> = Vec::new();
        let (mut key, mut revision) = (prefix.to_vec(), 0);
        loop {
            let request = RangeRequest { key, range_end: after(prefix), limit: PAGE, revision, count_only: false };
            let page: RangeResponse = self.call("/etcdserverpb.KV/Range", request).await.unwrap();
            revision = page.header.unwrap().revision.max(revision);
            found.extend(page.kvs.into_iter().map(Stored::from));
            match found.last() {
                Some(last) if page.more => key = [&last.key[..], b"\0"].concat(),
                _ => return found,
            }
        }
    }

    /// Asks for a compaction. etcd removes in the background; `physical` waits for that.
    pub async fn compact(&self, revision: i64, physical: bool) {
        let request = rpc::CompactionRequest { revision, physical };
        let _: rpc::CompactionResponse = self.call("/etcdserverpb.KV/Compact", request).await.unwrap();
    }

    /// `etcdctl snapshot save`.
    ///
    /// # Errors
    /// Why there is no etcdctl here.
    pub fn snapshot(&self, to: &Path) -> Result<(), String> {
        let etcdctl = tool("etcdctl", "etcd-client")?;
        let mut command = Command::new(etcdctl);
        command.env("ETCDCTL_API", "3").args(["--endpoints", self.url(), "snapshot", "save"]).arg(to);
        let ran = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        assert!(ran.status.success(), "etcdctl: {}", String::from_utf8_lossy(&ran.stderr));
        Ok(())
    }

    /// Stops it in order and returns its database, `member/snap/db`.
    pub fn stop(&mut self) -> PathBuf {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
        self.dir.join("etcd/member/snap/db")
    }

    async fn try_count(&self, prefix: &[u8]) -> Result<RangeResponse, tonic::Status> {
        let request =
            RangeRequest { key: prefix.to_vec(), range_end: after(prefix), count_only: true, ..Default::default() };
        self.call("/etcdserverpb.KV/Range", request).await
    }

    async fn transact(&self, batches: impl IntoIterator<Item = Vec<Op>>) {
        let requests = batches.into_iter().map(|ops| {
            let success = ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
            self.call::<_, TxnResponse>("/etcdserverpb.KV/Txn", TxnRequest { success })
        });
        let done: Vec<TxnResponse> = stream::iter(requests).buffer_unordered(AT_ONCE).try_collect().await.unwrap();
        assert!(done.iter().all(|answer| answer.succeeded));
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let codec = tonic_prost::ProstCodec::default();
        let answer = client.unary(tonic::Request::new(request), http::uri::PathAndQuery::from_static(path), codec);
        Ok(answer.await?.into_inner())
    }
}

/// The end of the range of what begins with this. SPEC: etcd: `\0` as the end is the end of all keys.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff && prefix != b"\0" {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Whether the etcd that [`EtcdStore::start`] starts has this flag, by its help.
///
/// # Errors
/// Why there is no etcd here.
pub fn has_flag(flag: &str) -> Result<bool, String> {
    let ran = Command::new(tool("etcd", "etcd-server")?).arg("--help").output().map_err(|e| e.to_string())?;
    let said = [ran.stdout, ran.stderr].concat();
    Ok(String::from_utf8_lossy(&said).split([' ', '\n', '=']).any(|word| word == flag))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The tool on the path, or from Debian's package.
///
/// # Errors
/// Why there is none here.
pub fn tool(name: &str, package: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()) {
        return Ok(found);
    }
    let dir = target_dir().join(package);
    let unpacked = dir.join("root");
    let binary = unpacked.join("usr/bin").join(name);
    if binary.is_file() {
        return Ok(binary);
    }
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    // Unpacked elsewhere and renamed: never half a tool, whoever else does the same.
    let mine = tempfile::tempdir_in(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let run = |command: &mut Command| {
        let ran = command.current_dir(mine.path()).stdin(Stdio::null()).output();
        let ran = ran.map_err(|e| format!("no {name}, and none to be had: {e}"))?;
        let said = String::from_utf8_lossy(&ran.stderr);
        let last = said.lines().last().unwrap_or("no message").to_owned();
        if ran.status.success() { Ok(()) } else { Err(format!("no {name}, and none to be had: {last}")) }
    };
    let download = || run(Command::new("apt-get").args(["download", "--quiet", package]));
    // A new machine has no list of packages yet; without the right to make one, the first failure is what counts.
    download().or_else(|failed| {
        run(Command::new("apt-get").args(["update", "--quiet"])).and_then(|()| download()).map_err(|_| failed)
    })?;
    let file = fs::read_dir(mine.path()).ok().and_then(|mut files| files.next()?.ok());
    let file = file.ok_or_else(|| format!("no {package} package"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg("root"))?;
    // Somebody else may have been faster; theirs is as good.
    let _ = fs::rename(mine.path().join("root"), &unpacked);
    if binary.is_file() { Ok(binary) } else { Err(format!("the package {package} has no {name}")) }
}
