//! A [`Tally`] behind the scan: what has to be read again is counted once.
//!
//! Guarantees: [`Census::tally`] is of the records of each resource at one revision, however often etcd compacted.

use crate::record::Record;
use crate::scan::{Progress, Sink};
use crate::tally::Tally;

/// Sees what goes through a census, for progress bars and the like.
pub type OnProgress<'a> = Box<dyn FnMut(Progress) + 'a>;

/// See the module.
pub struct Census<'a> {
    prefix: Vec<u8>,
    kept: Tally,
    pending: Tally,
    on_progress: OnProgress<'a>,
}

impl std::fmt::Debug for Census<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Census({:?}, {:?})", self.kept.all(), self.pending.all())
    }
}

impl<'a> Census<'a> {
    /// Of keys under this prefix.
    #[must_use]
    pub fn new(prefix: &[u8], on_progress: OnProgress<'a>) -> Self {
        Self { prefix: prefix.to_vec(), kept: Tally::new(prefix), pending: Tally::new(prefix), on_progress }
    }

    /// What was counted.
    #[must_use]
    pub fn tally(mut self) -> Tally {
        self.kept();
        self.kept
    }
}

impl Sink for Census<'_> {
    fn record(&mut self, record: &Record<'_>) {
        self.pending.add(record);
    }

    fn forget(&mut self) {
        self.pending = Tally::new(&self.prefix);
    }

    fn kept(&mut self) {
        let pending = std::mem::replace(&mut self.pending, Tally::new(&self.prefix));
        self.kept.merge(pending);
    }

    fn progress(&mut self, progress: Progress) {
        (self.on_progress)(progress);
    }
}
