//! The mirror log's face to the other crates.
//!
//! Three sides use it, each from its own threads:
//! - the **primary** (`fs::image::Lun`): [`MirrorLog::ensure_marked`], [`MirrorLog::append`],
//!   [`MirrorLog::barrier`], [`MirrorLog::sync_queue`], [`MirrorLog::locally_synced`], `when_*`;
//! - the **link** (`net`): [`MirrorLog::begin_session`], [`MirrorLog::next`], [`MirrorLog::applied`],
//!   [`MirrorLog::durable`], [`MirrorLog::end_session`];
//! - the **commands** (`src`): [`MirrorLog::status`], `inspect` (offline and online listing), close.

use crate::ids::{Epoch, Generation, Incarnation, LunId, LunUuid, RegionNo, Sequence};
use crate::request::{Body, MirrorRequest, Origin};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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
    /// Its number, for [`MirrorLog::when_applied`].
    pub sequence: Sequence,
    /// Its epoch, for [`MirrorLog::when_durable`].
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

/// How a session starts, decided by [`MirrorLog::begin_session`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStart {
    /// First epoch that will come out of [`MirrorLog::next`].
    pub first_epoch: Epoch,
    /// LUNs whose first epoch in this session may already be partly applied: the peer gathers that epoch in memory and
    /// applies only the last content of each block (design section 4, Resume).
    pub gather: Vec<LunId>,
    /// LUNs that need a resync (the log has appended their `ResyncBegin`), and why, in words.
    pub resync: Vec<(LunId, String)>,
}

/// Reads regions of a primary image for the resync; implemented by `fs::image::Lun`.
pub trait RegionSource: Send + Sync {
    /// Reads `region` under its region lock and, still under it, appends its content to the log with
    /// [`MirrorLog::append`] and [`Origin::Resync`]: data as writes of at most 256 KiB, holes as discards
    /// (none when `skip_holes`).
    ///
    /// # Errors
    /// When the image can't be read.
    fn resync_region(&self, region: RegionNo, skip_holes: bool) -> std::io::Result<()>;
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
    /// Totals since the mount: requests and bytes appended, retired.
    pub appended_requests: u64,
    /// Bytes appended.
    pub appended_bytes: u64,
    /// Requests retired.
    pub retired_requests: u64,
}

/// What [`MirrorLog::next`] hands to the dispatcher.
#[derive(Clone, Debug)]
pub enum Next {
    /// Send this one.
    Request(Arc<MirrorRequest>),
    /// Nothing to send within the time given.
    Idle,
    /// The log is closing, or the session was ended meanwhile.
    Ended,
}

/// The mirror log of one link. Shared by `Arc`; all methods take `&self`; none blocks on the network.
pub struct MirrorLog {
    _private: (),
}

#[allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc)]
impl MirrorLog {
    /// Opens or makes the queue and the region maps of `config`, and carries out the recovery of design section 6:
    /// cut after the last barrier, regions of what was cut marked, numbers of this incarnation begun.
    ///
    /// # Errors
    /// When the directory can't be used or another process holds it. Damage is survived: regions are marked.
    pub fn open(config: LogConfig) -> Result<Arc<Self>, LogError> {
        unimplemented!()
    }

    // ---- primary side -------------------------------------------------------------------------------------

    /// Whether the region is marked already: then a request may be submitted without waiting. Lock-free.
    pub fn is_marked(&self, lun: LunId, region: RegionNo) -> bool {
        unimplemented!()
    }
    /// Marks the region (and its run of 16) durably; blocks for one fdatasync if it was not marked. Called before the
    /// image write. Never called on a FUSE thread when [`Self::is_marked`] is false.
    pub fn ensure_marked(&self, lun: LunId, region: RegionNo) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Appends a write, discard or check. Called under the region's lock, after the image has it. Inserts a barrier of
    /// its own before an epoch exceeds 64 MiB. Blocks for no disk sync and no network; when memory is full or the peer
    /// is away it may write to the queue's page cache. `body` is `Write`, `Discard` or `Check` only.
    pub fn append(&self, lun: LunId, origin: Origin, body: Body) -> Appended {
        unimplemented!()
    }
    /// Ends the open epoch because of a Flush on `lun`: appends a barrier and returns the epoch that it closes. If the
    /// open epoch holds no request, returns the last closed one without a new barrier.
    pub fn barrier(&self, lun: LunId) -> Epoch {
        unimplemented!()
    }
    /// fdatasyncs what the queue holds up to and including `epoch`'s barrier, if that part is (only) on disk; returns
    /// at once otherwise. Called by the Flush, side by side with the image's own sync. A failing queue disk is not an
    /// error: the log gives the queue up and reports it.
    pub fn sync_queue(&self, epoch: Epoch) {
        unimplemented!()
    }
    /// The image of `lun` has been fdatasynced, covering all requests of epochs up to `epoch`. Lets regions be cleared.
    pub fn locally_synced(&self, lun: LunId, epoch: Epoch) {
        unimplemented!()
    }
    /// Calls `waiter` when the peer has answered that it stored `sequence`, or as the outage policy says.
    pub fn when_applied(&self, sequence: Sequence, waiter: Waiter) {
        unimplemented!()
    }
    /// Calls `waiter` when `epoch` is durable on the mirror, or as the outage policy says.
    pub fn when_durable(&self, epoch: Epoch, waiter: Waiter) {
        unimplemented!()
    }
    /// Sets the policy for waits while the peer is away; `None`: waits are never ended by an outage (`mirrorfs sync`
    /// with a bound of its own). Takes effect at once, also for those waiting.
    pub fn set_on_outage(&self, policy: OnOutage) {
        unimplemented!()
    }
    /// Gives the log the images to read for a resync. Called once, before the first session.
    pub fn set_region_source(&self, lun: LunId, source: Arc<dyn RegionSource>) {
        unimplemented!()
    }

    // ---- link side ----------------------------------------------------------------------------------------

    /// The peer has answered the greeting with these LUN states. Decides for each LUN whether the log reaches back far
    /// enough (or the queue is dropped, its regions marked, and a resync begun, whose thread the log runs), and
    /// positions [`Self::next`] at the lowest epoch that any LUN lacks. From now on the log is "live".
    pub fn begin_session(&self, peer: &[PeerLun]) -> Result<SessionStart, LogError> {
        unimplemented!()
    }
    /// The next record in order, from memory or disk; waits at most `timeout`. One caller at a time (the dispatcher).
    /// A damaged record makes the log give up the queue from the barrier before it (regions marked, resync begun).
    pub fn next(&self, timeout: Duration) -> Next {
        unimplemented!()
    }
    /// The peer has stored this request (not yet durable).
    pub fn applied(&self, sequence: Sequence) {
        unimplemented!()
    }
    /// The peer answered a `Check`: unless `equal`, its region is sent as data.
    pub fn checked(&self, sequence: Sequence, equal: bool) {
        unimplemented!()
    }
    /// The peer has made `epoch`, and with it all before it, durable: those records retire.
    pub fn durable(&self, epoch: Epoch) {
        unimplemented!()
    }
    /// The session is over. Memory is spilled to the queue (by the log's spiller thread), a resync in progress stops
    /// and its entries are dropped, waits are ended as the policy says.
    pub fn end_session(&self) {
        unimplemented!()
    }

    // ---- commands -----------------------------------------------------------------------------------------

    /// Figures for `status`; cheap.
    pub fn status(&self) -> LogStatus {
        unimplemented!()
    }
    /// Headers of what waits, in order, at most `limit`; payloads are read only by `show`.
    pub fn list(&self, limit: usize) -> Vec<Arc<MirrorRequest>> {
        unimplemented!()
    }
    /// Makes what waits durable in the queue and closes it: after this no process is needed to keep it. Returns the last
    /// epoch that the peer reported durable for each LUN, for the labels. `next` answers `Ended` from now on.
    pub fn close(&self) -> Vec<(LunId, Epoch)> {
        unimplemented!()
    }
}

/// A queue opened read-only by the commands, with no mount running (or beside a running one, on its files).
pub struct QueueView {
    _private: (),
}

#[allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc)]
impl QueueView {
    /// Opens the queue in `dir` for reading, from its segments alone (sled's index is compared by [`Self::verify`]).
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        unimplemented!()
    }
    /// The records in order; payloads are loaded only when `with_payload`.
    pub fn records(&self, with_payload: bool) -> Result<Vec<MirrorRequest>, LogError> {
        unimplemented!()
    }
    /// One record with its payload.
    pub fn show(&self, sequence: Sequence) -> Result<Option<MirrorRequest>, LogError> {
        unimplemented!()
    }
    /// Holds every record against its checksum and against the index; one line of text per damage found.
    pub fn verify(&self) -> Result<Vec<String>, LogError> {
        unimplemented!()
    }
}
