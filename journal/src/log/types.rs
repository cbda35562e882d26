//! What goes in and out of the log.

use crate::ids::{Epoch, Generation, Incarnation, LunId, LunUuid, RegionNo, Sequence};
use crate::request::MirrorRequest;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// How a log is set up; fixed for the life of the mount.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Directory of the queue and the region maps (`STATE_DIR/queue`); made if missing.
    pub dir: PathBuf,
    /// Payload bytes kept in memory at most (`--memory`).
    pub memory_bytes_max: u64,
    /// Bytes on disk at most (`--queue-max`); `None`: a tenth of the free space, at least 1 GiB.
    pub queue_bytes_max: Option<u64>,
    /// This start's incarnation, already synced in the labels.
    pub incarnation: Incarnation,
    /// The mirrored LUNs; index = `LunId`.
    pub luns: Vec<LogLun>,
}

/// A mirrored LUN as the log needs to know it.
#[derive(Clone, Debug)]
pub struct LogLun {
    /// Its number.
    pub id: LunId,
    /// The image's id; a region map or queue of another id is foreign.
    pub uuid: LunUuid,
    /// Which line of writes.
    pub generation: Generation,
    /// Its name, for messages and listings.
    pub name: String,
    /// Bytes of the file system (the label excluded).
    pub size_bytes: u64,
    /// Last epoch that the peer had reported durable, as of the last clean close (from the label).
    pub durable_epoch: Epoch,
    /// Whether the image was closed cleanly (the label says so and nobody changed the image since). Otherwise the
    /// unclean-stop path of the design's section 6 is taken.
    pub clean: bool,
    /// All regions must be taken as different (new or adopted image, image changed by someone else).
    pub all_regions: bool,
}

/// Where a request landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its number, for [`MirrorLog::when_applied`](super::MirrorLog::when_applied).
    pub sequence: Sequence,
    /// Its epoch, for [`MirrorLog::when_durable`](super::MirrorLog::when_durable).
    pub epoch: Epoch,
}

/// How a wait on the log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The mirror has it (applied or durable, as asked).
    Mirrored,
    /// The peer is away and the policy is `queue`: it is in the on-disk queue (fdatasynced where durability was asked for).
    Queued,
    /// The peer is away and the policy is `readonly`, or the mount is being taken down by force: answer EIO.
    Failed,
}

/// Called once, from the thread that learns the outcome, with no lock of the log held. Must not block.
pub type Waiter = Box<dyn FnOnce(Waited) + Send>;

/// What the mirror does when the peer is away and a reply waits for it (synchronous mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnOutage {
    /// Answer once queued.
    Queue,
    /// Keep waiting.
    Block,
    /// Fail with EIO.
    Readonly,
}

/// What the peer said of one LUN at the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLun {
    /// Our number of the LUN.
    pub id: LunId,
    /// Durable epoch in the mirror's label; 0 if the image was made just now.
    pub durable_epoch: Epoch,
    /// The label says `resyncing`.
    pub resyncing: bool,
    /// The mirror image was made for this session: all of it is holes.
    pub created: bool,
}

/// How a session starts, decided by [`MirrorLog::begin_session`](super::MirrorLog::begin_session).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStart {
    /// First epoch that will come out of [`MirrorLog::next`](super::MirrorLog::next).
    pub first_epoch: Epoch,
    /// LUNs whose first epoch in this session may already be partly applied: the peer gathers that epoch in memory and
    /// applies only the last content of each block (design section 4, Resume).
    pub gather: Vec<LunId>,
    /// LUNs that need a resync (the log has appended their `ResyncBegin`), and why, in words.
    pub resync: Vec<(LunId, String)>,
}

/// Sends what was appended from the thread that is going to wait for it; implemented by the link, see
/// [`MirrorLog::set_eager`](super::MirrorLog::set_eager).
pub trait Pump: Send + Sync {
    /// Sends what the log has in memory as far as that blocks on nothing, and leaves the rest to the link's own threads.
    /// Called with no lock of the log held, from any thread.
    fn pump(&self);
    /// Takes what the peer has answered, as far as that blocks on nothing; true if it was something. While it is called again
    /// and again the link's own thread may leave it to the caller, until [`Self::leave`].
    fn receive(&self) -> bool;
    /// Whoever called [`Self::receive`] does not go on.
    fn leave(&self);
}

/// Reads regions of a primary image for the resync; implemented by `fs::image::Lun`.
pub trait RegionSource: Send + Sync {
    /// Reads `region` under its region lock and, still under it, appends its content to the log with
    /// [`MirrorLog::append`](super::MirrorLog::append) and [`Origin::Resync`](crate::request::Origin::Resync): data as writes of at most 256 KiB, holes as discards
    /// (none when `skip_holes`).
    ///
    /// Returns the region to go on with: the one behind it or, when `skip_holes`, a later one if there was no data before that while
    /// this one was read (what is written there afterwards is in the log). So a large hole is looked through once.
    ///
    /// # Errors
    /// When the image can't be read.
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> std::io::Result<RegionNo>;
}

/// Errors of the log. A failing queue disk is never one of them: it is reported in [`LogStatus`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A file or directory of the queue can't be used at all.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "open".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the queue open.
    #[error("the queue {} is in use by another process", path.display())]
    InUse {
        /// The queue's directory.
        path: PathBuf,
    },
    /// A record or file is damaged, at this place.
    #[error("{}: damaged at byte {offset}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer mirrorfs.
    #[error("{}: format version {found}, this mirrorfs knows up to {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
}

/// Figures for `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Requests (not barriers) not yet retired.
    pub waiting_requests: u64,
    /// Their payload bytes.
    pub waiting_bytes: u64,
    /// Age of the oldest of them.
    pub oldest_age_ms: u64,
    /// Of the waiting ones: sent and not yet durable.
    pub in_flight_requests: u64,
    /// Payload bytes held in memory.
    pub memory_bytes: u64,
    /// Requests in the on-disk queue.
    pub queued_requests: u64,
    /// Payload bytes in it.
    pub queued_bytes: u64,
    /// Bytes its files use.
    pub queue_disk_bytes: u64,
    /// Its budget.
    pub queue_bytes_max: u64,
    /// Budget spent, disk full or failed, with the reason: later requests only mark regions.
    pub queue_given_up: Option<String>,
    /// Open epoch.
    pub open_epoch: Epoch,
    /// Last epoch the peer has reported durable.
    pub durable_epoch: Epoch,
    /// Regions marked (may differ on the mirror), of all LUNs.
    pub marked_regions: u64,
    /// Regions still to be resynced, of all LUNs; 0 when no resync runs.
    pub resync_regions_left: u64,
    /// A resync has begun and its end is not durable on the mirror yet.
    pub resync_running: bool,
    /// Totals since the mount: requests and bytes appended, retired.
    pub appended_requests: u64,
    /// Bytes appended.
    pub appended_bytes: u64,
    /// Requests retired.
    pub retired_requests: u64,
}

/// What [`MirrorLog::next`](super::MirrorLog::next) hands to the dispatcher.
#[derive(Clone, Debug)]
pub enum Next {
    /// Send this one.
    Request(Arc<MirrorRequest>),
    /// Nothing to send within the time given.
    Idle,
    /// The log is closing, or the session was ended meanwhile.
    Ended,
}
