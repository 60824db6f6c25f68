//! Reads everything under a prefix of a live etcd, page by page, at one revision.
//!
//! Guarantees: what a sink keeps is every key once, each resource at one revision: when etcd compacts it away, the
//! resource that was being read is read again at a newer one, and the outcome says so. A lost member or leader costs a pause.
//! One page is in memory. Refuses to know what a value means. SPEC: for every page etcd counts the rest of the range, so few
//! large pages are cheap and many small ones are not.

use crate::client::{EtcdClient, EtcdError};
use crate::record::Record;
use crate::resource::{Directory, directories};
use crate::rpc::{RangeRequest, RangeResponse};
use bytes::Bytes;
use kube_kms_os::Stopwatch;
use std::time::Duration;

/// Bytes of one value at most, however large etcd's own limit was made.
const VALUE_MAX: usize = 128 << 20;
/// A page may grow by this factor over the one before.
const GROWTH: u64 = 8;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What to read and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The etcd prefix of the cluster, `/registry` in most.
    pub prefix: Vec<u8>,
    /// Only these resources; everything when empty.
    pub resources: Vec<String>,
    /// From one member's own store, which may be behind, without asking the others.
    pub serializable: bool,
    /// Bytes that a page should have.
    pub page_bytes: usize,
    /// Keys of the first page.
    pub first_page: u64,
    /// Keys of a page at most.
    pub page_max: u64,
    /// How long nothing may come before the scan gives up.
    pub patience: Duration,
    /// How often etcd may compact under the scan before it gives up.
    pub restarts_max: usize,
}

impl Settings {
    /// Everything under this prefix.
    #[must_use]
    pub fn new(prefix: &[u8]) -> Self {
        Self {
            prefix: prefix.strip_suffix(b"/").unwrap_or(prefix).to_vec(),
            resources: Vec::new(),
            serializable: false,
            page_bytes: 4 << 20,
            first_page: 500,
            page_max: 50_000,
            patience: Duration::from_secs(30),
            restarts_max: 20,
        }
    }
}

/// Takes what the scan reads.
pub trait Sink {
    /// One record. Keys come in order.
    fn record(&mut self, record: &Record<'_>);
    /// What came since the last [`Sink::kept`] is not to be counted: it comes again.
    fn forget(&mut self);
    /// What came so far stays.
    fn kept(&mut self);
    /// After every page.
    fn progress(&mut self, progress: Progress);
}

/// How far the scan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Keys read.
    pub done: u64,
    /// Keys that there are, as far as etcd has said.
    pub all: u64,
}

/// etcd compacted under the scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// The resource that was read again.
    pub resource: String,
    /// At which revision it could not be read to its end.
    pub from: i64,
}

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The revision of the first page.
    pub first_revision: i64,
    /// The revision of the last page: another one when etcd compacted.
    pub last_revision: i64,
    /// Each compaction.
    pub restarts: Vec<Restart>,
    /// How often a member or leader was lost.
    pub interruptions: u64,
    /// Pages.
    pub pages: u64,
    /// Keys.
    pub keys: u64,
}

struct Scan<'a> {
    settings: &'a Settings,
    limit: u64,
    /// 0 until the first page says it.
    revision: i64,
    /// The directory that is being read, and where it began.
    directory: Vec<u8>,
    from: Bytes,
    progress: Progress,
    before: Progress,
    outcome: Outcome,
}

/// Reads everything that the settings say.
///
/// # Errors
/// [`EtcdError::Unreachable`] or [`EtcdError::Passing`] when nothing came for too long, [`EtcdError::Refused`],
/// [`EtcdError::Compacted`] when that happens again and again, [`EtcdError::TooLarge`] for one value of over 128 MiB.
///
/// # Cancel safety
/// Dropping the future ends the scan; etcd keeps nothing of it.
pub async fn scan(client: &mut EtcdClient, settings: &Settings, sink: &mut dyn Sink) -> Result<Outcome, EtcdError> {
    let mut scan = Scan {
        settings,
        limit: settings.first_page.max(1),
        revision: 0,
        directory: Vec::new(),
        from: Bytes::new(),
        progress: Progress::default(),
        before: Progress::default(),
        outcome: Outcome::default(),
    };
    for (from, end) in ranges(settings) {
        scan.range(client, sink, from, end).await?;
    }
    scan.outcome.keys = scan.progress.done;
    scan.outcome.last_revision = scan.revision;
    Ok(scan.outcome)
}

impl Scan<'_> {
    async fn range(
        &mut self,
        client: &mut EtcdClient,
        sink: &mut dyn Sink,
        begin: Bytes,
        end: Bytes,
    ) -> Result<(), EtcdError> {
        self.from = begin.clone();
        self.directory.clear();
        let mut next = begin;
        let mut is_first = true;
        loop {
            let page = match self.page(client, &next, &end).await {
                Err(EtcdError::Compacted) => {
                    next = self.restart(sink)?;
                    continue;
                }
                page => page?,
            };
            if self.revision == 0 {
                self.revision = page.header.as_ref().map_or(0, |header| header.revision);
                if self.outcome.first_revision == 0 {
                    self.outcome.first_revision = self.revision;
                }
            }
            let rest = u64::try_from(page.count).unwrap_or(0);
            if is_first {
                self.progress.all = self.progress.all.saturating_add(rest);
                is_first = false;
            }
            self.take(&page, sink);
            sink.progress(self.progress);
            match page.kvs.last() {
                // The first key after this one.
                Some(last) if page.more => next = [last.key.as_ref(), b"\0"].concat().into(),
                _ => break,
            }
            self.resize(&page);
        }
        self.keep(sink);
        Ok(())
    }

    /// One page, as often as it takes.
    async fn page(&mut self, client: &mut EtcdClient, from: &Bytes, end: &Bytes) -> Result<RangeResponse, EtcdError> {
        let waiting = Stopwatch::start();
        let mut pause = PAUSE_FIRST;
        loop {
            let request = RangeRequest {
                key: from.clone(),
                range_end: end.clone(),
                limit: i64::try_from(self.limit).unwrap_or(i64::MAX),
                revision: self.revision,
                serializable: self.settings.serializable,
            };
            let bytes_max = if self.limit > 1 { self.settings.page_bytes.saturating_mul(2) } else { VALUE_MAX };
            let error = match client.range(request, bytes_max).await {
                Ok(page) => {
                    self.outcome.pages = self.outcome.pages.saturating_add(1);
                    return Ok(page);
                }
                Err(error) => error,
            };
            match error {
                EtcdError::TooLarge(_) if self.limit > 1 => {
                    self.limit = (self.limit / 2).max(1);
                    continue;
                }
                EtcdError::Passing(_) | EtcdError::Unreachable(_) | EtcdError::TokenLost(_)
                    if waiting.elapsed() < self.settings.patience =>
                {
                    client.leave();
                    self.outcome.interruptions = self.outcome.interruptions.saturating_add(1);
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(PAUSE_MAX);
                }
                error => return Err(error),
            }
        }
    }

    fn take(&mut self, page: &RangeResponse, sink: &mut dyn Sink) {
        for kv in &page.kvs {
            let directory = Directory::of(&kv.key, &self.settings.prefix).as_bytes();
            if directory != self.directory.as_slice() {
                self.keep(sink);
                self.directory.clear();
                self.directory.extend_from_slice(directory);
                self.from = kv.key.clone();
            }
            sink.record(&Record {
                key: &kv.key,
                value: &kv.value,
                mod_revision: kv.mod_revision,
                create_revision: kv.create_revision,
            });
            self.progress.done = self.progress.done.saturating_add(1);
        }
    }

    fn keep(&mut self, sink: &mut dyn Sink) {
        sink.kept();
        self.before = self.progress;
    }

    /// Where to begin again after a compaction.
    fn restart(&mut self, sink: &mut dyn Sink) -> Result<Bytes, EtcdError> {
        if self.outcome.restarts.len() >= self.settings.restarts_max {
            return Err(EtcdError::Compacted);
        }
        sink.forget();
        let resource = Directory::of(&self.from, &self.settings.prefix).resource();
        self.outcome.restarts.push(Restart { resource, from: self.revision });
        self.revision = 0;
        self.progress.done = self.before.done;
        Ok(self.from.clone())
    }

    /// The next page should have the bytes that are wanted, if its values are like these.
    fn resize(&mut self, page: &RangeResponse) {
        let bytes = |kv: &crate::rpc::KeyValue| kv.key.len().saturating_add(kv.value.len()).saturating_add(32);
        let all: usize = page.kvs.iter().map(bytes).fold(0, usize::saturating_add);
        let each = all.checked_div(page.kvs.len()).unwrap_or(1).max(1);
        let fitting = u64::try_from(self.settings.page_bytes.checked_div(each).unwrap_or(1)).unwrap_or(u64::MAX);
        self.limit = fitting.min(self.limit.saturating_mul(GROWTH)).clamp(1, self.settings.page_max.max(1));
    }
}

/// The key ranges to read, in order.
fn ranges(settings: &Settings) -> Vec<(Bytes, Bytes)> {
    let under = |path: &[u8]| {
        let begin = [settings.prefix.as_slice(), b"/", path].concat();
        let end = after(&begin);
        (Bytes::from(begin), Bytes::from(end))
    };
    if settings.resources.is_empty() {
        return vec![under(b"")];
    }
    let mut all: Vec<_> = settings.resources.iter().flat_map(|resource| directories(resource)).collect();
    all.sort();
    all.dedup();
    let exact = |path: &str| {
        let key = [settings.prefix.as_slice(), b"/", path.as_bytes()].concat();
        let end = [key.as_slice(), b"\0"].concat();
        (Bytes::from(key), Bytes::from(end))
    };
    // `ranges/serviceips` is a key itself; other directories hold keys.
    all.iter().flat_map(|path| [exact(path), under(format!("{path}/").as_bytes())]).collect()
}

/// The first key that does not begin with this.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // SPEC: a range end of one zero byte means: to the last key.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_exactly_what_begins_with_its_prefix() {
        assert_eq!(after(b"/registry/"), b"/registry0");
        assert_eq!(after(b"a\xff\xff"), b"b");
        assert_eq!(after(b"\xff"), b"\0");
        let mut settings = Settings::new(b"/registry/");
        assert_eq!(ranges(&settings), [(Bytes::from("/registry/"), Bytes::from("/registry0"))]);
        settings.resources = vec!["secrets".to_owned(), "widgets.example.com".to_owned(), "secrets".to_owned()];
        let begins: Vec<_> = ranges(&settings).into_iter().map(|(begin, _)| begin).collect();
        assert_eq!(
            begins,
            [
                "/registry/example.com/widgets",
                "/registry/example.com/widgets/",
                "/registry/secrets",
                "/registry/secrets/"
            ]
        );
    }
}
