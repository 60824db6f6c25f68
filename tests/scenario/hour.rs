//! An hour without the KMS, played second by second: what an API server and its users notice of it.

use super::world::{Node, Trouble, World, defaults};
use kms_v2_api::v2::{DecryptRequest, EncryptRequest, EncryptResponse};
use kms_v2_client::plugin::{KmsPlugin, Rpc};
use kms_v2_judge::apiserver::{ApiServer, FindingCode};
use kube_kms_service::settings::Settings;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(3);

/// What one client of the plugin does besides the API server: each second all three RPCs, Decrypt of each known value in turn.
struct Client<'a> {
    node: &'a Node,
    known: Vec<EncryptResponse>,
    failures: Vec<String>,
    not_ok: Vec<String>,
    rounds: usize,
}

impl<'a> Client<'a> {
    fn new(node: &'a Node) -> Self {
        Self { node, known: Vec::new(), failures: Vec::new(), not_ok: Vec::new(), rounds: 0 }
    }

    async fn seal(&mut self) {
        let request = EncryptRequest { plaintext: vec![9; 32], uid: "seal".to_owned() };
        self.known.push(self.node.seat.encrypt(request, PATIENCE).await.unwrap());
    }

    async fn round(&mut self) {
        let seat = &self.node.seat;
        match seat.status(PATIENCE).await {
            Ok(status) if status.healthz == "ok" => {}
            Ok(status) => self.not_ok.push(status.healthz),
            Err(status) => self.failures.push(format!("Status: {status:?}")),
        }
        let request = EncryptRequest { plaintext: vec![9; 32], uid: "round".to_owned() };
        if let Err(status) = seat.encrypt(request, PATIENCE).await {
            self.failures.push(format!("Encrypt: {status:?}"));
        }
        let EncryptResponse { ciphertext, key_id, annotations } = self.known[self.rounds % self.known.len()].clone();
        self.rounds += 1;
        let request = DecryptRequest { ciphertext, uid: "round".to_owned(), key_id, annotations };
        match seat.decrypt(request, PATIENCE).await {
            Ok(opened) => assert_eq!(opened.plaintext, [9; 32]),
            Err(status) => self.failures.push(format!("Decrypt: {status:?}")),
        }
    }

    /// Seconds of all three RPCs, with the API server's own life beside it.
    async fn play(&mut self, world: &World, server: &ApiServer, length: Duration) {
        for _ in 0..length.as_secs() {
            let began = Instant::now();
            self.round().await;
            assert!(began.elapsed() < PATIENCE, "every answer within the deadline");
            let key = format!("/{}", world.seconds());
            let value = server.write(&key, b"x").unwrap();
            server.read(&key, &value).await.unwrap();
            world.play(&[server], Duration::from_secs(1), |_| {}).await;
        }
    }
}

/// A node that knows the data keys of four KEK versions, and one client.
async fn prepared(world: &World, settings: Settings) -> (Node, ApiServer) {
    let node = world.node(settings);
    node.until("ready").await;
    let server = world.server(&node).await;
    (node, server)
}

async fn with_old_values(world: &World, client: &mut Client<'_>, server: &ApiServer) {
    client.seal().await;
    for _ in 0..3 {
        world.kms.rotate();
        world.play(&[server], MINUTE * 3, |_| {}).await;
        client.seal().await;
    }
}

/// The claim of the README: every RPC goes on, for known data keys. The default grace of one hour is counted from the last
/// good probe, which may be a minute before the outage; so `ok` for an hour takes a grace that is a little longer.
async fn an_hour_without(trouble: Trouble) {
    let world = World::new(60);
    let mut settings = defaults();
    settings.policy.grace = HOUR + MINUTE * 2;
    let (node, server) = prepared(&world, settings).await;
    let mut client = Client::new(&node);
    with_old_values(&world, &mut client, &server).await;
    world.kms.trouble(Some(trouble));
    client.play(&world, &server, HOUR).await;
    assert_eq!(node.snapshot().state, "coasting");
    world.kms.trouble(None);
    let back = node.until("ready").await;
    assert!(back <= Duration::from_secs(10), "{back:?}");
    client.play(&world, &server, MINUTE).await;
    assert!(client.failures.is_empty(), "{:?}", client.failures);
    assert!(client.not_ok.is_empty(), "{:?}", client.not_ok);
    let report = server.report();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.counts.writes_failed + report.counts.reads_failed, 0);
}

#[tokio::test(start_paused = true)]
async fn an_hour_in_which_the_kms_swallows_every_call_fails_no_status_no_encrypt_and_no_decrypt_of_known_deks() {
    an_hour_without(Trouble::BlackHole).await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_in_which_the_kms_refuses_connections_fails_no_rpc_of_known_deks_either() {
    an_hour_without(Trouble::Away).await;
}

/// With the default grace the hour is `ok` but for what the last good probe was before it; no RPC fails in any case.
#[tokio::test(start_paused = true)]
async fn with_the_default_grace_the_last_two_minutes_of_an_hour_at_most_are_not_ok_and_no_rpc_fails() {
    let world = World::new(61);
    let (node, server) = prepared(&world, defaults()).await;
    let mut client = Client::new(&node);
    with_old_values(&world, &mut client, &server).await;
    world.kms.trouble(Some(Trouble::BlackHole));
    client.play(&world, &server, HOUR - MINUTE * 2).await;
    assert!(client.not_ok.is_empty(), "{:?}", client.not_ok);
    client.play(&world, &server, MINUTE * 10).await;
    assert_eq!(node.snapshot().state, "degraded");
    assert!(client.not_ok.iter().all(|h| h.starts_with("kms-unreachable for 6") && h.ends_with("serving from memory")));
    assert!(client.failures.is_empty(), "{:?}", client.failures);
    let report = server.report();
    assert_eq!(report.findings.iter().map(|f| f.code).collect::<Vec<_>>(), [FindingCode::HealthzNotOk]);
    assert_eq!((report.counts.writes_failed, report.counts.write_state_expiries), (0, 0));
}

/// In the middle of the hour the plugin is restarted: nothing can be wrapped or unwrapped, but the key_id is known, so the
/// API server goes on with the seed that it has.
#[tokio::test(start_paused = true)]
async fn a_plugin_that_is_restarted_in_the_middle_of_that_hour_lets_the_api_server_write_on_with_its_old_seed() {
    let world = World::new(62);
    let (node, server) = prepared(&world, defaults()).await;
    let mut before = Client::new(&node);
    with_old_values(&world, &mut before, &server).await;
    let (key, value) = ("/before", server.write("/before", b"x").unwrap());
    world.kms.trouble(Some(Trouble::BlackHole));
    before.play(&world, &server, HOUR / 2).await;
    assert!(before.failures.is_empty() && before.not_ok.is_empty());

    node.restart();
    server.plugin_restarted();
    let key_id = server.write_key_id();
    let seeds = server.report().counts.seeds_used;
    world
        .play(&[&server], HOUR / 2, |second| {
            assert!(server.write("/after", b"x").is_ok(), "second {second} after the restart");
        })
        .await;
    assert_eq!(node.snapshot().state, "starting-known");
    let status = node.seat.status(PATIENCE).await.unwrap();
    assert_eq!((status.healthz.as_str(), Some(status.key_id)), ("starting: kms-unreachable", key_id.clone()));
    // What only the KMS could open is refused, and in time.
    let EncryptResponse { ciphertext, key_id: of, annotations } = before.known[0].clone();
    let request = DecryptRequest { ciphertext, uid: String::new(), key_id: of, annotations };
    let refused = node.seat.decrypt(request, PATIENCE).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    world.kms.trouble(None);
    assert!(node.until("ready").await <= Duration::from_secs(10));
    world.play(&[&server], MINUTE * 2, |_| {}).await;
    assert!(server.readyz().await.is_ok());
    assert_eq!((server.write_key_id(), server.report().counts.seeds_used), (key_id, seeds), "the same seed all along");
    let report = server.report();
    assert_eq!(report.findings.iter().map(|f| f.code).collect::<Vec<_>>(), [FindingCode::HealthzNotOk]);
    assert_eq!(report.counts.write_state_expiries, 0);
    server.restart().await;
    assert_eq!(server.read(key, &value).await.unwrap().plaintext.as_slice(), b"x");
    assert_eq!(server.report().counts.rpc(Rpc::Decrypt, Code::Ok), 1);
}
