//! The EncryptionConfiguration of a whole API server changes under load: plaintext, one KMS, two, the other one first.

use super::{WIDGETS, Whole, machine, widget};
use crate::judge::layout::Entry;
use crate::judge::shadow::times;
use crate::support::site::Site;

const TEST: &str = "from_plaintext_to_one_kms_and_on_to_another_a_whole_api_server_under_load_reads_everything";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn from_plaintext_to_one_kms_and_on_to_another_a_whole_api_server_under_load_reads_everything() {
    let (site_one, site_two) = (Site::local(), Site::aws());
    let (running_one, _running_two) = tokio::join!(site_one.start(), site_two.start());
    let (one, two, plain) = (Entry::kms("one", &site_one), Entry::kms("two", &site_two), Entry::Identity);
    let Some(machine) = machine(TEST, &site_one) else { return };
    let mut whole = Whole::on(&machine, &site_one, vec![plain.clone(), one.clone()]).await;
    assert_eq!(whole.write("plain"), [None, None], "identity comes first");
    whole.api.storm(WIDGETS, &widget("storm"));
    for (layout, writer) in [
        (vec![one.clone(), plain.clone()], "one"),
        (vec![one.clone(), two.clone(), plain.clone()], "one"),
        (vec![two.clone(), one.clone(), plain.clone()], "two"),
    ] {
        let name = format!("{writer}-{}", layout.len());
        whole.reload(layout).await;
        for under in whole.write(&name) {
            assert_eq!(under.expect("not in the clear").0, writer);
        }
        whole.readyz().await.unwrap();
        for object in ["plain", &name] {
            whole.api.api("GET", &format!("{WIDGETS}/{object}"), None);
        }
    }
    let storm = whole.api.calm(WIDGETS);
    storm.assert_unharmed(20);
    whole.read_all().await;
    assert_eq!(whole.in_use()[0].len(), 3, "{:?}", whole.in_use());
    let rpcs = whole.agree();
    assert_eq!(times(&rpcs, "Encrypt", "OK"), 6, "every reload builds every provider anew: {rpcs:?}");
    // Another process, which has seen nothing; and then what nobody needs any more is gone.
    whole.restart().await;
    whole.until_served();
    whole.read_all().await;
    whole.rewrite_all().await;
    for in_use in whole.in_use() {
        let providers: Vec<_> = in_use.into_iter().map(|under| under.expect("not in the clear").0).collect();
        assert_eq!(providers, ["two"]);
    }
    whole.reload(vec![two]).await;
    running_one.kill();
    whole.read_all().await;
    whole.readyz().await.unwrap();
    whole.agree();
}
