//! What happens to a fleet, and what it costs at the KMS.
//!
//! A share of the nodes is simulated against the same share of the quota; figures are those of the whole fleet. The test of
//! docs/scale.md plays fewer nodes than `make fleet` does, and the figures agree: the share does not matter.

use super::account::{Account, Second};
use super::node::{Node, Source};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Control-plane nodes of the fleet: 10,000 clusters of three.
const NODES: u64 = 30_000;
const PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// After this time the nodes have probed more than once, and have lost the order of their start.
const SETTLED: Duration = Duration::from_secs(180);
const OUTAGE: Duration = Duration::from_secs(600);
/// Everything is over long before.
const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Nothing.
    Quiet,
    /// Plugins and API servers start within so long; every API server has to read so many wrapped DEK sources.
    Restart { within: Duration, sources: u8 },
    /// Every KEK gets new key material at the same moment.
    Rotation,
    /// The KMS answers nobody for ten minutes.
    Outage,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub what: String,
    pub quota: u64,
    /// Calls to the KMS: because of the event, and until it is over; for `Quiet` in one minute.
    pub calls: u64,
    pub busiest: u64,
    pub throttled: u64,
    /// Until the last node is as it should be again.
    pub nodes: Option<Duration>,
    /// Until the last API server has read everything.
    pub read: Option<Duration>,
}

/// The lines of docs/scale.md, in their order.
pub fn plan() -> Vec<(Event, u64)> {
    let at_once = |sources| Event::Restart { within: Duration::from_secs(1), sources };
    vec![
        (Event::Quiet, 10_000),
        (Event::Restart { within: Duration::from_secs(600), sources: 12 }, 10_000),
        (at_once(12), 10_000),
        (at_once(12), 20_000),
        (at_once(12), 100_000),
        (at_once(100), 10_000),
        (Event::Rotation, 10_000),
        (Event::Outage, 10_000),
    ]
}

/// Plays one event for one node in `share`, on paused time.
pub fn play(event: Event, quota: u64, share: u64) -> Row {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let account = Account::new(quota / share);
        let count = NODES / share;
        let mut nodes: Vec<_> = (0..count).map(|number| Node::new(number, &account)).collect();
        let mut row = match event {
            Event::Quiet => quiet(&account, &mut nodes).await,
            Event::Restart { within, sources } => restart(&account, &mut nodes, within, sources).await,
            Event::Rotation => rotation(&account, &mut nodes).await,
            Event::Outage => outage(&account, &mut nodes).await,
        };
        row.quota = quota;
        for figure in [&mut row.calls, &mut row.busiest, &mut row.throttled] {
            *figure *= share;
        }
        row
    })
}

fn row(what: String, seconds: &[Second]) -> Row {
    Row {
        what,
        quota: 0,
        calls: seconds.iter().map(|second| second.made).sum(),
        busiest: seconds.iter().map(|second| second.made).max().unwrap_or(0),
        throttled: seconds.iter().map(|second| second.throttled).sum(),
        nodes: None,
        read: None,
    }
}

/// The `n`th of so many, evenly over this time.
fn spread(n: usize, of: usize, over: Duration) -> Duration {
    over.mul_f64(n as f64 / of as f64)
}

/// A fleet that has been there for a while.
async fn settle(nodes: &mut [Node]) {
    let of = nodes.len();
    for (n, node) in nodes.iter_mut().enumerate() {
        node.start(spread(n, of, PROBE_INTERVAL));
    }
    tokio::time::sleep(SETTLED).await;
    assert!(nodes.iter().all(Node::is_ready));
}

async fn quiet(account: &Account, nodes: &mut [Node]) -> Row {
    settle(nodes).await;
    let from = account.second();
    tokio::time::sleep(PROBE_INTERVAL).await;
    row("nothing, in a minute".to_owned(), &account.since(from)[..60])
}

async fn restart(account: &Account, nodes: &mut [Node], within: Duration, sources: u8) -> Row {
    let values: Arc<Vec<_>> = Arc::new((1..=sources).map(Source::new).collect());
    let (began, of) = (Instant::now(), nodes.len());
    let mut reading = Vec::new();
    for (n, node) in nodes.iter_mut().enumerate() {
        let after = spread(n, of, within);
        node.start(after);
        reading.push((after, node.read_all(after, &values)));
    }
    // The longest of all, each from its own start.
    let mut read = Duration::ZERO;
    for (after, task) in reading {
        read = read.max(task.await.unwrap().duration_since(began) - after);
    }
    while nodes.iter().any(|node| node.ready().is_none()) {
        assert!(began.elapsed() < LONGEST, "a node never became ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seconds = account.since(0);
    let ready =
        nodes.iter().enumerate().map(|(n, node)| node.ready().unwrap().duration_since(began) - spread(n, of, within));
    let what = format!("all restart within {} s, {sources} sources to read", within.as_secs());
    Row { nodes: ready.max(), read: Some(read), ..row(what, &seconds) }
}

async fn rotation(account: &Account, nodes: &mut [Node]) -> Row {
    settle(nodes).await;
    account.rotate();
    let (began, from) = (Instant::now(), account.second());
    while nodes.iter().any(|node| node.rotated().is_none()) {
        assert!(began.elapsed() < LONGEST, "a node never noticed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = nodes.iter().map(|node| node.rotated().unwrap().duration_since(began)).max();
    Row { nodes: last, ..row("every KEK is rotated at once".to_owned(), &account.since(from)) }
}

async fn outage(account: &Account, nodes: &mut [Node]) -> Row {
    settle(nodes).await;
    account.set_away(true);
    tokio::time::sleep(OUTAGE).await;
    account.set_away(false);
    let (began, from) = (Instant::now(), account.second());
    while !nodes.iter().all(Node::is_ready) {
        assert!(began.elapsed() < LONGEST, "a node never recovered");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let nodes = Some(began.elapsed());
    Row { nodes, ..row("an outage of 10 min ends".to_owned(), &account.since(from)) }
}
