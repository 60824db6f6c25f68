//! As much of kube-apiserver as a drill asks for, several of them over one real etcd: metrics, Secrets, access reviews, Leases, and
//! StorageVersionMigrations with a controller that does as the test says.
//!
//! Guarantees: loopback and ports that the kernel chose; a Secret is stored as an envelope under the key_id that its API server
//! writes with. Refuses to know cryptography: no value opens. The test's API server of `apiserver_whole` has no controllers.

use super::etcd_store::EtcdStore;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::IntoResponse as _;
use kms_v2_api::stored;
use kms_v2_api::v2::EncryptedObject;
use kube_kms_etcd::verdict::key_id_hash;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The provider of the EncryptionConfiguration that there is not.
pub const PROVIDER: &str = "kms-primary";
const MIGRATIONS: &str = "/storageversionmigrations";

/// What the migration controller does with a new object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Rewrites everything, and says so.
    Succeeds,
    /// Says `Failed`.
    Fails,
    /// Says `Running` and no more.
    Hangs,
    /// Rewrites nothing, and says `Succeeded`: as one that was started too early.
    Lies,
}

/// One API server's keys.
#[derive(Clone, Debug)]
pub struct Keys {
    pub status: String,
    pub writes: Option<String>,
}

/// What the API servers share.
#[derive(Debug)]
pub struct Cluster {
    pub servers: Vec<Keys>,
    pub controller: Controller,
    /// Versions of storagemigration.k8s.io that are served.
    pub served: Vec<&'static str>,
    pub forbidden: Vec<String>,
    /// Names of Leases in kube-system beyond those of the servers.
    pub more_leases: Vec<String>,
    /// Every object there is, by path.
    pub objects: BTreeMap<String, Value>,
    /// Bodies of the migrations that were asked for.
    pub asked: Vec<Value>,
}

/// See the module.
#[derive(Clone)]
pub struct FakeApi {
    cluster: Arc<Mutex<Cluster>>,
    etcd: Arc<EtcdStore>,
    pub urls: Vec<String>,
}

/// An object as kube-apiserver stores it, under this key_id.
pub fn envelope(key_id: &str) -> Vec<u8> {
    let object = EncryptedObject {
        encrypted_data: vec![1; 40],
        key_id: key_id.to_owned(),
        encrypted_dek_source: vec![2; 60],
        encrypted_dek_source_type: 1,
        ..Default::default()
    };
    stored::encode(PROVIDER, &object)
}

impl FakeApi {
    /// So many API servers, all on this key_id.
    pub async fn start(etcd: Arc<EtcdStore>, servers: usize, key_id: &str) -> Self {
        let keys = Keys { status: key_id.to_owned(), writes: Some(key_id.to_owned()) };
        let cluster = Arc::new(Mutex::new(Cluster {
            servers: vec![keys; servers],
            controller: Controller::Succeeds,
            served: vec!["v1"],
            forbidden: Vec::new(),
            more_leases: Vec::new(),
            objects: BTreeMap::new(),
            asked: Vec::new(),
        }));
        let mut api = Self { cluster, etcd, urls: Vec::new() };
        for at in 0..servers {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            api.urls.push(format!("http://{}", listener.local_addr().unwrap()));
            let router = Router::new().fallback(answer).with_state((at, api.clone()));
            tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        }
        api
    }

    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// This API server moves to this key_id, by Status; what it writes next is under it.
    pub fn move_to(&self, at: usize, key_id: &str) {
        self.cluster().servers[at].status = key_id.to_owned();
    }

    /// A kubeconfig that names the first of them.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{}'}}}}]\nusers: [{{name: u, user: \
             {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.urls[0]
        )
    }

    /// Everything in etcd under this key_id from now on, as a migration does it.
    pub async fn rewrite(&self, key_id: &str) {
        let keys: Vec<Vec<u8>> = self.etcd.range(b"/registry/").await.into_iter().map(|stored| stored.key).collect();
        self.etcd.put(keys.into_iter().map(|key| (key, envelope(key_id)))).await;
    }

    async fn handle(&self, at: usize, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let ok = |value: Value| (StatusCode::OK, value);
        if path == "/api/v1" {
            return ok(json!({"resources": [{"name": "secrets", "kind": "Secret", "namespaced": true}]}));
        }
        if path.ends_with("/selfsubjectaccessreviews") {
            let of = &body["spec"]["resourceAttributes"];
            let asked = format!("{} {}", of["verb"].as_str().unwrap(), of["resource"].as_str().unwrap());
            let allowed = !self.cluster().forbidden.contains(&asked);
            return ok(json!({"status": {"allowed": allowed}}));
        }
        if path == "/apis/storagemigration.k8s.io" && !self.cluster().served.is_empty() {
            let versions: Vec<Value> =
                self.cluster().served.iter().map(|version| json!({"version": version})).collect();
            return ok(json!({"versions": versions}));
        }
        if path.ends_with("/kube-system/leases") {
            let cluster = self.cluster();
            let own = (0..cluster.servers.len()).map(lease);
            let items: Vec<Value> = own
                .chain(cluster.more_leases.iter().cloned())
                .map(|name| json!({"metadata": {"name": name}}))
                .collect();
            return ok(json!({"items": items}));
        }
        match method {
            Method::POST => self.create(at, path, body).await,
            Method::GET => match self.cluster().objects.get(path) {
                Some(object) => ok(object.clone()),
                None => (StatusCode::NOT_FOUND, not_found(path)),
            },
            Method::DELETE => match self.delete(path).await {
                true => ok(json!({"kind": "Status", "status": "Success"})),
                false => (StatusCode::NOT_FOUND, not_found(path)),
            },
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({})),
        }
    }

    async fn create(&self, at: usize, collection: &str, mut body: Value) -> (StatusCode, Value) {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        if collection.ends_with(MIGRATIONS) {
            let (controller, to) = {
                let mut cluster = self.cluster();
                cluster.asked.push(body.clone());
                (cluster.controller, cluster.servers[at].status.clone())
            };
            let kind = match controller {
                Controller::Succeeds | Controller::Lies => "Succeeded",
                Controller::Fails => "Failed",
                Controller::Hangs => "Running",
            };
            if controller == Controller::Succeeds {
                self.rewrite(&to).await;
            }
            body["status"] =
                json!({"conditions": [{"type": kind, "status": "True", "reason": "Test", "message": "so it is"}]});
        } else {
            let key_id = {
                let mut cluster = self.cluster();
                let keys = &mut cluster.servers[at];
                keys.writes = Some(keys.status.clone());
                keys.status.clone()
            };
            self.etcd.put([(etcd_key(&name), envelope(&key_id))]).await;
        }
        self.cluster().objects.insert(format!("{collection}/{name}"), body.clone());
        (StatusCode::CREATED, body)
    }

    async fn delete(&self, path: &str) -> bool {
        let was = self.cluster().objects.remove(path).is_some();
        if was && !path.contains(MIGRATIONS) {
            self.etcd.delete([etcd_key(path.rsplit('/').next().unwrap())]).await;
        }
        was
    }

    fn metrics(&self, at: usize) -> String {
        let keys = self.cluster().servers[at].clone();
        let id = hash_of(&lease(at));
        let labels = |key_id: &str| {
            format!("apiserver_id_hash=\"{id}\",key_id_hash=\"{}\",provider_name=\"{PROVIDER}\"", key_id_hash(key_id))
        };
        let name = "apiserver_envelope_encryption_key_id_hash";
        let mut page = format!("{name}_status_last_timestamp_seconds{{{}}} 1.7e+09\n", labels(&keys.status));
        if let Some(writes) = &keys.writes {
            let labels = labels(writes);
            page.push_str(&format!(
                "{name}_last_timestamp_seconds{{{labels},transformation_type=\"to_storage\"}} 1.7e+09\n"
            ));
        }
        page
    }
}

async fn answer(
    State((at, api)): State<(usize, FakeApi)>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> axum::response::Response {
    if uri.path() == "/metrics" {
        return api.metrics(at).into_response();
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, value) = api.handle(at, method, uri.path(), body).await;
    (status, value.to_string()).into_response()
}

fn not_found(path: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": path})
}

fn etcd_key(name: &str) -> Vec<u8> {
    format!("/registry/secrets/default/{name}").into_bytes()
}

fn lease(at: usize) -> String {
    format!("apiserver-{at}")
}

/// As kube-apiserver makes the label `apiserver_id_hash`.
fn hash_of(lease: &str) -> String {
    use sha2::{Digest as _, Sha256};
    format!("sha256:{}", hex::encode(Sha256::digest(lease.as_bytes())))
}
