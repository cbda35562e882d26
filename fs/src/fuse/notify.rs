//! The notify thread: tells the kernel what its caches no longer know.

use super::inode_table::NumberHasher;
use super::pool::Job;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests that wait for the thread. The kernel has one such request for each calling process at most.
const QUEUE_TASKS_MAX: usize = 16 * 1024;
/// How long the kernel may show an old number of blocks of a file that is being written through its cache.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

enum Task {
    /// Have the kernel write out what it holds of the inode from this offset, then go on.
    WriteOut {
        ino: u64,
        offset: u64,
        then: Job,
    },
    /// There are changed inodes.
    Refresh,
    /// Have the kernel ask for the attributes of this inode again, at once.
    AskAgain(u64),
    Stop,
}

/// Takes tasks from the FUSE threads. May wait, in the kernel, for page locks, and so for any other thread of the
/// frontend: none of these ever waits for it. Ends at [`Notify::finish`].
pub(crate) struct Notify {
    sender: Sender<Task>,
    changed: Arc<Changed>,
    notifier: Arc<OnceLock<Notifier>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Changed = Mutex<HashSet<u64, BuildHasherDefault<NumberHasher>>>;

impl Notify {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_TASKS_MAX);
        let changed = Arc::new(Changed::default());
        let notifier = Arc::new(OnceLock::new());
        let thread = std::thread::Builder::new().name("fuse-notify".into()).spawn({
            let (changed, notifier) = (changed.clone(), notifier.clone());
            move || run(&receiver, &changed, &notifier)
        })?;
        Ok(Self { sender, changed, notifier, thread: Mutex::new(Some(thread)) })
    }

    /// The session's notifier, before its first request is served.
    pub(crate) fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// The inode's blocks have changed below the kernel's cache: its attributes are to be asked for again, soon.
    ///
    /// With its writeback cache the kernel asks for the number of blocks after a close only.
    pub(crate) fn blocks_changed(&self, ino: u64) {
        let mut changed = self.changed.lock();
        let first = changed.is_empty();
        changed.insert(ino);
        drop(changed);
        if first {
            let _ = self.sender.try_send(Task::Refresh);
        }
    }

    /// If the inode's blocks have changed: has its attributes asked for again at once, not only soon. Whoever syncs a file
    /// before looking at it sees its true number of blocks.
    pub(crate) fn refresh_now(&self, ino: u64) {
        let was_changed = self.changed.lock().remove(&ino);
        if was_changed {
            self.ask_again(ino);
        }
    }

    /// The kernel is to ask for the inode's attributes before it next uses them.
    pub(crate) fn ask_again(&self, ino: u64) {
        let _ = self.sender.try_send(Task::AskAgain(ino));
    }

    /// Runs `then` on the notify thread after the kernel has written out its dirty pages of the inode from `offset` on.
    /// False, and `then` dropped, when too many wait.
    #[must_use]
    pub(crate) fn after_write_out(&self, ino: u64, offset: u64, then: Job) -> bool {
        self.sender.try_send(Task::WriteOut { ino, offset, then }).is_ok()
    }

    /// Ends the thread. The session must have ended.
    pub(crate) fn finish(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        let _ = self.sender.send(Task::Stop);
        if thread.join().is_err() {
            log::error!("the notify thread has panicked");
        }
    }
}

fn run(receiver: &Receiver<Task>, changed: &Changed, notifier: &OnceLock<Notifier>) {
    let mut refresh_at: Option<Instant> = None;
    loop {
        let task = match refresh_at {
            Some(at) => receiver.recv_deadline(at),
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match task {
            Ok(Task::WriteOut { ino, offset, then }) => {
                write_out(notifier, ino, offset);
                then();
            }
            Ok(Task::AskAgain(ino)) => send(notifier, ino, -1, 0),
            Ok(Task::Refresh) => refresh_at = refresh_at.or(Some(Instant::now() + REFRESH_INTERVAL)),
            Err(RecvTimeoutError::Timeout) => {
                refresh_at = None;
                for ino in std::mem::take(&mut *changed.lock()) {
                    // A negative offset: the attributes only, no page is touched.
                    send(notifier, ino, -1, 0);
                }
            }
            Ok(Task::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The kernel writes dirty pages out before it drops them.
fn write_out(notifier: &OnceLock<Notifier>, ino: u64, offset: u64) {
    if let Ok(offset) = i64::try_from(offset) {
        send(notifier, ino, offset, 0);
    }
}

fn send(notifier: &OnceLock<Notifier>, ino: u64, offset: i64, length: i64) {
    let Some(notifier) = notifier.get() else { return };
    if let Err(error) = notifier.inval_inode(INodeNo(ino), offset, length) {
        log::debug!("the kernel did not take a notification for inode {ino}: {error}");
    }
}
