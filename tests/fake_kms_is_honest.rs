//! The fake AWS KMS against AWS's own client, and against moto: one list of calls with what real AWS answers.
//!
//! Guarantees: the fake passes all of the list; moto passes every item that is not marked [`Moto::Differs`], and fails
//! those that are, so no reason outlives its truth. Without moto that half says `SKIPPED`. Nothing here leaves 127.0.0.1:
//! credentials are given, retries are off. The rule comes from the AWS KMS API reference.

mod fault;
mod list;
pub mod peer;

use crate::support::fake_kms::{ACCOUNT, FakeKms, REGION};
use crate::support::moto::Moto as MotoServer;
use crate::support::skipped;
use list::{Moto, items};
use peer::Peer;

async fn failures(peer: &Peer, on_moto: bool) -> Vec<String> {
    let mut failures = Vec::new();
    for item in items() {
        let said = (item.call)(peer.clone()).await.unwrap_or_else(|code| code);
        let right = said == item.expected;
        let failure = match item.moto {
            Moto::Differs(why) if on_moto && right => Some(format!("is marked as differing ({why}), and agrees")),
            Moto::Differs(_) if on_moto => None,
            _ if right => None,
            _ => Some(format!("expected {:?}, got {said:?}", item.expected)),
        };
        failures.extend(failure.map(|failure| format!("{}: {failure}", item.name)));
    }
    failures
}

#[tokio::test]
async fn the_fake_kms_answers_as_aws_documents_it() {
    let fake = FakeKms::start();
    let failures = failures(&Peer::new(&fake.url(), REGION, ACCOUNT), false).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn moto_answers_the_same_list_where_it_is_right() {
    let moto = match MotoServer::start() {
        Ok(moto) => moto,
        Err(reason) => return skipped("moto_answers_the_same_list_where_it_is_right", &reason),
    };
    let failures = failures(&Peer::new(&moto.url(), REGION, "123456789012"), true).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
