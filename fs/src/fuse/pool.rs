//! The blocking pool: where an operation waits that may not wait on a FUSE thread.

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use std::io;
use std::thread::JoinHandle;

/// Work for the pool.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Threads. What waits here mostly waits for the same commit, so a few are enough.
const THREADS: usize = 4;
/// Jobs that wait for a thread. More than the kernel has requests under way, short of thousands of callers at once;
/// only beyond that does a FUSE thread wait, as back pressure.
const QUEUE_JOBS_MAX: usize = 4096;

/// A few named threads behind a bounded channel. Takes jobs from the FUSE threads; the jobs may wait for commits,
/// checkpoints and the region map. Ends at [`Pool::finish`].
pub(crate) struct Pool {
    sender: Sender<Option<Job>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_JOBS_MAX);
        let pool = Self { sender, threads: Mutex::default() };
        for index in 0..THREADS {
            let receiver: Receiver<Option<Job>> = receiver.clone();
            let spawned = std::thread::Builder::new().name(format!("fuse-block-{index}")).spawn(move || {
                while let Ok(Some(job)) = receiver.recv() {
                    job();
                }
            });
            match spawned {
                Ok(thread) => pool.threads.lock().push(thread),
                Err(error) => {
                    pool.finish();
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// Hands over a job; waits only when [`QUEUE_JOBS_MAX`] jobs wait already.
    pub(crate) fn submit(&self, job: Job) {
        // Fails only when all threads have gone: the job's reply then answers EIO as it is dropped.
        let _ = self.sender.send(Some(job));
    }

    /// Hands over a job that may be left out.
    pub(crate) fn try_submit(&self, job: Job) {
        let _ = self.sender.try_send(Some(job));
    }

    /// Runs what has been handed over, and ends the threads.
    pub(crate) fn finish(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for _ in &threads {
            let _ = self.sender.send(None);
        }
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a thread of the blocking pool has panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn finishing_runs_all_that_was_handed_over() {
        let pool = Pool::start().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..1000 {
            let done = done.clone();
            pool.submit(Box::new(move || {
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        pool.finish();
        assert_eq!(done.load(Ordering::SeqCst), 1000);
        pool.finish();
    }
}
