//! The peer's place for mirror images: `net`'s trait on `fs`'s image.

use crate::state_dir::check_name;
use mirrorfs_fs::image::{
    Backing, FileBacking, Generations, Image, ImageError, Label, OpenOptions, Relation, Role, State,
};
use mirrorfs_journal::{Epoch, Generation};
use mirrorfs_net::store::{LunHello, MirrorImage, MirrorLabel, MirrorStore, StoreRefusal};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes applied behind which writing them out is started: few enough that a sync finds little left, and enough that the call,
/// and a block that is soon written again, cost nothing.
const WRITEBACK_BYTES: u64 = 1 << 20;
/// Time that an older session's images may take to be let go of.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// `DIR/NODE/LUN.img`.
pub(crate) struct DirectoryStore {
    dir: PathBuf,
}

impl DirectoryStore {
    /// Images below `dir`, which exists.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

fn refusal(path: &Path, error: ImageError) -> StoreRefusal {
    let path = path.display().to_string();
    match error {
        ImageError::Locked { .. } | ImageError::LoopDevice { .. } => {
            StoreRefusal::InUse { path, holder: error.to_string() }
        }
        ImageError::WrongRole { found: Role::Primary, .. } => StoreRefusal::IsPrimary { path },
        ImageError::Io { source, .. } => {
            StoreRefusal::Io { path, message: source.to_string(), errno: source.raw_os_error().unwrap_or(0) }
        }
        other => StoreRefusal::Invalid(other.to_string()),
    }
}

impl MirrorStore for DirectoryStore {
    fn open(&self, node: &str, lun: &LunHello) -> Result<Arc<dyn MirrorImage>, StoreRefusal> {
        for (what, name) in [("node", node), ("LUN", &lun.name)] {
            check_name(what, name).map_err(|error| StoreRefusal::Invalid(error.to_string()))?;
        }
        let dir = self.dir.join(node);
        let path = dir.join(format!("{}.img", lun.name));
        crate::state_dir::make_private(&dir).map_err(|error| StoreRefusal::Io {
            path: dir.display().to_string(),
            message: error.to_string(),
            errno: 0,
        })?;
        let mut image = if path.exists() {
            let options = OpenOptions { role: Role::Mirror, name: lun.name.clone(), lock_wait: LOCK_WAIT };
            Image::open(&path, &options).map_err(|error| refusal(&path, error))?
        } else {
            Image::create_mirror(&path, &lun.name, lun.uuid, lun.size_bytes)
                .map_err(|error| refusal(&path, error))?
        };
        judge(&path, &image.label(), lun)?;
        if image.size_bytes() != lun.size_bytes {
            log::info!("{}: following the primary to {} bytes", path.display(), lun.size_bytes);
            image.resize_mirror(lun.size_bytes).map_err(|error| refusal(&path, error))?;
        }
        Ok(Arc::new(Mirror { backing: image.backing(), unstarted: AtomicU64::new(0), image: Some(image) }))
    }
}

/// Whether this label's image may be the mirror of that LUN (design section 9, generations).
fn judge(path: &Path, label: &Label, lun: &LunHello) -> Result<(), StoreRefusal> {
    let shown = path.display().to_string();
    if label.uuid != lun.uuid {
        return Err(StoreRefusal::OtherLun { path: shown, found: label.uuid, expected: lun.uuid });
    }
    match Generations::from_chain(&lun.generations).relation(&label.generations) {
        Relation::Equal | Relation::PeerBehind => Ok(()),
        Relation::SelfBehind => Err(StoreRefusal::Stale { path: shown }),
        Relation::Diverged => Err(StoreRefusal::SplitBrain { path: shown }),
    }
}

/// An open mirror image; closed, with its digest noted, when the session lets go of it.
struct Mirror {
    backing: Arc<FileBacking>,
    /// Bytes applied since writing out was started.
    unstarted: AtomicU64,
    /// `None` only while being dropped.
    image: Option<Image>,
}

impl Mirror {
    fn image(&self) -> &Image {
        self.image.as_ref().expect("taken only by drop")
    }

    fn check_range(&self, offset: u64, length: u64) -> io::Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.backing.size_bytes()) {
            let text = format!("range {offset}+{length} is beyond the file system's end");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }
}

impl MirrorImage for Mirror {
    fn label(&self) -> MirrorLabel {
        let label = self.image().label();
        MirrorLabel {
            generations: label.generations.chain().to_vec(),
            durable_epoch: label.durable_epoch,
            resyncing: matches!(label.state, State::Resyncing { .. } | State::FirstSync),
            created: self.image().found().created,
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_range(offset, bytes.len() as u64)?;
        self.image().before_overwrite(offset, bytes.len() as u64)?;
        self.backing.write_at(offset, bytes)?;
        let length = bytes.len() as u64;
        if length >= WRITEBACK_BYTES / 4 {
            self.backing.start_writeback(offset, length);
        } else if self.unstarted.fetch_add(length, Ordering::Relaxed) + length >= WRITEBACK_BYTES {
            self.unstarted.store(0, Ordering::Relaxed);
            self.backing.start_writeback(0, self.backing.size_bytes());
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_range(offset, length)?;
        self.image().before_overwrite(offset, length)?;
        self.backing.discard(offset, length)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, into.len() as u64)?;
        self.backing.read_at(offset, into)
    }

    fn sync_epoch(&self, epoch: Epoch) -> io::Result<()> {
        self.image().sync_epoch(epoch)
    }

    fn set_resyncing(&self, resyncing: bool, generations: &[Generation]) -> io::Result<()> {
        self.image().set_resyncing(resyncing, generations)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(image) = self.image.take() {
            let path = image.path().to_path_buf();
            if let Err(error) = image.close_clean(None) {
                log::warn!("{}: {error}", path.display());
            }
        }
    }
}
