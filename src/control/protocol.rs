//! Requests and replies of the control socket, which are also what `--json` prints.

use mirrorfs_journal::log::{LogStatus, OnOutage};
use mirrorfs_net::status::{LinkStatus, PeerStatus};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a command asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub(crate) enum Request {
    /// The status.
    Status,
    /// Commit, and wait until all before it is durable on the mirror.
    Sync {
        /// Give up after so many milliseconds.
        timeout_ms: Option<u64>,
    },
    /// What waits in the log, memory and disk together.
    Journal {
        /// At most so many rows; 0: all.
        limit: usize,
    },
    /// End the mount.
    Unmount {
        /// Even when files are in use.
        force: bool,
    },
    /// Set the outage policy.
    OnOutage {
        /// The new one.
        policy: OnOutage,
    },
    /// Turn read-only, or writable again.
    Remount {
        /// Read-only?
        read_only: bool,
    },
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub(crate) enum Reply {
    /// To `Status`.
    Status(Box<StatusReply>),
    /// To `Journal`.
    Journal {
        /// The rows, oldest first.
        rows: Vec<JournalRow>,
    },
    /// Done.
    Done,
    /// Not done.
    Error {
        /// The exit code for the command.
        code: i32,
        /// Why not.
        message: String,
    },
}

/// Status of a process, or of a directory that no process serves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StatusReply {
    /// One of `in-sync`, `catching-up`, `resyncing`, `disconnected`, `read-only`, `local`, `stopped`, `serving`.
    pub(crate) verdict: String,
    /// The verdict in a sentence.
    pub(crate) summary: String,
    /// Process that serves it.
    pub(crate) pid: Option<u32>,
    /// The mount, if it is one.
    pub(crate) mount: Option<MountStatus>,
    /// The peer server, if there is one.
    pub(crate) peer: Option<PeerStatus>,
}

/// Status of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MountStatus {
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Where its state is.
    pub(crate) state_dir: PathBuf,
    /// `async` or `sync`.
    pub(crate) mode: String,
    /// Its LUNs.
    pub(crate) luns: Vec<LunStatus>,
    /// The link; `None` when nothing is mirrored or no process runs.
    pub(crate) link: Option<LinkStatus>,
    /// The mirror log.
    pub(crate) log: Option<LogStatus>,
}

/// Status of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LunStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its file.
    pub(crate) image: PathBuf,
    /// Designated to be mirrored?
    pub(crate) mirrored: bool,
    /// Why it is read-only, if it is.
    pub(crate) read_only: Option<String>,
    /// Bytes of the file system.
    pub(crate) size_bytes: u64,
    /// Bytes free for files.
    pub(crate) free_bytes: Option<u64>,
    /// Transactions committed since the mount.
    pub(crate) commits: Option<u64>,
    /// What the label says: role and state, in words.
    pub(crate) label: String,
    /// Why the label can't be read, if so.
    pub(crate) problem: Option<String>,
}

/// One row of `journal ls`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JournalRow {
    /// `INCARNATION.COUNTER`.
    pub(crate) sequence: String,
    /// Likewise.
    pub(crate) epoch: String,
    /// LUN's name.
    pub(crate) lun: String,
    /// `write`, `discard`, `check`, `barrier`, `resync-begin`, `resync-end`.
    pub(crate) op: String,
    /// First byte in the image.
    pub(crate) offset: Option<u64>,
    /// Bytes.
    pub(crate) length: Option<u64>,
    /// Since it was accepted.
    pub(crate) age_ms: u64,
    /// File name, `inode N (deleted)`, `journal`, `metadata: …`.
    pub(crate) name: String,
}
