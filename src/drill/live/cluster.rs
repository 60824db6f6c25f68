//! The API servers of a cluster, each asked directly, with the rights of a kubeconfig.
//!
//! Guarantees: every request ends within its time; an error says which API server, what was asked and what it answered.
//! Refuses to know what is asked for.

use crate::live::exposition::Facts;
use crate::live::plan::ClusterPlan;
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// HTTP status; 0 when there was no answer.
    pub(crate) code: u16,
    text: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One API server.
pub(crate) struct Server {
    pub(crate) name: String,
    client: kube::Client,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.name)
    }
}

/// A resource as the API names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
}

impl Resource {
    /// `group/version`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Where its objects are.
    pub(crate) fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let of = if self.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
        format!("{root}/{}{of}/{}", self.api_version(), self.plural)
    }

    /// As kubectl names it.
    pub(crate) fn name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

impl Server {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String, ApiError> {
        let what = format!("{method} {path} at {}", self.name);
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
        let request = request.body(bytes).map_err(|error| ApiError { code: 0, text: format!("{what}: {error}") })?;
        match tokio::time::timeout(PATIENCE, self.client.request_text(request)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(kube::Error::Api(status))) => {
                Err(ApiError { code: status.code, text: format!("{what}: {} {}", status.code, status.message) })
            }
            Ok(Err(error)) => Err(ApiError { code: 0, text: format!("{what}: {}", chain(&error)) }),
            Err(_) => Err(ApiError { code: 0, text: format!("{what}: no answer within {PATIENCE:?}") }),
        }
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let text = self.ask(method, path, body).await?;
        serde_json::from_str(&text)
            .map_err(|error| ApiError { code: 0, text: format!("{path} at {}: {error}", self.name) })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.json(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// Gone, or was not there.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ApiError> {
        match self.ask(Method::DELETE, path, None).await {
            Err(error) if error.code != 404 => Err(error),
            _ => Ok(()),
        }
    }

    /// Its metrics.
    pub(crate) async fn facts(&self) -> Result<Facts, ApiError> {
        Ok(Facts::parse(&self.ask(Method::GET, "/metrics", None).await?))
    }

    /// Whether we may do this there.
    ///
    /// # Errors
    /// When the API server does not say.
    pub(crate) async fn may(&self, verb: &str, resource: &str, namespace: &str) -> Result<bool, ApiError> {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        let attributes = serde_json::json!({"verb": verb, "group": group, "resource": plural, "namespace": namespace});
        let body = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let answer = self.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &body).await?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false))
    }

    /// Finds a resource by its name in the EncryptionConfiguration; built-in ones without their group too.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Resource, String> {
        if let Some((plural, group)) = name.split_once('.') {
            let answer = self.get(&format!("/apis/{group}")).await.map_err(|error| error.to_string())?;
            let version = text(&answer, "/preferredVersion/version");
            return self.in_group(group, &version, plural).await;
        }
        if let Ok(found) = self.in_group("", "v1", name).await {
            return Ok(found);
        }
        let all = self.get("/apis").await.map_err(|error| error.to_string())?;
        for group in all.pointer("/groups").and_then(Value::as_array).into_iter().flatten() {
            let version = text(group, "/preferredVersion/version");
            if let Ok(found) = self.in_group(&text(group, "/name"), &version, name).await {
                return Ok(found);
            }
        }
        Err(format!("no API at {} has a resource {name}", self.name))
    }

    async fn in_group(&self, group: &str, version: &str, plural: &str) -> Result<Resource, String> {
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let answer = self.get(&path).await.map_err(|error| error.to_string())?;
        let all = answer.pointer("/resources").and_then(Value::as_array);
        let found = all.into_iter().flatten().find(|resource| text(resource, "/name") == plural);
        let found = found.ok_or_else(|| format!("{path} at {} has no {plural}", self.name))?;
        Ok(Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            kind: text(found, "/kind"),
            namespaced: found.pointer("/namespaced").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

/// The text there, or nothing.
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Reads the kubeconfig; nothing goes over the network.
pub(crate) async fn servers(plan: &ClusterPlan) -> Result<Vec<Server>, String> {
    let read = plan.kubeconfig.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let kubeconfig = read.map_err(|error| chain(&error))?;
    let options = KubeConfigOptions { context: plan.context.clone(), ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| chain(&error))?;
    let mut urls = plan.servers.clone();
    if urls.is_empty() {
        urls.push(config.cluster_url.to_string());
    }
    let mut servers = Vec::with_capacity(urls.len());
    for url in urls {
        let mut config = config.clone();
        config.cluster_url = url.parse().map_err(|error| format!("{url}: {error}"))?;
        config.connect_timeout = Some(Duration::from_secs(5));
        let client = kube::Client::try_from(config).map_err(|error| format!("{url}: {}", chain(&error)))?;
        servers.push(Server { name: url.trim_end_matches('/').to_owned(), client });
    }
    Ok(servers)
}

/// An error and its sources in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}
