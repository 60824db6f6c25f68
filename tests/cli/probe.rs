//! `probe`: against ours, against nobody, and against plugins that do what kube-apiserver does not take.

use crate::support::site::Site;
use crate::support::transcript::{Transcript, run};
use kms_v2_api::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use std::collections::BTreeMap;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

fn probe(site: &Site, more: &[&str]) -> Transcript {
    let socket = site.socket();
    run(site, &[&["probe", "--socket", socket.to_str().unwrap()], more].concat())
}

/// A plugin that does what it is told: plaintext and nonsense instead of ciphertext.
#[derive(Clone)]
struct Rogue {
    version: &'static str,
    healthz: &'static str,
    status_key_id: String,
    encrypt_key_id: String,
    annotation: (String, Vec<u8>),
    ciphertext: usize,
    opens_to: Option<Vec<u8>>,
    status_fails: Option<tonic::Code>,
    encrypt_fails: Option<tonic::Code>,
    decrypt_fails: Option<tonic::Code>,
}

impl Default for Rogue {
    fn default() -> Self {
        Self {
            version: "v2",
            healthz: "ok",
            status_key_id: "key-1".to_owned(),
            encrypt_key_id: "key-1".to_owned(),
            annotation: ("note.example.com".to_owned(), b"x".to_vec()),
            ciphertext: 32,
            opens_to: None,
            status_fails: None,
            encrypt_fails: None,
            decrypt_fails: None,
        }
    }
}

fn fails(code: Option<tonic::Code>) -> Result<(), Status> {
    code.map_or(Ok(()), |code| Err(Status::new(code, "as told")))
}

#[tonic::async_trait]
impl KeyManagementService for Rogue {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        fails(self.status_fails)?;
        let (version, healthz) = (self.version.to_owned(), self.healthz.to_owned());
        Ok(Response::new(StatusResponse { version, healthz, key_id: self.status_key_id.clone() }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        fails(self.encrypt_fails)?;
        let mut ciphertext = request.into_inner().plaintext.clone();
        ciphertext.resize(self.ciphertext, 0);
        let annotations = BTreeMap::from([self.annotation.clone()]);
        Ok(Response::new(EncryptResponse { ciphertext, key_id: self.encrypt_key_id.clone(), annotations }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        fails(self.decrypt_fails)?;
        let plaintext = self.opens_to.clone().unwrap_or_else(|| request.into_inner().ciphertext);
        Ok(Response::new(DecryptResponse { plaintext }))
    }
}

impl Rogue {
    /// Serves on the socket of the site; bound when this returns.
    fn serve(self, site: &Site) -> JoinHandle<()> {
        let listener = UnixListener::bind(site.socket()).unwrap();
        let connections = futures_util::stream::unfold(listener, async |listener| {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(KeyManagementServiceServer::new(self));
            let _ = server.serve_with_incoming(connections).await;
        })
    }

    /// What `probe` says of it.
    fn probed(self, more: &[&str]) -> Transcript {
        let site = Site::local();
        let serving = self.serve(&site);
        let transcript = probe(&site, more);
        serving.abort();
        transcript
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_plugin_does_all_as_kube_apiserver_needs_it() {
    let site = Site::local();
    let _running = site.start().await;
    probe(&site, &[]).printed(
        "socket   unix://DIR/kms.sock
Status N µs  version v2, healthz ok
                     key_id KEY-ID
                     key_id_hash sha256:HASH
Encrypt N µs  32 bytes in, 61 bytes of ciphertext out; each object in etcd grows by 299 bytes
                     dek.kube-kms 77 bytes
                     kek.kube-kms 42 bytes local:UUID
Decrypt N µs  the same bytes came back
all as kube-apiserver needs it
",
    );
    let json = probe(&site, &["--output", "json"]).json();
    assert_eq!(json["status"]["version"], "v2");
    assert_eq!(json["status"]["keyId"], json["encrypt"]["keyId"]);
    assert_eq!(json["decrypt"]["samePlaintext"], true);
    assert_eq!(json["problems"], serde_json::json!([]));
    let names: Vec<&str> =
        json["encrypt"]["annotations"].as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dek.kube-kms", "kek.kube-kms"]);
}

#[test]
fn nobody_there_is_4() {
    let site = Site::local();
    let expected = |cause: &str| {
        format!(
            "error: nobody answers on DIR/kms.sock\ncause: transport error\ncause: {cause}\nhint: is the plugin running, \
             and may this user open its socket?\n"
        )
    };
    for output in ["text", "json"] {
        probe(&site, &["--output", output]).failed(4, &expected("No such file or directory (os error 2)"));
    }
    // A socket that was left behind, and a file that is none.
    drop(std::os::unix::net::UnixListener::bind(site.socket()).unwrap());
    probe(&site, &[]).failed(4, &expected("Connection refused (os error 111)"));
    let keyring = site.keyring().to_str().unwrap().to_owned();
    run(&site, &["probe", "--socket", &keyring]).failed_with(4, &["error: nobody answers on DIR/keyring.json"]);
    run(&site, &["probe", "--socket", "@nobody-is-here-kube-kms"]).failed_with(4, &["error: nobody answers on "]);
}

#[test]
fn a_text_that_is_no_socket_is_2() {
    let site = Site::local();
    for (socket, part) in [
        ("", "the socket address is empty"),
        ("tcp://127.0.0.1:1", "\"tcp\" is not a unix socket"),
        ("unix://host/x.sock", "kube-apiserver would drop the host"),
        ("/run/kube-kms/", "names a directory"),
        (&"/x".repeat(80), "at most"),
    ] {
        run(&site, &["probe", "--socket", socket]).failed_with(
            2,
            &["error: --socket is not the address of a unix socket\ncause: ", part, "hint: give a path"],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_starting_is_4() {
    let site = Site::aws();
    site.kms().stop();
    let running = site.spawn();
    running.until_status(Result::is_err).await.unwrap_err();
    for output in ["text", "json"] {
        probe(&site, &["--output", output]).failed_with(
            4,
            &[
                "error: Status failed\ncause: Unavailable: starting: ",
                "hint: the plugin's log and its /readyz say more",
            ],
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_does_not_answer_is_4_in_time() {
    let site = Site::local();
    // It listens, and nobody ever accepts.
    let _listener = std::os::unix::net::UnixListener::bind(site.socket()).unwrap();
    let began = std::time::Instant::now();
    let answer = probe(&site, &["--timeout", "300ms"]);
    assert_eq!(answer.status, 4, "{}", answer.err);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_fails_exits_by_its_code() {
    for (code, status) in [
        (tonic::Code::Unavailable, 4),
        (tonic::Code::DeadlineExceeded, 4),
        (tonic::Code::ResourceExhausted, 4),
        (tonic::Code::PermissionDenied, 5),
        (tonic::Code::FailedPrecondition, 5),
        (tonic::Code::Internal, 1),
        (tonic::Code::Unimplemented, 1),
    ] {
        let answer = Rogue { status_fails: Some(code), ..Rogue::default() }.probed(&[]);
        answer.failed_with(status, &[&format!("error: Status failed\ncause: {code:?}: as told\nhint: ")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_of_these_tests_is_good_unless_told() {
    let answer = Rogue::default().probed(&[]);
    assert_eq!(answer.status, 0, "{}", answer.out);
    assert!(answer.out.ends_with("all as kube-apiserver needs it\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_kube_apiserver_does_not_take_is_a_problem_and_6() {
    let named = |name: &str| Rogue { annotation: (name.to_owned(), b"x".to_vec()), ..Rogue::default() };
    for (rogue, problem) in [
        (
            Rogue { encrypt_key_id: "key-2".to_owned(), ..Rogue::default() },
            "Encrypt.key_id differs from Status.key_id: kube-apiserver throws the answer away",
        ),
        (
            Rogue { healthz: "sick", ..Rogue::default() },
            "Status.healthz is \"sick\", not \"ok\": the API server is not ready",
        ),
        (Rogue { version: "v1", ..Rogue::default() }, "Status.version is \"v1\"; kube-apiserver takes v2 and v2beta1"),
        (named("example.com/note"), "annotation name \"example.com/note\" is not a fully qualified domain name"),
        (named("note"), "annotation name \"note\" is not a fully qualified domain name"),
        (
            Rogue { annotation: ("a.example.com".to_owned(), vec![0; 32 * 1024]), ..Rogue::default() },
            "Encrypt.annotations have 32781 bytes; kube-apiserver takes 32768",
        ),
        (
            Rogue { ciphertext: 0, opens_to: Some(vec![1]), ..Rogue::default() },
            "Encrypt.ciphertext has 0 bytes; kube-apiserver takes 1 to 1024",
        ),
        (
            Rogue { ciphertext: 1025, ..Rogue::default() },
            "Encrypt.ciphertext has 1025 bytes; kube-apiserver takes 1 to 1024",
        ),
        (
            Rogue { opens_to: Some(vec![0; 32]), ..Rogue::default() },
            "Decrypt returned other bytes than were given to Encrypt",
        ),
        (Rogue { encrypt_fails: Some(tonic::Code::Internal), ..Rogue::default() }, "Encrypt failed: Internal: as told"),
        (Rogue { decrypt_fails: Some(tonic::Code::DataLoss), ..Rogue::default() }, "Decrypt failed: DataLoss: as told"),
        (
            Rogue { status_key_id: String::new(), encrypt_key_id: String::new(), ..Rogue::default() },
            "Status.key_id has 0 bytes; kube-apiserver takes 1 to 1024",
        ),
    ] {
        let text = rogue.clone().probed(&[]);
        assert_eq!(text.status, 6, "{problem}: {}", text.out);
        assert!(text.out.contains(&format!("PROBLEM  {problem}\n")), "{problem}: {}", text.out);
        assert!(!text.out.contains("all as kube-apiserver needs it"));
        let json = rogue.probed(&["--output", "json"]);
        assert_eq!(json.status, 6);
        let problems = json.json()["problems"].as_array().unwrap().clone();
        assert!(problems.iter().any(|p| p == problem), "{problem}: {problems:?}");
    }
}
