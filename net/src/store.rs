//! What the peer server writes to: a trait that the binary implements with `fs`'s image.

use mirrorfs_journal::{Epoch, Generation, LunUuid};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A LUN as the primary presents it in the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunHello {
    /// Name of the LUN, checked before it becomes a file name: `[A-Za-z0-9._-]{1,64}`, not starting with a dot.
    pub name: String,
    /// Id of the image.
    pub uuid: LunUuid,
    /// Bytes of the file system; the mirror image follows a changed size.
    pub size_bytes: u64,
    /// The primary's generation, newest first, with up to 8 predecessors.
    pub generations: Vec<Generation>,
    /// Last epoch that the primary knows to be durable on the mirror.
    pub durable_epoch: Epoch,
}

/// What the mirror's label says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorLabel {
    /// Generation chain, newest first; empty when the image was made just now.
    pub generations: Vec<Generation>,
    /// Last epoch known to be durable.
    pub durable_epoch: Epoch,
    /// A resync was begun and has not ended.
    pub resyncing: bool,
    /// The image was made by this call: all holes.
    pub created: bool,
}

/// Why the peer can't serve a LUN; sent to the primary and shown in its `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StoreRefusal {
    /// A mirror file of that name belongs to another image.
    #[error(
        "mirror file {path} belongs to LUN {found}, not {expected}; it is never overwritten: move it away or use another --node"
    )]
    OtherLun {
        /// The file at the peer.
        path: String,
        /// UUID in it.
        found: LunUuid,
        /// UUID asked for.
        expected: LunUuid,
    },
    /// Somebody else has the image locked.
    #[error("mirror file {path} is in use: {holder}")]
    InUse {
        /// The file at the peer.
        path: String,
        /// By whom, in words.
        holder: String,
    },
    /// The image is a primary (promoted) here: refuse to be its mirror.
    #[error(
        "{path} is a primary on the peer, it was promoted: unmount here and run mirrorfs demote to follow it, or demote it there"
    )]
    IsPrimary {
        /// The file at the peer.
        path: String,
    },
    /// Neither side's generation is in the other's chain.
    #[error(
        "split brain: {path} and this primary were both written to independently; run mirrorfs demote on the side to be given up"
    )]
    SplitBrain {
        /// The file at the peer.
        path: String,
    },
    /// The primary is older than the mirror.
    #[error(
        "this primary is stale: the peer's image {path} has moved on; unmount here and run mirrorfs demote, or demote it there"
    )]
    Stale {
        /// The file at the peer.
        path: String,
    },
    /// Bad name, bad size.
    #[error("{0}")]
    Invalid(String),
    /// Disk error at the peer.
    #[error("{path}: {message}")]
    Io {
        /// The file at the peer.
        path: String,
        /// The system's words.
        message: String,
        /// The system's number.
        errno: i32,
    },
}

/// The peer's place for mirror images.
pub trait MirrorStore: Send + Sync + 'static {
    /// Opens (or makes) `DIR/NODE/LUN.img`, locked for the session; the lock goes when the returned image is dropped.
    ///
    /// # Errors
    /// When the image is not this LUN's mirror or can't be used.
    fn open(&self, node: &str, lun: &LunHello) -> Result<Arc<dyn MirrorImage>, StoreRefusal>;
}

/// One open mirror image. Calls on disjoint ranges may come from several threads at once.
pub trait MirrorImage: Send + Sync + 'static {
    /// What its label says now.
    fn label(&self) -> MirrorLabel;
    /// Writes the bytes and starts their writeback; does not sync. Refuses a range beyond the file system's end.
    ///
    /// # Errors
    /// The system's error; the session ends and nothing later is applied.
    fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    /// Makes the range read as zeros, giving host space back.
    ///
    /// # Errors
    /// As for `write`.
    fn discard(&self, offset: u64, length: u64) -> std::io::Result<()>;
    /// Reads, for `Check`.
    ///
    /// # Errors
    /// As for `write`.
    fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()>;
    /// Syncs the image, then writes `epoch` to the label (which becomes durable with the next sync).
    ///
    /// # Errors
    /// As for `write`; latches: no later sync of this image succeeds.
    fn sync_epoch(&self, epoch: Epoch) -> std::io::Result<()>;
    /// Writes `resyncing` (and the primary's generations when it ends) to the label, synced before it returns.
    ///
    /// # Errors
    /// As for `write`.
    fn set_resyncing(&self, resyncing: bool, generations: &[Generation]) -> std::io::Result<()>;
}
