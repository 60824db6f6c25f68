//! Recovery KEKs on the real binary: the same DEK under a second KEK, in another region or of another kind. A dead one never
//! stops writes; it opens when the primary is away, and when the primary is dead only if glass may be broken.

use crate::support::fake_kms::FakeKms;
use crate::support::site::{ALIAS, Running, Site, sealed, uid};
use kms_v2_api::v2::EncryptResponse;
use kms_v2_client::kms::KmsClient;
use tonic::Code;

/// Seals so many seeds and returns them with the answers.
async fn some(client: &mut KmsClient, count: usize) -> Vec<(Vec<u8>, EncryptResponse)> {
    let mut made = Vec::new();
    for _ in 0..count {
        made.push(sealed(client).await);
    }
    made
}

async fn all_open(running: &Running, made: &[(Vec<u8>, EncryptResponse)]) {
    let mut client = running.client().await;
    for (seed, answer) in made {
        assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, *seed);
    }
}

/// A node under a fake AWS KMS, with a recovery KEK in another region.
fn two_regions(break_glass: bool) -> (Site, FakeKms) {
    let mut site = Site::aws();
    let other = FakeKms::start_in("us-west-2");
    other.create_key(ALIAS);
    let kek = format!("{{aws: {{key: {ALIAS}, region: us-west-2, endpoint: '{}'}}}}", other.url());
    site.set(&format!("recovery: {{keks: [{kek}], breakGlass: {break_glass}}}\nprobe: {{interval: 2s, timeout: 1s}}"));
    (site, other)
}

#[tokio::test]
async fn every_dek_is_wrapped_under_the_recovery_kek_as_well_and_the_annotations_are_bound() {
    let (site, other) = two_regions(false);
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    let names: Vec<&str> = answer.annotations.keys().map(String::as_str).collect();
    assert_eq!(names, ["dek.kube-kms", "dek.r1.kube-kms", "kek.kube-kms", "kek.r1.kube-kms"]);
    let reference = String::from_utf8(answer.annotations["kek.r1.kube-kms"].clone()).unwrap();
    assert_eq!(reference, format!("aws:{}", other.key_arn(ALIAS)));
    assert_eq!(client.decrypt(answer.clone(), uid()).await.unwrap().plaintext, seed);
    for name in ["dek.r1.kube-kms", "kek.r1.kube-kms"] {
        let mut without = answer.clone();
        without.annotations.remove(name);
        assert_eq!(client.decrypt(without, uid()).await.unwrap_err().code(), Code::DataLoss, "{name}");
    }
    assert!((running.metric("kube_kms_recovery_wrapped{recovery=\"1\"}").await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_replica_that_starts_empty_opens_by_the_recovery_kek_while_the_primary_cannot_be_reached() {
    let (site, other) = two_regions(false);
    let made = some(&mut site.start().await.client().await, 5).await;
    site.kms().stop();
    let running = site.replica().spawn();
    all_open(&running, &made).await;
    running.until_log("dek=recovered").await;
    // The same DEK: asked for once, whatever the number of values.
    assert!(other.successful_calls("Decrypt") <= 3, "{}", other.successful_calls("Decrypt"));
    site.kms().start_again();
    running.until_ok().await;
    all_open(&running, &made).await;
}

#[tokio::test]
async fn a_hanging_primary_is_given_half_of_the_time_and_the_recovery_kek_the_rest() {
    let (site, _other) = two_regions(false);
    let made = some(&mut site.start().await.client().await, 1).await;
    let running = site.replica().start().await;
    site.kms().fail_all("Decrypt", crate::support::fake_kms::Failure::Hang);
    all_open(&running, &made).await;
    site.kms().heal("Decrypt");
    site.kms().release_hung();
}

#[tokio::test]
async fn a_recovery_kek_that_is_away_or_dead_never_stops_writes_and_the_next_dek_has_it_again() {
    let (mut site, other) = two_regions(false);
    site.set("dek: {maxUses: 1}");
    other.stop();
    let running = site.start().await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    assert!(!answer.annotations.contains_key("dek.r1.kube-kms"));
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
    running.until_log("the recovery KEK did not wrap").await;
    assert!(running.metric("kube_kms_recovery_wrapped{recovery=\"1\"}").await.abs() < f64::EPSILON);
    assert_eq!(running.http("/readyz").await.0, 200);
    other.start_again();
    loop {
        let (_, answer) = sealed(&mut client).await;
        if answer.annotations.contains_key("dek.r1.kube-kms") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_dead_primary_is_not_opened_around_unless_glass_may_be_broken() {
    let (site, _other) = two_regions(false);
    let made = some(&mut site.start().await.client().await, 3).await;
    // For good: not disabled, not pending, gone.
    site.kms().delete_now(ALIAS);
    let mut running = site.replica().spawn();
    let mut client = running.client().await;
    let refused = client.decrypt(made[0].1.clone(), uid()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    drop(running);

    let (glass, other) = (site.replica(), &_other);
    let kek = format!("{{aws: {{key: {ALIAS}, region: us-west-2, endpoint: '{}'}}}}", other.url());
    let config = glass.write_config();
    let text = std::fs::read_to_string(&config).unwrap().replace("breakGlass: false", "breakGlass: true");
    glass.write_raw_config(&text);
    let arguments = ["serve", "--config", config.to_str().unwrap()];
    running = glass.run(&mut glass.process(crate::support::site::BINARY, &arguments));
    all_open(&running, &made).await;
    // And it goes on opening once the probe has found the primary dead.
    running.until_log("state=revoked").await;
    all_open(&running, &made).await;
    let mut client = running.client().await;
    assert_eq!(client.encrypt(vec![1; 32], uid()).await.unwrap_err().code(), Code::FailedPrecondition);
    drop(running);

    // The way out: the recovery KEK becomes the one that writes; the dead one is not configured any more.
    let moved = Site::local();
    moved.write_raw_config(&format!(
        "listen: {{socket: {}}}\nkek: {kek}\nrecovery: {{breakGlass: true}}\nhttp: {{listen: none}}\nstateDir: {}\n",
        moved.socket().display(),
        moved.dir().join("state").display()
    ));
    let config = moved.dir().join("config.yaml");
    let running =
        moved.run(&mut moved.process(crate::support::site::BINARY, &["serve", "--config", config.to_str().unwrap()]));
    running.until_ok().await;
    all_open(&running, &made).await;
    let mut client = running.client().await;
    let (seed, answer) = sealed(&mut client).await;
    assert_eq!(client.decrypt(answer, uid()).await.unwrap().plaintext, seed);
}

/// A permission taken away is often meant: it takes the operator's word as well, before and after the probe has noticed.
#[tokio::test]
async fn a_denied_primary_is_not_opened_around_either() {
    let (site, _other) = two_regions(false);
    let made = some(&mut site.start().await.client().await, 1).await;
    let running = site.replica().start().await;
    site.kms().revoke("Decrypt");
    let mut client = running.client().await;
    let refused = client.decrypt(made[0].1.clone(), uid()).await.unwrap_err();
    assert!(refused.message().starts_with("policy-denied"), "{refused:?}");
    running.until_log("state=coasting").await;
    let refused = client.decrypt(made[0].1.clone(), uid()).await.unwrap_err();
    assert!(refused.message().starts_with("policy-denied"), "{refused:?}");
    site.kms().grant("Decrypt");
    running.until_log("the KEK can be used again").await;
    all_open(&running, &made).await;
}

#[tokio::test]
async fn a_keyring_file_recovers_what_a_lost_aws_key_sealed() {
    let spare = Site::local();
    let mut site = Site::aws();
    site.set(&format!("recovery: {{keks: [{{local: {{keyring: {}}}}}], breakGlass: true}}", spare.keyring().display()));
    let made = some(&mut site.start().await.client().await, 3).await;
    site.kms().delete_now(ALIAS);
    all_open(&site.replica().spawn(), &made).await;
}

/// SECURITY: whoever writes to etcd can put the recovery wrap of one object into another. That must fail for that object and
/// must not put a wrong DEK in the place of a right one.
#[tokio::test]
async fn an_exchanged_recovery_wrap_fails_and_poisons_nothing() {
    let (site, _other) = two_regions(false);
    let first = some(&mut site.start().await.client().await, 1).await;
    let second = some(&mut site.start().await.client().await, 1).await;
    let mut forged = first[0].1.clone();
    forged.annotations.insert("dek.r1.kube-kms".to_owned(), second[0].1.annotations["dek.r1.kube-kms"].clone());
    site.kms().stop();
    let running = site.replica().spawn();
    let mut client = running.client().await;
    assert_eq!(client.decrypt(forged, uid()).await.unwrap_err().code(), Code::DataLoss);
    all_open(&running, &first).await;
    all_open(&running, &second).await;
}
