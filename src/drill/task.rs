//! Tasks that end with their owner: a drill that is interrupted leaves nothing running.

use tokio::task::{AbortHandle, JoinHandle};

/// Aborted when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Vec<AbortHandle>);

impl Tasks {
    pub(crate) fn spawn<T: Send + 'static>(&mut self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let handle = tokio::spawn(task);
        self.0.push(handle.abort_handle());
        handle
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}
