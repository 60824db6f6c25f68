//! The keyring file is lost, or another keyring comes to its place: nothing known is lost, nothing is reported under the
//! other one, and what is printed leads back to the backup.

use crate::support::hand::{bring_back, take_away};
use crate::support::site::{BINARY, Running, Site, sealed, uid};
use kms_v2_api::v2::EncryptResponse;
use rustix::process::Signal;
use std::path::Path;

/// A keyring of another uuid at that place.
fn make_keyring(site: &Site, path: &Path) {
    let made = site.command(&["keyring", "init", "--file", path.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn check(site: &Site) -> String {
    let config = site.write_config();
    let checked = site.command(&["check", "--config", config.to_str().unwrap()]);
    assert!(!checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    String::from_utf8(checked.stderr).unwrap()
}

/// Says what to restore, and nothing that would lose it.
fn assert_leads_back(text: &str, uuid: &str) {
    assert!(text.contains("restore the backup") && text.contains(uuid), "{text}");
    assert!(!text.contains("keyring init"), "{text}");
}

fn uuid_of(value: &EncryptResponse) -> String {
    let kek = String::from_utf8(value.annotations["kek.kube-kms"].clone()).unwrap();
    kek.strip_prefix("local:").unwrap().to_owned()
}

async fn opens(running: &Running, (seed, value): &(Vec<u8>, EncryptResponse)) {
    assert_eq!(running.client().await.decrypt(value.clone(), uid()).await.unwrap().plaintext, *seed);
}

/// A node that has written under its keyring: the process, and what it has sealed.
async fn written(site: &mut Site) -> (Running, (Vec<u8>, EncryptResponse)) {
    site.set("probe: {interval: 1s, timeout: 900ms}");
    let running = site.start().await;
    let value = sealed(&mut running.client().await).await;
    (running, value)
}

#[tokio::test]
async fn another_keyring_at_the_same_path_is_refused_and_its_backup_is_all_it_takes() {
    let mut site = Site::local();
    let (running, value) = written(&mut site).await;
    let uuid = uuid_of(&value.1);
    take_away(&site);
    make_keyring(&site, site.keyring());
    running.until_log("keyring-replaced").await;
    // It reports what it did and opens what it has sealed; a reload does not change its mind.
    running.signal(Signal::HUP);
    running.until_log("the old configuration stays").await;
    let log = running.settled_log().await;
    assert_leads_back(log.lines().find(|l| l.contains("keyring-replaced") && l.contains("probe")).unwrap(), &uuid);
    let mut client = running.client().await;
    assert_eq!(client.status().await.unwrap().key_id, value.1.key_id);
    assert_eq!(sealed(&mut client).await.1.key_id, value.1.key_id);
    opens(&running, &value).await;
    assert_leads_back(&check(&site), &uuid);

    // Started anew it has nothing to write with, and neither takes the other keyring nor forgets the key_id.
    assert!(running.stop().await.success());
    let running = site.spawn();
    running.until_log("keyring-replaced").await;
    let (_, page) = running.http("/readyz").await;
    assert!(page.contains("reason=keyring-replaced"), "{page}");
    let mut client = running.client().await;
    assert_eq!(client.status().await.unwrap().key_id, value.1.key_id);
    client.encrypt(vec![7; 32], uid()).await.unwrap_err();

    std::fs::remove_file(site.keyring()).unwrap();
    bring_back(&site);
    assert_eq!(running.until_ok().await, value.1.key_id);
    opens(&running, &value).await;
}

#[tokio::test]
async fn a_lost_keyring_of_a_node_that_knows_it_is_to_be_restored_and_no_new_one_is_made_in_its_place() {
    let mut site = Site::local();
    let (running, value) = written(&mut site).await;
    let uuid = uuid_of(&value.1);
    let config = site.write_config();
    let init = || {
        let arguments =
            ["keyring", "init", "--file", site.keyring().to_str().unwrap(), "--config", config.to_str().unwrap()];
        let refused = site.command(&arguments);
        assert!(refused.status.code() == Some(5) && !site.keyring().exists(), "{refused:?}");
        String::from_utf8(refused.stderr).unwrap()
    };
    take_away(&site);
    assert_leads_back(&init(), &uuid);
    running.until_log("there is no such file").await;
    let log = running.settled_log().await;
    assert_leads_back(log.lines().find(|l| l.contains("there is no such file")).unwrap(), &uuid);
    assert_leads_back(&check(&site), &uuid);
    // What runs knows it as well, where the state directory is lost.
    let state = site.dir().join("state/state.json");
    let aside = site.dir().join("state/aside");
    std::fs::rename(&state, &aside).unwrap();
    assert!(init().contains(&value.1.key_id));
    std::fs::rename(&aside, &state).unwrap();
    // And what is started now.
    assert!(running.stop().await.success());
    let running = site.spawn();
    running.until_log("there is no such file").await;
    let log = running.settled_log().await;
    assert_leads_back(log.lines().find(|l| l.contains("there is no such file")).unwrap(), &uuid);
    bring_back(&site);
    running.until_ok().await;
    opens(&running, &value).await;
}

#[tokio::test]
async fn a_new_keyring_that_is_meant_takes_the_old_one_under_read_or_a_new_epoch() {
    let mut site = Site::local();
    let (running, value) = written(&mut site).await;
    let old = site.keyring().to_str().unwrap().to_owned();
    let new = site.keyring().with_file_name("new.json");
    make_keyring(&site, &new);
    let config = std::fs::read_to_string(site.write_config()).unwrap();
    let moved = config.replace(&old, new.to_str().unwrap());
    site.write_raw_config(&moved);
    running.until_log("the old configuration stays").await;
    let both = format!("{moved}\nread: [{{local: {{keyring: {old}}}}}]\n");
    let file = site.write_raw_config(&both);
    running.until_log("the new configuration is in force").await;
    opens(&running, &value).await;
    let (seed, newer) = sealed(&mut running.client().await).await;
    assert_ne!(newer.key_id, value.1.key_id);
    // Nothing needs the old one any more: it may go from the configuration, now and at a start.
    let before = running.log();
    site.write_raw_config(&moved);
    running.until_log_again("the new configuration is in force", &before).await;
    assert!(running.stop().await.success());
    let start = || site.run(&mut site.process(BINARY, &["serve", "--config", file.to_str().unwrap()]));
    let running = start();
    assert_eq!(running.until_ok().await, newer.key_id);
    opens(&running, &(seed.clone(), newer.clone())).await;
    assert!(running.stop().await.success());

    // Every copy is lost: another path, and another epoch, without a restart. What is known opens as long as `read` names it.
    let running = start();
    running.until_ok().await;
    opens(&running, &(seed.clone(), newer.clone())).await;
    std::fs::remove_file(&new).unwrap();
    let last = site.keyring().with_file_name("last.json");
    make_keyring(&site, &last);
    let replaced = moved.replace(new.to_str().unwrap(), last.to_str().unwrap());
    site.write_raw_config(&replaced);
    running.until_log("the old configuration stays").await;
    let lost = format!("{replaced}\nread: [{{local: {{keyring: {}}}}}]\n", new.display());
    let before = running.log();
    site.write_raw_config(&lost);
    running.until_log_again("the old configuration stays", &before).await;
    site.write_raw_config(&format!("{lost}epoch: 1\n"));
    running.until_log("the new configuration is in force").await;
    opens(&running, &(seed, newer.clone())).await;
    assert_ne!(sealed(&mut running.client().await).await.1.key_id, newer.key_id);
    assert!(running.stop().await.success());
    start().until_ok().await;
}
