//! What an API server does all day: a thousand writes, and a plugin that is replaced under load.

use super::{WIDGETS, Whole, key, widget};
use crate::judge::live::served;
use crate::judge::shadow::times;
use crate::support::site::Site;
use kms_v2_api::stored;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_thousand_objects_of_a_whole_api_server_share_one_seed() {
    let site = Site::local();
    let running = site.start().await;
    let encrypts = served(&running, "Encrypt").await;
    let Some(mut whole) = Whole::start("a_thousand_objects_of_a_whole_api_server_share_one_seed", &site).await else {
        return;
    };
    for n in 0..1000 {
        let ids = whole.write(&format!("w{n}"));
        assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
    }
    assert_eq!(served(&running, "Encrypt").await - encrypts, 2, "one seed for the API server, one for the simulator");
    assert_eq!(served(&running, "Decrypt").await, 0);
    let stored = whole.machine.all_stored(&key(""));
    let seeds: BTreeSet<_> =
        stored.iter().map(|(_, value)| stored::decode(value).unwrap().1.encrypted_dek_source).collect();
    assert_eq!((stored.len(), seeds.len()), (1000, 1));
    assert_eq!(whole.in_use()[0].len(), 1);
    // Another process needs that one seed, whatever the number of objects.
    whole.restart().await;
    whole.until_served();
    whole.read_all().await;
    let rpcs = whole.agree();
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 2, "{rpcs:?}");
    // Reads that miss at the same time each ask, and from 1.37 on the watch cache decodes ten objects at once while it fills.
    assert!((1..=20).contains(&times(&rpcs, "Decrypt", "OK")), "{rpcs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_take_over_under_the_load_of_a_whole_api_server_fails_nothing() {
    let test = "a_take_over_under_the_load_of_a_whole_api_server_fails_nothing";
    let site = Site::local();
    let old = site.start().await;
    let Some(whole) = Whole::start(test, &site).await else { return };
    whole.write("before");
    whole.api.storm(WIDGETS, &widget("storm"));
    let new = site.spawn_with(&["--take-over"]);
    new.until_log("listening").await;
    whole.readyz().await.unwrap();
    // The old one drains while an API server starts that has seen nothing, and needs it for everything.
    let ((), another) = tokio::join!(
        async { assert!(old.stop().await.success()) },
        Whole::on(&whole.machine, &site, crate::judge::layout::ordinary(&site))
    );
    whole.readyz().await.unwrap();
    another.readyz().await.unwrap();
    another.write("by-another");
    let encrypts = served(&new, "Encrypt").await;
    assert!(encrypts >= 1, "the successor wraps the seeds of who comes now");
    // Long enough that a good result is over and each asks again: of the successor.
    let statuses = served(&new, "Status").await;
    let began = std::time::Instant::now();
    while served(&new, "Status").await < statuses + 4 {
        whole.readyz().await.unwrap();
        another.readyz().await.unwrap();
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "nobody asks the successor");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let storm = whole.api.calm(WIDGETS);
    storm.assert_unharmed(100);
    whole.read_all().await;
    another.read_all().await;
    assert_eq!(times(&whole.agree(), "Encrypt", "OK"), 1, "the key_id is the same, and so is the seed");
}
