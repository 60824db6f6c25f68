//! The provider against a scripted KMS on a loopback socket: what goes over the wire, and what becomes of each answer.
//!
//! Credentials are always given, so that the SDK looks for none; nothing leaves this host. The conformance suite has a
//! KMS that keeps keys; this one only says its lines.

use super::*;
use aws_credential_types::Credentials;
use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube_kms_core::port::Entropy;
use kube_kms_core::uid::Uid;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER: &str = "arn:aws:kms:eu-central-1:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321";
const THEIRS: &str = "arn:aws:kms:eu-central-1:444455556666:key/0987dcba-09fe-87dc-65ba-ab0987654321";
const MATERIAL: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const DEK: [u8; 32] = *b"CANARY-dek-bytes-0123456789-END!";

/// What the KMS does with the next request.
#[derive(Clone)]
enum Line {
    Say(u16, Value),
    Hang,
}

type Heard = Arc<Mutex<Vec<(String, Value)>>>;

/// A KMS that says its lines in order, and what it heard: operation and body.
async fn scripted(lines: Vec<Line>) -> (String, Heard) {
    let heard = Heard::default();
    let lines = Arc::new(Mutex::new(VecDeque::from(lines)));
    let (log, listener) = (heard.clone(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(move |headers: HeaderMap, body: Bytes| async move {
        let op = headers["x-amz-target"].to_str().unwrap().trim_start_matches("TrentService.").to_owned();
        let number = {
            let mut log = log.lock().unwrap();
            log.push((op, serde_json::from_slice(&body).unwrap()));
            log.len()
        };
        let line = lines.lock().unwrap().pop_front();
        match line {
            Some(Line::Say(status, body)) => {
                let id = [("x-amzn-requestid", format!("request-{number}"))];
                (StatusCode::from_u16(status).unwrap(), id, body.to_string())
            }
            Some(Line::Hang) | None => std::future::pending().await,
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, heard)
}

fn sdk(credentials: SharedCredentialsProvider) -> SdkConfig {
    SdkConfig::builder().behavior_version(BehaviorVersion::latest()).credentials_provider(credentials).build()
}

fn kek_at(key: &str, url: &str) -> AwsKek {
    let settings = AwsSettings::parse(key, Some("eu-central-1"), Some(url)).unwrap();
    let credentials = Credentials::new("AKIDEXAMPLE", "CANARY-secret-access-key", None, None, "test");
    AwsKek::connect_with(settings, &sdk(SharedCredentialsProvider::new(credentials))).unwrap()
}

fn call() -> KekCall {
    KekCall { timeout: Duration::from_secs(10), uid: Some(Uid::parse("uid-1")) }
}

fn context() -> WrapContext {
    WrapContext::new(BTreeMap::from([("cluster".to_owned(), "prod".to_owned())]))
}

#[derive(Debug)]
struct Canary;

impl Entropy for Canary {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        bytes.copy_from_slice(&DEK);
        Ok(())
    }
}

fn dek() -> DekBytes {
    DekBytes::generate(&Canary).unwrap()
}

fn refuse(code: &str) -> Line {
    Line::Say(400, json!({"__type": code, "message": "said so"}))
}

fn encrypted(key: &str) -> Line {
    Line::Say(200, json!({"CiphertextBlob": BASE64.encode(b"wrapped"), "KeyId": key}))
}

fn decrypted(key: &str) -> Line {
    Line::Say(200, json!({"Plaintext": BASE64.encode(DEK), "KeyId": key, "KeyMaterialId": MATERIAL}))
}

async fn wrap(kek: &AwsKek) -> Result<Wrapped, Fault> {
    kek.wrap_dek(&dek(), &context(), &call()).await
}

async fn unwrap(kek: &AwsKek, arn: &str) -> Result<Unwrapped, Fault> {
    let named = KekRef::new(KekKind::AWS, arn).unwrap();
    kek.unwrap_dek(&named, &WrappedDek::parse(b"wrapped".to_vec()).unwrap(), &context(), &call()).await
}

fn reason<T: fmt::Debug>(outcome: Result<T, Fault>) -> Reason {
    outcome.unwrap_err().reason()
}

#[tokio::test]
async fn wrap_sends_the_configured_name_and_the_context_and_believes_the_arn_in_the_answer() {
    let (url, heard) = scripted(vec![encrypted(ARN)]).await;
    let wrapped = wrap(&kek_at("alias/prod", &url)).await.unwrap();
    assert_eq!(wrapped.kek.as_str(), format!("aws:{ARN}"));
    assert_eq!(wrapped.dek.as_bytes(), b"wrapped");
    let sent = json!({
        "KeyId": "alias/prod", "Plaintext": BASE64.encode(DEK),
        "EncryptionContext": {"cluster": "prod", "kube-kms": "v1"},
    });
    assert_eq!(*heard.lock().unwrap(), [("Encrypt".to_owned(), sent)]);
}

#[tokio::test]
async fn unwrap_sends_the_arn_of_the_annotation_and_learns_the_version_from_the_same_answer() {
    let (url, heard) =
        scripted(vec![decrypted(OTHER), Line::Say(200, json!({"Plaintext": BASE64.encode(DEK), "KeyId": OTHER}))])
            .await;
    let kek = kek_at("alias/prod", &url);
    let unwrapped = unwrap(&kek, OTHER).await.unwrap();
    assert!(unwrapped.dek.same_as(&dek()));
    assert_eq!(unwrapped.version.kek.identity(), OTHER);
    assert_eq!(unwrapped.version.version, MATERIAL);
    assert_eq!(unwrap(&kek, OTHER).await.unwrap().version.version, "", "a key without material ids");
    let sent = json!({
        "KeyId": OTHER, "CiphertextBlob": BASE64.encode(b"wrapped"),
        "EncryptionContext": {"cluster": "prod", "kube-kms": "v1"},
    });
    assert_eq!(heard.lock().unwrap()[0], ("Decrypt".to_owned(), sent));
}

/// What a KMS, or whoever answers in its place, may send with status 200 in place of what AWS documents.
#[tokio::test]
async fn an_answer_that_cannot_be_used_says_nothing_about_the_blob_or_the_key() {
    let long = BASE64.encode([7; 33]);
    let material = |id: &str| json!({"Plaintext": BASE64.encode(DEK), "KeyId": ARN, "KeyMaterialId": id});
    let decrypts = [
        ("nothing", json!({})),
        ("no plaintext", json!({"KeyId": ARN})),
        ("an empty plaintext", json!({"Plaintext": "", "KeyId": ARN})),
        ("31 bytes", json!({"Plaintext": BASE64.encode(&DEK[1..]), "KeyId": ARN})),
        ("33 bytes", json!({"Plaintext": long, "KeyId": ARN})),
        ("no base64", json!({"Plaintext": "CANARY*", "KeyId": ARN})),
        ("a number", json!({"Plaintext": 7, "KeyId": ARN})),
        ("no key", json!({"Plaintext": BASE64.encode(DEK)})),
        ("another key", json!({"Plaintext": BASE64.encode(DEK), "KeyId": OTHER})),
        ("an empty material id", material("")),
        ("a short material id", material(&MATERIAL[1..])),
        ("a material id in capitals", material(&MATERIAL.to_uppercase())),
        ("a material id of two lines", material(&format!("{}\nx", &MATERIAL[2..]))),
        ("a material id of 10,000 bytes", material(&"a".repeat(10_000))),
        ("a list", json!([])),
        ("a string", json!("CANARY")),
    ];
    for (case, body) in decrypts {
        let (url, _) = scripted(vec![Line::Say(200, body)]).await;
        let fault = unwrap(&kek_at(ARN, &url), ARN).await.unwrap_err();
        assert!(fault.class().is_transient(), "{case}: {fault}");
        assert_eq!(fault.reason(), Reason::KmsAnswerUnusable, "{case}");
        let causes = fault.causes();
        assert!(causes.contains("request-1") && causes.len() < 300 && !causes.contains("CANARY"), "{case}: {causes}");
    }
    let blob = |bytes: usize| json!({"CiphertextBlob": BASE64.encode(vec![7; bytes]), "KeyId": ARN});
    let of = |key: &str| json!({"CiphertextBlob": BASE64.encode(b"wrapped"), "KeyId": key});
    let encrypts = [
        ("nothing", json!({})),
        ("no key", json!({"CiphertextBlob": BASE64.encode(b"wrapped")})),
        ("an alias", of("arn:aws:kms:eu-central-1:111122223333:alias/prod")),
        ("an id", of("1234abcd-12ab-34cd-56ef-1234567890ab")),
        ("another key", of(OTHER)),
        ("a key of 10,000 bytes", of(&format!("arn:aws:kms:{}:111122223333:key/x", "a".repeat(10_000)))),
        ("no ciphertext", json!({"KeyId": ARN})),
        ("an empty ciphertext", blob(0)),
        ("a ciphertext over what AWS documents", blob(6145)),
    ];
    for (case, body) in encrypts {
        let (url, _) = scripted(vec![Line::Say(200, body)]).await;
        let fault = wrap(&kek_at(ARN, &url)).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::KmsAnswerUnusable, "{case}");
        assert!(fault.causes().len() < 1500, "{case}: {} bytes for the log", fault.causes().len());
    }
    let (url, _) = scripted(vec![Line::Say(200, blob(6144))]).await;
    assert_eq!(wrap(&kek_at(ARN, &url)).await.unwrap().dek.as_bytes().len(), 6144);
    for body in [json!({}), json!({"KeyMetadata": {"KeyId": "x"}})] {
        let (url, _) = scripted(vec![refuse("KMSInvalidStateException"), Line::Say(200, body)]).await;
        assert_eq!(reason(unwrap(&kek_at(ARN, &url), ARN).await), Reason::KmsAnswerUnusable, "DescribeKey");
    }
    let other = json!({"KeyMetadata": {"KeyId": "x", "Arn": OTHER, "KeyState": "PendingDeletion"}});
    let (url, _) = scripted(vec![refuse("KMSInvalidStateException"), Line::Say(200, other)]).await;
    assert_eq!(reason(unwrap(&kek_at(ARN, &url), ARN).await), Reason::KmsAnswerUnusable, "the state of another key");
}

#[tokio::test]
async fn an_answer_from_a_key_that_may_not_unwrap_is_refused() {
    // Credentials of another account: its alias of that name is another key.
    let (url, _) = scripted(vec![encrypted(THEIRS)]).await;
    let fault = wrap(&kek_at("arn:aws:kms:eu-central-1:111122223333:alias/prod", &url)).await.unwrap_err();
    assert_eq!(fault.reason(), Reason::KekUnusable);
    assert!(fault.causes().contains(THEIRS), "{}", fault.causes());
}

#[tokio::test]
async fn a_kek_that_the_configuration_does_not_allow_is_never_asked_for() {
    let (url, heard) = scripted(vec![]).await;
    let kek = kek_at(ARN, &url);
    assert_eq!(reason(unwrap(&kek, OTHER).await), Reason::KekNotConfigured);
    assert!(heard.lock().unwrap().is_empty());
    assert!(!kek.may_unwrap(&KekRef::parse(format!("local:{ARN}").as_bytes()).unwrap()));
    assert!(!kek.may_unwrap(&KekRef::parse(b"aws:1234abcd-12ab-34cd-56ef-1234567890ab").unwrap()));
}

#[tokio::test]
async fn the_account_of_an_alias_is_learned_from_encrypt_and_not_from_decrypt() {
    let (url, _) = scripted(vec![decrypted(THEIRS), encrypted(ARN)]).await;
    let kek = kek_at("alias/prod", &url);
    let (ours, theirs) = (KekRef::new(KekKind::AWS, OTHER).unwrap(), KekRef::new(KekKind::AWS, THEIRS).unwrap());
    assert!(kek.may_unwrap(&ours) && kek.may_unwrap(&theirs), "the account is not known yet");
    unwrap(&kek, THEIRS).await.unwrap();
    assert!(kek.may_unwrap(&ours) && kek.may_unwrap(&theirs), "an annotation taught it an account");
    wrap(&kek).await.unwrap();
    assert!(kek.may_unwrap(&ours) && !kek.may_unwrap(&theirs));
}

#[tokio::test]
async fn a_kms_that_hangs_is_a_deadline_in_time() {
    let (url, _) = scripted(vec![Line::Hang]).await;
    let (kek, watch) = (kek_at(ARN, &url), Stopwatch::start());
    let short = KekCall { timeout: Duration::from_millis(200), uid: None };
    assert_eq!(reason(kek.wrap_dek(&dek(), &context(), &short).await), Reason::Deadline);
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
}

#[tokio::test]
async fn a_describe_key_that_hangs_is_a_deadline_within_the_same_time() {
    let (url, heard) = scripted(vec![refuse("KMSInvalidStateException"), Line::Hang]).await;
    let (kek, watch) = (kek_at(ARN, &url), Stopwatch::start());
    let short = KekCall { timeout: Duration::from_millis(500), uid: None };
    assert_eq!(reason(kek.wrap_dek(&dek(), &context(), &short).await), Reason::Deadline);
    assert!(watch.elapsed() < Duration::from_secs(2), "{:?}", watch.elapsed());
    assert_eq!(heard.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let fault = wrap(&kek_at(ARN, &format!("http://{closed}"))).await.unwrap_err();
    assert_eq!(fault.reason(), Reason::KmsUnreachable);
    assert!(fault.causes().contains("onnection refused"), "{}", fault.causes());
}

#[tokio::test]
async fn a_failure_is_not_retried_here_and_carries_what_aws_said() {
    let (url, heard) = scripted(vec![Line::Say(500, json!({"__type": "KMSInternalException"}))]).await;
    let fault = wrap(&kek_at(ARN, &url)).await.unwrap_err();
    assert_eq!(fault.reason(), Reason::KmsUnreachable);
    assert_eq!(heard.lock().unwrap().len(), 1);
    let causes = fault.causes();
    assert!(causes.contains("KMSInternalException") && causes.contains("request-1"), "{causes}");
    assert!(!fault.to_string().contains("KMSInternalException"), "the wire's text");
}

#[tokio::test]
async fn codes_on_the_wire_are_classified_by_operation() {
    let wrapping = [
        ("com.amazonaws.kms#DisabledException", Reason::KekDisabled),
        ("NotFoundException", Reason::KekGone),
        ("ValidationException", Reason::KekUnusable),
        ("AccessDeniedException", Reason::PolicyDenied),
        ("ThrottlingException", Reason::KmsThrottled),
    ];
    for (code, expected) in wrapping {
        let (url, _) = scripted(vec![refuse(code)]).await;
        assert_eq!(reason(wrap(&kek_at(ARN, &url)).await), expected, "{code}");
    }
    for code in ["IncorrectKeyException", "InvalidCiphertextException", "ValidationException"] {
        let (url, _) = scripted(vec![refuse(code)]).await;
        assert_eq!(reason(unwrap(&kek_at(ARN, &url), ARN).await), Reason::WrappedDekRejected, "{code}");
    }
}

#[tokio::test]
async fn an_invalid_state_is_settled_by_describe_key() {
    let state = |name: &str| Line::Say(200, json!({"KeyMetadata": {"KeyId": "x", "KeyState": name}}));
    let stored = |name: &str, origin: &str| {
        Line::Say(200, json!({"KeyMetadata": {"KeyId": "x", "Arn": OTHER, "KeyState": name, "Origin": origin}}))
    };
    let table = [
        (state("PendingDeletion"), Reason::KekPendingDeletion),
        (state("PendingReplicaDeletion"), Reason::KekPendingDeletion),
        (state("PendingImport"), Reason::KekMaterialGone),
        (state("Disabled"), Reason::KekDisabled),
        (state("Unavailable"), Reason::KeyStoreUnavailable),
        (state("Creating"), Reason::KmsUnreachable),
        (state("Updating"), Reason::KmsUnreachable),
        (state("Enabled"), Reason::KmsUnreachable),
        (state("SomethingNew"), Reason::KekUnusable),
        (stored("Enabled", "EXTERNAL_KEY_STORE"), Reason::KeyStoreUnavailable),
        (stored("Enabled", "AWS_CLOUDHSM"), Reason::KeyStoreUnavailable),
        (stored("Enabled", "AWS_KMS"), Reason::KmsUnreachable),
        (stored("Disabled", "EXTERNAL_KEY_STORE"), Reason::KekDisabled),
        (stored("PendingDeletion", "EXTERNAL_KEY_STORE"), Reason::KekPendingDeletion),
        (refuse("AccessDeniedException"), Reason::KeyStateUnknown),
        (refuse("KMSInvalidStateException"), Reason::KeyStateUnknown),
        (refuse("ThrottlingException"), Reason::KmsThrottled),
        (refuse("NotFoundException"), Reason::KekGone),
    ];
    for (answer, expected) in table {
        let (url, heard) = scripted(vec![refuse("KMSInvalidStateException"), answer]).await;
        let fault = unwrap(&kek_at("alias/prod", &url), OTHER).await.unwrap_err();
        assert_eq!(fault.reason(), expected, "{}", fault.causes());
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), 2);
        assert_eq!(heard[1], ("DescribeKey".to_owned(), json!({"KeyId": OTHER})));
        if expected == Reason::KeyStateUnknown && fault.causes().contains("AccessDenied") {
            assert!(fault.causes().contains("permission kms:DescribeKey"), "{}", fault.causes());
        }
    }
}

#[tokio::test]
async fn the_day_of_a_deletion_is_known_until_the_key_works_again() {
    let pending = json!({"KeyMetadata": {"KeyId": "x", "KeyState": "PendingDeletion", "DeletionDate": 1_800_000_000}});
    let lines = vec![refuse("KMSInvalidStateException"), Line::Say(200, pending), decrypted(OTHER), decrypted(ARN)];
    let (url, _) = scripted(lines).await;
    let kek = kek_at("alias/prod", &url);
    assert_eq!(kek.deletion_date(), None);
    assert_eq!(reason(unwrap(&kek, ARN).await), Reason::KekPendingDeletion);
    let day = Some(Duration::from_secs(1_800_000_000));
    assert_eq!(kek.deletion_date(), day);
    unwrap(&kek, OTHER).await.unwrap();
    assert_eq!(kek.deletion_date(), day, "that was another key");
    unwrap(&kek, ARN).await.unwrap();
    assert_eq!(kek.deletion_date(), None);
}

#[tokio::test]
async fn a_describe_key_that_is_not_granted_is_a_notice_and_any_other_failure_of_it_is_a_failure() {
    let notices = |line: Line| async move {
        let (url, _) = scripted(vec![line]).await;
        let notices = kek_at(ARN, &url).notices(&call()).await;
        notices.map(|all| all.into_iter().map(|notice| notice.what).collect::<Vec<_>>()).map_err(|fault| fault.reason())
    };
    let enabled = Line::Say(200, json!({"KeyMetadata": {"KeyId": "x", "KeyState": "Enabled"}}));
    assert_eq!(notices(enabled).await, Ok(Vec::new()));
    assert_eq!(notices(refuse("AccessDeniedException")).await, Ok(vec![NO_DESCRIBE_KEY.to_owned()]));
    assert_eq!(notices(refuse("NotFoundException")).await, Err(Reason::KekGone));
}

/// AWS's words for a wrap that does not fit in an external key store, and for its other failures.
#[tokio::test]
async fn an_external_key_store_that_rejects_a_blob_is_a_verdict_about_the_blob_alone() {
    let invalid = |said: &str| Line::Say(400, json!({"__type": "KMSInvalidStateException", "message": said}));
    let enabled = json!({"KeyMetadata": {"KeyId": "x", "KeyState": "Enabled", "Origin": "EXTERNAL_KEY_STORE", "CustomKeyStoreId": "cks-1"}});
    let blob = "The external key store proxy rejected the request because the specified ciphertext or additional \
                authenticated data is corrupted, missing, or otherwise invalid.";
    let (url, heard) = scripted(vec![invalid(blob)]).await;
    assert_eq!(reason(unwrap(&kek_at(ARN, &url), ARN).await), Reason::WrappedDekRejected);
    assert_eq!(heard.lock().unwrap().len(), 1, "nobody has to be asked for the state");
    let away = "AWS KMS rejected the request because the external key store proxy did not respond in time.";
    for said in [blob, away] {
        let (url, _) = scripted(vec![invalid(said), Line::Say(200, enabled.clone())]).await;
        let fault = wrap(&kek_at(ARN, &url)).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::KeyStoreUnavailable);
        let causes = fault.causes();
        assert!(causes.contains(said) && causes.contains("key state Enabled, in a custom key store"), "{causes}");
    }
}

#[tokio::test]
async fn credentials_that_are_not_there_are_rejected_and_those_that_fail_to_come_are_waited_for() {
    let failing = |make: fn() -> CredentialsError| {
        let settings = AwsSettings::parse(ARN, None, Some("http://127.0.0.1:9")).unwrap();
        let provider = SharedCredentialsProvider::new(provide_credentials_fn(move || async move { Err(make()) }));
        AwsKek::connect_with(settings, &sdk(provider)).unwrap()
    };
    let none = failing(|| CredentialsError::not_loaded("no providers in chain provided credentials"));
    assert_eq!(reason(wrap(&none).await), Reason::CredentialsRejected);
    let broken = failing(|| CredentialsError::invalid_configuration("syntax error"));
    assert_eq!(reason(wrap(&broken).await), Reason::CredentialsRejected);
    let away = failing(|| CredentialsError::provider_error("503 from STS"));
    let fault = wrap(&away).await.unwrap_err();
    assert_eq!(fault.reason(), Reason::KmsUnreachable);
    assert!(fault.causes().contains("503 from STS"), "{}", fault.causes());
}

#[tokio::test]
async fn credentials_that_take_longer_than_a_call_are_there_for_a_later_one() {
    let (url, _) = scripted(vec![encrypted(ARN)]).await;
    let (started, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (count, open) = (started.clone(), gate.clone());
    let provider = provide_credentials_fn(move || {
        let (count, open) = (count.clone(), open.clone());
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            open.notified().await;
            Ok(Credentials::new("AKIDEXAMPLE", "secret", None, None, "slow"))
        }
    });
    let settings = AwsSettings::parse(ARN, None, Some(&url)).unwrap();
    let kek = AwsKek::connect_with(settings, &sdk(SharedCredentialsProvider::new(provider))).unwrap();
    let short = KekCall { timeout: Duration::from_millis(50), uid: None };
    for _ in 0..3 {
        assert_eq!(reason(kek.wrap_dek(&dek(), &context(), &short).await), Reason::Deadline);
    }
    gate.notify_one();
    wrap(&kek).await.unwrap();
    assert_eq!(started.load(Ordering::SeqCst), 1, "loaded once, for all four");
}

#[tokio::test]
async fn connecting_needs_a_region_and_no_network() {
    let settings = AwsSettings::parse("alias/prod", None, None).unwrap();
    let fault = AwsKek::connect_with(settings.clone(), &SdkConfig::builder().build()).unwrap_err();
    assert_eq!(fault.reason(), Reason::KekUnusable);
    assert!(fault.causes().contains("AWS_REGION"), "{}", fault.causes());
    let clear = SdkConfig::builder().region(Region::new("eu-central-1")).endpoint_url("http://kms.example").build();
    assert_eq!(reason(AwsKek::connect_with(settings, &clear)), Reason::KekUnusable);

    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let settings = AwsSettings::parse(ARN, None, Some(&format!("http://{closed}"))).unwrap();
    let kek = AwsKek::connect(settings).await.unwrap();
    assert_eq!(kek.region(), "eu-central-1");
}

/// A log that everything is written to, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_secret_is_logged_at_trace_level() {
    let log = Log::default();
    let (writer, cut) = (log.clone(), json!({"Plaintext": BASE64.encode(DEK), "KeyId": ARN}).to_string());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    // The last answer is damaged, so that whatever the SDK says of an answer that it cannot read is looked at too.
    let damaged = Line::Say(200, Value::String(cut));
    let round = [encrypted(ARN), decrypted(ARN), refuse("DisabledException"), damaged];
    let (url, _) = scripted([round.clone(), round].concat()).await;
    let kek = kek_at(ARN, &url);
    let mut causes = String::new();
    // Twice: tests on other threads have no subscriber, and one of them that meets an event first can switch it off for
    // all. After the first round every event has been met, and is switched on again.
    for _ in 0..2 {
        tracing::callsite::rebuild_interest_cache();
        let _ = wrap(&kek).await.unwrap();
        let _ = unwrap(&kek, ARN).await.unwrap();
        assert_eq!(reason(wrap(&kek).await), Reason::KekDisabled);
        causes += &unwrap(&kek, ARN).await.unwrap_err().causes();
    }
    drop(guard);

    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned() + &causes + &format!("{kek:?}");
    assert!(text.contains("transmitting request"), "the log does not have the SDK's trace events");
    for id in ["aws_request_id=\"request-5\"", "aws_request_id=\"request-7\"", "uid=uid-1", "outcome=\"kek-disabled\""]
    {
        assert!(text.contains(id), "{id} is missing");
    }
    for canary in ["CANARY".to_owned(), BASE64.encode(DEK), hex::encode(DEK)] {
        let at = text.find(&canary).map(|at| text.get(at.saturating_sub(300)..at + 60).map(str::to_owned));
        assert_eq!(at, None, "a secret is in the log");
    }
}
