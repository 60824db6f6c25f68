//! `kmsctl conformance`: no failed item over the real binary with either KEK, and each badly behaved plugin fails at the
//! item that is about its vice, or about its fault ([`faults`]).

mod faults;

use crate::support::bad_plugin::fault::Fault;
use crate::support::bad_plugin::faulty::Faulty;
use crate::support::bad_plugin::{Served, Vice};
use crate::support::fake_kms::Failure;
use crate::support::site::{ALIAS, BINARY, KMSCTL, PATIENCE, Running, Site};
use crate::support::transcript::run;
use kms_v2_api::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use kms_v2_api::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use kms_v2_client::kms::Target;
use kms_v2_judge::conformance::{self, Bounds, DECRYPTS_MAX, ENCRYPTS_MAX, ITEMS, Outcome, Reach, Report, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// A command of this text for `--kms-control`.
fn script(site: &Site, body: &str) -> String {
    let path = site.dir().join("kms-control");
    std::fs::write(&path, format!("#!/bin/sh\nset -e\n{body}")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The whole list with a control command, as the binary prints it in JSON; nothing may have failed.
fn nothing_fails(site: &Site, running: &Running, control: &str, counts: bool) -> serde_json::Value {
    let socket = site.socket();
    let command = ["conformance", "--socket", socket.to_str().unwrap(), "--output", "json", "--kms-control", control];
    let transcript = run(site, &command);
    let json = transcript.json();
    let items = json["items"].as_array().unwrap();
    let of = |outcome: &str| -> Vec<u64> {
        items.iter().filter(|i| i["outcome"] == outcome).map(|i| i["item"].as_u64().unwrap()).collect()
    };
    let failed: Vec<_> = items.iter().filter(|i| i["outcome"] == "failed").collect();
    assert!(failed.is_empty(), "{failed:#?}\n--- its log:\n{}", running.log());
    // All that a client on a file socket with a control command can check: a check that stopped checking is a failure too.
    let reached = |reach: Reach| match reach {
        Reach::Socket | Reach::Rotation | Reach::Outage => true,
        Reach::Count => counts,
        _ => false,
    };
    let expected: Vec<u64> =
        ITEMS.iter().filter(|i| reached(i.reach) && i.number != 4).map(|i| u64::from(i.number)).collect();
    assert_eq!(of("passed"), expected);
    let totals = &json["totals"];
    assert_eq!((transcript.status, totals["failed"].as_u64(), items.len()), (0, Some(0), 88));
    assert!((1..=ENCRYPTS_MAX).contains(&totals["encrypts"].as_u64().unwrap()), "{totals}");
    assert!((1..=DECRYPTS_MAX).contains(&totals["decrypts"].as_u64().unwrap()), "{totals}");
    assert!(items.iter().all(|i| i["title"].is_string() && i["detail"].is_string() && i["millis"].is_u64()));
    json
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_kms_fails_no_item_with_the_local_kek() {
    let mut site = Site::local();
    site.set("probe: {interval: 1s, timeout: 500ms}");
    let running = site.start().await;
    let file = site.keyring().display().to_string();
    let control = script(
        &site,
        &format!(
            "case \"$1\" in\n\
             rotate) v=$({BINARY} keyring add --file {file} --output json | sed -n 's/.*\"version\": \"\\(.*\\)\".*/\\1/p')\n\
             {BINARY} keyring promote --file {file} \"$v\" ;;\n\
             outage) mv {file} {file}.away ;;\n\
             restore) mv {file}.away {file} ;;\n\
             *) exit 1 ;;\nesac\n"
        ),
    );
    let before = running.until_ok().await;
    // A keyring file has no calls to be counted.
    nothing_fails(&site, &running, &control, false);
    assert_ne!(running.until_ok().await, before, "the command has rotated");
    assert!(site.keyring().exists(), "the command has restored");
}

/// The script leaves a word in a file, and a thread of the test does it to the fake KMS and takes the word away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_kms_fails_no_item_with_the_aws_kek() {
    let mut site = Site::aws();
    site.set("probe: {interval: 1s, timeout: 500ms}");
    let running = site.start().await;
    let control = script(
        &site,
        "echo \"$1\" > word.new; mv word.new word\nwhile [ -e word ]; do sleep 0.01; done\n\
         if [ \"$1\" = count ]; then cat calls; fi\n",
    );
    let (kms, word, calls) = (site.kms().clone(), site.dir().join("word"), site.dir().join("calls"));
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let hand = std::thread::spawn(move || {
        let mut acts = BTreeSet::new();
        while !ends.load(Ordering::SeqCst) {
            let Ok(act) = std::fs::read_to_string(&word) else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            match act.trim() {
                "rotate" => kms.rotate(ALIAS),
                "outage" => ["Encrypt", "Decrypt"].iter().for_each(|op| kms.fail_all(op, Failure::Reset)),
                "restore" => ["Encrypt", "Decrypt"].iter().for_each(|op| kms.heal(op)),
                "count" => std::fs::write(&calls, kms.total_calls().to_string()).unwrap(),
                other => panic!("{other}"),
            }
            acts.insert(act.trim().to_owned());
            std::fs::remove_file(&word).unwrap();
        }
        acts
    });
    nothing_fails(&site, &running, &control, true);
    over.store(true, Ordering::SeqCst);
    assert_eq!(Vec::from_iter(hand.join().unwrap()), ["count", "outage", "restore", "rotate"]);
}

/// What no vice is about, and takes most of the time.
const SLOW: [u8; 6] = [12, 26, 36, 42, 57, 58];

async fn judged(target: Target, timeout: Duration, all: bool) -> Report {
    let quick = || ITEMS.iter().map(|i| i.number).filter(|n| !SLOW.contains(n)).collect();
    let only = (!all).then(quick);
    let settings = Settings { target, timeout, bounds: Bounds::default(), only, long: false, control: None };
    conformance::run(settings, Box::new(|_| {}), &mut |_| {}).await.unwrap()
}

fn failed(report: &Report) -> Vec<u8> {
    report.items.iter().filter(|i| i.outcome == Outcome::Failed).map(|i| i.item.number).collect()
}

/// What every one of them fails, because it is a toy: it authenticates nothing and refuses nothing.
const TOY: [u8; 4] = [50, 51, 52, 54];

/// The items that this vice fails, and a word of what is said at the first.
fn expected(vice: Vice) -> (&'static [u8], &'static str) {
    match vice {
        Vice::None => (&[], ""),
        Vice::FlipFlop => (&[64], "goes to and fro"),
        Vice::KeyIdComesBack => (&[65], "went back"),
        Vice::StatusAheadOfEncrypt => (&[31, 71], "was not the Status.key_id right before it"),
        Vice::EncryptFailsForNewKeyId => (&[31, 66, 71], "the new key version is not there yet"),
        Vice::EmptyKeyId => (&[22, 71], "0 bytes"),
        Vice::KeyIdTooLong => (&[22, 71], "1025 bytes"),
        // Only a restart shows it, which is more than a client on the socket can do.
        Vice::KeyIdOfTheStart => (&[], ""),
        Vice::VersionAlpha => (&[16], "v2alpha1"),
        Vice::VersionFlip => (&[17], "v2beta1"),
        Vice::HealthzInCapitals => (&[19], "\"OK\""),
        Vice::CiphertextEmpty => (&[32, 71], "0 bytes"),
        Vice::CiphertextTooLong => (&[32, 71], "1025 bytes"),
        Vice::SlashInAnnotation => (&[33, 71], "kms.example.io/remote-kms-auditid"),
        Vice::AnnotationsTooLarge => (&[34, 71], "32784"),
        Vice::WrongBytes => (&[45, 71], "other bytes"),
        Vice::ShortBytes => (&[45, 71], "16 other bytes"),
        Vice::Forgetful => (&[45, 71], "no such key"),
        Vice::Silent => (&[1], "no answer within the deadline"),
    }
}

async fn fails_at_its_item(vice: Vice) {
    let plugin = Served::start(vice);
    let timeout = if vice == Vice::Silent { Duration::from_millis(300) } else { Duration::from_secs(20) };
    let report = judged(plugin.target(), timeout, vice == Vice::None).await;
    let (items, words) = expected(vice);
    let own: Vec<u8> = failed(&report).into_iter().filter(|n| !TOY.contains(n)).collect();
    let details: Vec<_> = report.items.iter().filter(|i| i.outcome == Outcome::Failed).collect();
    assert_eq!(own, items, "{details:#?}");
    for report in &details {
        assert!(report.detail.contains(&format!("; so {}", report.item.consequence)), "{report:?}");
    }
    if let Some(first) = items.first() {
        let detail = &details.iter().find(|i| i.item.number == *first).unwrap().detail;
        assert!(detail.contains(words), "{detail}");
    } else {
        assert_eq!(failed(&report), TOY);
    }
}

macro_rules! vices {
    ($($test:ident: $vice:ident;)+) => {
        $(#[tokio::test]
        async fn $test() {
            fails_at_its_item(Vice::$vice).await;
        })+

        #[test]
        fn every_vice_is_judged() {
            let tested = [$(Vice::$vice),+];
            assert!(Vice::ALL.iter().all(|vice| tested.contains(vice)));
        }
    };
}

vices! {
    a_plugin_without_a_vice_fails_what_a_toy_fails: None;
    flip_flop_fails_item_64: FlipFlop;
    a_key_id_that_comes_back_fails_item_65: KeyIdComesBack;
    status_ahead_of_encrypt_fails_item_31: StatusAheadOfEncrypt;
    a_key_id_that_encrypt_cannot_use_fails_items_31_and_66: EncryptFailsForNewKeyId;
    an_empty_key_id_fails_item_22: EmptyKeyId;
    a_long_key_id_fails_item_22: KeyIdTooLong;
    a_key_id_of_the_start_cannot_be_seen_without_a_restart: KeyIdOfTheStart;
    an_alpha_version_fails_item_16: VersionAlpha;
    a_version_that_flips_fails_item_17: VersionFlip;
    a_healthz_in_capitals_fails_item_19: HealthzInCapitals;
    an_empty_ciphertext_fails_item_32: CiphertextEmpty;
    a_long_ciphertext_fails_item_32: CiphertextTooLong;
    a_slash_in_an_annotation_fails_item_33: SlashInAnnotation;
    large_annotations_fail_item_34: AnnotationsTooLarge;
    wrong_bytes_fail_item_45: WrongBytes;
    short_bytes_fail_item_45: ShortBytes;
    a_forgetful_plugin_fails_item_45: Forgetful;
    a_silent_plugin_fails_item_1: Silent;
}

/// Items that only [`Leaky`] fails.
const OF_LEAKY: [u8; 9] = [13, 25, 37, 38, 39, 51, 55, 61, 86];

/// A check that no plugin fails may be no check.
#[test]
fn every_item_that_the_command_checks_is_failed_by_a_plugin_here() {
    let mut failed: BTreeSet<u8> = [4, 9].into();
    failed.extend(TOY.iter().chain(&OF_LEAKY));
    failed.extend(Vice::ALL.iter().flat_map(|vice| expected(*vice).0));
    failed.extend(faults::FAILED_HERE.iter().copied().flatten());
    let checked = ITEMS.iter().filter(|i| !matches!(i.reach, Reach::No(_))).map(|i| i.number);
    assert_eq!(failed, checked.collect());
}

/// What the vices do not have: a key_id that tells, a seed in the open, an address in a message, a code that says nothing,
/// few streams.
struct Leaky;

#[tonic::async_trait]
impl KeyManagementService for Leaky {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (version, healthz) = ("v2".to_owned(), "ok".to_owned());
        Ok(Response::new(StatusResponse { version, healthz, key_id: "https://vault.example/key 1".to_owned() }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        if request.get_ref().uid.is_empty() {
            // Longer than anybody waits.
            std::future::pending::<()>().await;
        }
        let key_id = "https://vault.example/key 1".to_owned();
        let ciphertext = request.get_ref().plaintext.clone();
        Ok(Response::new(EncryptResponse { ciphertext, key_id, annotations: BTreeMap::new() }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let plaintext = request.get_ref().ciphertext.clone();
        if plaintext.len() == 32 {
            return Ok(Response::new(DecryptResponse { plaintext }));
        }
        Err(Status::unknown("dial tcp 10.0.0.1:443: connection refused"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaky_plugin_with_few_streams_fails_the_items_about_that() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let connections = futures_util::stream::unfold(listener, async |listener| {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let mut builder = tonic::transport::Server::builder().max_concurrent_streams(100);
    let server = builder.add_service(KeyManagementServiceServer::new(Leaky));
    let serving = tokio::spawn(server.serve_with_incoming(Box::pin(connections)));
    let report = judged(Target::File(socket), Duration::from_secs(2), false).await;
    serving.abort();
    let of = |n: u8| report.items.iter().find(|i| i.item.number == n).unwrap();
    let said = [
        (13, "its SETTINGS allow 100 streams at once"),
        (25, "blanks"),
        (37, "the plaintext is in ciphertext"),
        (38, "no answer within the deadline"),
        (39, "Decrypt failed: Unknown"),
        (51, "flipped bits were not noticed (in ciphertext, key_id)"),
        (55, "a message that begins \"dial tcp 10.0.0.1:443: connection refuse\" has an address in it"),
        (61, "Decrypt failed: Unknown"),
        (86, "had the code Unknown"),
    ];
    assert_eq!(said.map(|(number, _)| number), OF_LEAKY);
    for (number, words) in said {
        assert!(of(number).outcome == Outcome::Failed && of(number).detail.contains(words), "{:?}", of(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_items_as_a_table_and_the_exit_status_of_a_failed_one() {
    let site = Site::local();
    let running = site.start().await;
    let socket = site.socket().to_str().unwrap().to_owned();
    run(&site, &["conformance", "--socket", &socket, "--only", "62,16,4,15"]).printed(
        "A. Transport: 0 passed, 0 failed, 2 not applicable
   4  n/a     `:authority` `@name` on an abstract socket accepted      this is a file socket: see item 3
  15  n/a     socket and directory modes                               needs control of the plugin's configuration

B. Status: 1 passed, 0 failed, 0 not applicable
  16  passed  `version` is exactly `v2`                                v2

D. Decrypt: 1 passed, 0 failed, 0 not applicable
  62  passed  empty uid at Decrypt                                     served

2 passed, 0 failed, 2 not applicable
calls made: 5 Status, 1 Encrypt, 2 Decrypt
",
    );
    drop(running);

    let plugin = Served::start(Vice::HealthzInCapitals);
    let socket = plugin.socket().to_str().unwrap().to_owned();
    let transcript = run(&site, &["conformance", "--socket", &socket, "--only", "19"]);
    assert_eq!(
        (transcript.status, transcript.out.as_str()),
        (
            6,
            "B. Status: 0 passed, 1 failed, 0 not applicable
  19  FAILED  `healthz` is exactly `ok`                                Status.healthz is \"OK\"; only `ok`, byte for \
             byte, is healthy
             so /readyz fails on kms-providers for as long as it says anything else
             hint: return exactly `ok` when \
             well; any other text is a failure's description

0 passed, 1 failed (19), 0 not applicable
calls made: 3 Status, 0 Encrypt, 0 Decrypt
"
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_command_that_fails_leaves_its_items_unchecked_and_says_why() {
    let site = Site::local();
    let _running = site.start().await;
    let socket = site.socket().to_str().unwrap().to_owned();
    let items = ["--only", "20,63,69", "--output", "json"];
    let of = |more: &[&str]| {
        let json = run(&site, &[&["conformance", "--socket", &socket][..], &items, more].concat()).json();
        let all = json["items"].as_array().unwrap().clone();
        assert!(all.iter().all(|i| i["outcome"] == "not-applicable"), "{all:?}");
        all[0]["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(of(&[]), "needs --kms-control");
    assert_eq!(of(&["--kms-control", "false"]), "`false … outage`: exit status: 1");
}

/// Not checked is what an operator asked not to check, never what could not be checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_command_that_cannot_be_run_is_an_error_and_so_is_an_outage_that_it_does_not_end() {
    let site = Site::local();
    let _running = site.start().await;
    let socket = site.socket().to_str().unwrap().to_owned();
    let with = |control: &str, items: &str| {
        run(&site, &["conformance", "--socket", &socket, "--only", items, "--kms-control", control])
    };
    with("/nobody/home x", "16").failed(
        2,
        "error: --kms-control cannot be run\ncause: `/nobody/home … count`: No such file or directory (os error 2)\nhint: \
         give a program that is there, with its path; see kmsctl conformance --help\n",
    );
    // What a shell says when a script calls a program that is not there, or that is none.
    for (status, item) in [(126, "63"), (127, "20")] {
        let control = script(&site, &format!("[ \"$1\" = count ] && exit 1\nexit {status}\n"));
        with(&control, item).failed_with(2, &["error: --kms-control cannot be run", &format!("exit status: {status}")]);
    }
    let control = script(&site, "[ \"$1\" = outage ]\n");
    with(&control, "20").failed_with(
        1,
        &["error: the KMS is still away", "… restore`: exit status: 1", "hint: run the --kms-control command with"],
    );
}

/// What the script of an operator does to the KMS shows in the outcome, and the bounds are the operator's.
#[test]
fn the_real_command_with_a_control_fails_the_items_of_an_outage_and_of_a_rotation() {
    let site = Site::local();
    let outcomes = |fault, bound: [&str; 2]| {
        let plugin = Faulty::start(fault);
        let (control, socket) = (plugin.control(), plugin.address());
        let command = ["conformance", "--socket", &socket, "--output", "json", "--only", "20,28,40,59,60,63,69"];
        let transcript = run(&site, &[&command[..], &["--kms-control", &control], &bound].concat());
        let items = transcript.json()["items"].as_array().unwrap().clone();
        let of = |outcome: &str| -> Vec<u64> {
            items.iter().filter(|i| i["outcome"] == outcome).map(|i| i["item"].as_u64().unwrap()).collect()
        };
        for item in &items {
            assert_eq!(item["hint"].is_string(), item["outcome"] == "failed", "{item}");
            assert!(item["section"].as_str().is_some_and(|s| s.len() > 3), "{item}");
        }
        (transcript.status, of("failed"), of("not-applicable"))
    };
    assert_eq!(outcomes(Fault::None, ["--rotated-within", "20s"]), (0, vec![], vec![]));
    assert_eq!(outcomes(Fault::OutageForGood, ["--recovered-within", "2s"]), (6, vec![28], vec![]));
    assert_eq!(outcomes(Fault::RotationUnseen, ["--rotated-within", "2s"]), (6, vec![69], vec![63]));
}

/// An operator who loses patience does not leave a KMS behind that nobody reaches.
#[test]
fn a_run_that_is_interrupted_during_an_outage_ends_it() {
    let plugin = Faulty::start(Fault::None);
    let (control, socket) = (plugin.control(), plugin.address());
    let command = ["conformance", "--socket", &socket, "--only", "20", "--kms-control", &control];
    let mut process = Command::new(KMSCTL).args(command).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !plugin.outage() && process.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(plugin.outage(), "the outage did not begin");
    let id = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let output = process.wait_with_output().unwrap();
    assert!(!plugin.outage(), "the KMS is still away");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), said.as_str()),
        (
            Some(1),
            "error: the run was interrupted\ncause: a signal asked to stop\nhint: the outage of the KMS was ended first\n"
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abstract_socket_has_item_4_instead_of_item_3() {
    let name = format!("kube-kms-test-{}", uuid::Uuid::new_v4().simple());
    let mut site = Site::local();
    site.listen(&format!("{{socket: '@{name}'}}"));
    let mut running = site.spawn();
    running.target = Target::Abstract(name.clone());
    running.until_ok().await;
    let json =
        run(&site, &["conformance", "--socket", &format!("@{name}"), "--only", "3,4", "--output", "json"]).json();
    let outcomes: Vec<_> = json["items"].as_array().unwrap().iter().map(|i| i["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["not-applicable", "passed"]);
}

#[test]
fn nobody_there_is_4_and_no_socket_is_2() {
    let site = Site::local();
    let socket = site.socket();
    let there = |path: &Path| run(&site, &["conformance", "--socket", path.to_str().unwrap()]);
    there(&socket).failed(
        4,
        "error: nobody answers on DIR/kms.sock\ncause: No such file or directory (os error 2)\nhint: is the plugin \
         running, and may this user open its socket?\n",
    );
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    there(&socket).failed_with(4, &["cause: Connection refused"]);
    run(&site, &["conformance", "--socket", "tcp://127.0.0.1:1"]).failed_with(
        2,
        &["error: --socket is not the address of a unix socket\ncause: ", "is not a unix socket", "hint: give a path"],
    );
    run(&site, &["conformance", "--socket", "/x", "--only", "0"]).failed_with(2, &["the items are 1 to 88"]);
}
