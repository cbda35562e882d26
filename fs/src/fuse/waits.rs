//! Replies that wait: for a sync of the image and, in sync mode, for the mirror. They leave from the thread that learns
//! the outcome; no lock, and no thread, is held meanwhile.

use super::linger::News;
use super::ops::{Call, Refuse};
use super::server::{Mode, Server};
use crate::ext4::error::FsError;
use crate::ext4::types::InodeNo;
use fuser::{Errno, ReplyEmpty};
use mirrorfs_journal::log::{Appended, Waited};
use std::sync::Arc;

/// Whether an outcome keeps the promise that the caller waits for.
fn keeps_promise(waited: Waited) -> bool {
    match waited {
        Waited::Mirrored | Waited::Queued => true,
        Waited::Failed => false,
    }
}

/// The mirror's answers, in sync mode.
impl News for Server {
    fn take(&self) -> bool {
        self.mode == Mode::Sync && self.luns.iter().find_map(|lun| lun.lun.receive_answers()).unwrap_or(false)
    }

    fn leave(&self) {
        if self.mode == Mode::Sync {
            self.luns.iter().for_each(|lun| lun.lun.leave_answers());
        }
    }
}

impl Server {
    /// Answers a change of a file's data: at once in async mode; in sync mode when the mirror has the request at `at`.
    /// EIO if the mirror failed.
    pub(crate) fn answer_applied<R: Refuse>(
        &self,
        lun: usize,
        at: Option<Appended>,
        reply: R,
        answer: impl FnOnce(R) + Send + 'static,
    ) {
        if self.mode == Mode::Async || at.is_none() {
            return answer(reply);
        }
        let waiter = move |waited| {
            if keeps_promise(waited) { answer(reply) } else { reply.refuse(Errno::EIO) }
        };
        self.luns[lun].lun.when_applied(at, Box::new(waiter));
    }

    /// fsync and fsyncdir: answers when the inode is durable in the image and, in sync mode, on the mirror.
    pub(crate) fn sync(
        self: &Arc<Self>,
        call: Call,
        lun: usize,
        ino: InodeNo,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.notify.refresh_now(call.ino);
        let server = self.clone();
        let done = move |result: Result<_, FsError>| match result {
            Err(error) => server.refuse(&call, reply, &error),
            Ok(None) => reply.ok(),
            Ok(Some(_)) if server.mode == Mode::Async => reply.ok(),
            Ok(epoch) => server.luns[lun].lun.when_durable(
                epoch,
                Box::new(
                    move |waited| {
                        if keeps_promise(waited) { reply.ok() } else { reply.error(Errno::EIO) }
                    },
                ),
            ),
        };
        self.luns[lun].fs.sync(Some(ino), datasync, Box::new(done));
    }
}
