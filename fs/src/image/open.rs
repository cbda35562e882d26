//! An open image: locked, judged, its label in hand.

use super::error::ImageError;
use super::file::FileBacking;
use super::format::SIZE_BYTES_MAX;
use super::generation::random_bytes;
use super::label::{LABEL_BYTES, Label, Role, State, check_name};
use super::lock;
use super::publish::Draft;
use super::slot::{LabelSlot, offset_for};
use super::superblock::Superblock;
use super::undo::UndoFile;
use mirrorfs_journal::log::LogLun;
use mirrorfs_journal::{Epoch, LunId, LunUuid};
use parking_lot::{Mutex, RwLock};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How to open an image.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// As what. A mirror must have a label that says so; a primary without a label is adopted.
    pub role: Role,
    /// Name of the LUN; an image of another name is refused, an adopted one gets it.
    pub name: String,
    /// How long to wait for another holder of the lock: some seconds for a mount, as umount(8) returns before the daemon has ended.
    pub lock_wait: Duration,
}

/// How an image was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Found {
    /// It was closed cleanly and nobody has changed it since.
    pub clean: bool,
    /// Somebody has changed it since it was closed cleanly: a primary's regions are all marked; a mirror must be
    /// resynced whole.
    pub changed: bool,
    /// It had no label and was given one.
    pub adopted: bool,
    /// It was made by this call: all holes.
    pub created: bool,
}

/// An open image, locked until the last handle on its file is dropped (this and [`Self::backing`]'s).
pub struct Image {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) backing: Arc<FileBacking>,
    slot: Mutex<LabelSlot>,
    found: Found,
    /// Mirror: the way back from the resync that is under way.
    pub(super) undo: RwLock<Option<Arc<UndoFile>>>,
    /// A sync has failed: pages may be clean that were never written, so that no later sync can be believed.
    failed: AtomicBool,
}

impl Image {
    /// Opens an image, exclusively. As primary it raises the incarnation and writes `in use`, synced, before it returns.
    ///
    /// # Errors
    /// Each reason to refuse has its own [`ImageError`].
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        check_name(&options.name).map_err(ImageError::Name)?;
        let file = open_locked(path, options.lock_wait)?;
        // What we read may be in the page cache only; it must be durable before either copy is written.
        file.sync_data().map_err(ImageError::io("sync", path))?;
        let slot = LabelSlot::find(&file, path)?;
        if let Some(slot) = &slot {
            let label = slot.label();
            if label.role != options.role {
                return Err(ImageError::WrongRole {
                    path: path.to_owned(),
                    found: label.role,
                    expected: options.role,
                });
            }
            if label.name != options.name {
                return Err(ImageError::OtherName {
                    path: path.to_owned(),
                    found: label.name.clone(),
                    expected: options.name.clone(),
                });
            }
        }
        match (options.role, slot) {
            (Role::Primary, slot) => Self::open_primary(path, file, slot, &options.name),
            (Role::Mirror, Some(slot)) => Self::open_mirror(path, file, slot),
            (Role::Mirror, None) => Err(ImageError::NoLabel { path: path.to_owned() }),
        }
    }

    fn open_primary(
        path: &Path,
        file: Arc<File>,
        slot: Option<LabelSlot>,
        name: &str,
    ) -> Result<Self, ImageError> {
        let superblock = Superblock::read(&file, path)?;
        let metadata = file.metadata().map_err(ImageError::io("stat", path))?;
        let size_bytes = superblock.size_bytes();
        if metadata.len() < size_bytes {
            return Err(ImageError::Truncated {
                path: path.to_owned(),
                expected: size_bytes,
                found: metadata.len(),
            });
        }
        let write_error = || ImageError::io("write the label of", path);
        let mut found = Found::default();
        let mut slot = match slot {
            Some(slot) if slot.offset() >= size_bytes => slot,
            // The file system has grown over the label: it moves behind the new end.
            Some(slot) => {
                let offset = offset_for(metadata.len().max(size_bytes));
                LabelSlot::append(&file, offset, slot.serial(), slot.label().clone()).map_err(write_error())?
            }
            None => {
                // What will not be served is not changed either.
                crate::ext4::check_supported(superblock.raw()).map_err(|error| ImageError::Unsupported {
                    path: path.to_owned(),
                    why: error.to_string(),
                })?;
                found.adopted = true;
                let uuid = LunUuid(random_bytes().map_err(write_error())?);
                let label = Label::new_primary(uuid, name.to_owned(), size_bytes).map_err(write_error())?;
                // Nothing that lies behind the file system is overwritten.
                LabelSlot::append(&file, offset_for(metadata.len()), 0, label).map_err(write_error())?
            }
        };
        let mut label = slot.label().clone();
        if label.state == State::Clean {
            // A new image has no digest: nobody can have written to it through us.
            found.clean = label.closed.is_none_or(|closed| closed == digest(&superblock, &metadata));
            found.changed = !found.clean;
        }
        // Numbers must rise above those that the label has heard of, too (a promoted mirror).
        label.incarnation = label.incarnation.max(label.durable_epoch.incarnation());
        label.incarnation = label
            .next_incarnation()
            .ok_or_else(|| ImageError::IncarnationsUsedUp { path: path.to_owned() })?;
        label.all_regions |= found.changed || label.size_bytes != size_bytes;
        (label.state, label.closed, label.size_bytes) = (State::InUse, None, size_bytes);
        slot.store(label).and_then(|()| slot.sync()).map_err(write_error())?;
        Self::with(path, file, slot, found)
    }

    fn open_mirror(path: &Path, file: Arc<File>, mut slot: LabelSlot) -> Result<Self, ImageError> {
        let mut label = slot.label().clone();
        if slot.offset() < label.size_bytes {
            return Err(ImageError::Truncated {
                path: path.to_owned(),
                expected: label.size_bytes,
                found: slot.offset(),
            });
        }
        let mut found = Found::default();
        if let Some(closed) = label.closed.take() {
            let metadata = file.metadata().map_err(ImageError::io("stat", path))?;
            found.clean = Superblock::read(&file, path).is_ok_and(|now| digest(&now, &metadata) == closed);
            found.changed = !found.clean;
            if found.changed {
                // No epoch describes it any more; whoever opens it next has to know, too.
                label.incarnation = label.incarnation.max(label.durable_epoch.incarnation());
                (label.state, label.durable_epoch) = (State::Resyncing { undo: None }, Epoch(0));
            }
            slot.store(label)
                .and_then(|()| slot.sync())
                .map_err(ImageError::io("write the label of", path))?;
        }
        let image = Self::with(path, file, slot, found)?;
        image.take_up_undo().map_err(ImageError::io("write the label of", path))?;
        Ok(image)
    }

    /// Makes a mirror image, all holes, and opens it. The mode is 0600; a crash leaves no file of that name.
    ///
    /// # Errors
    /// A bad name or size, a file in the way, the system's.
    pub fn create_mirror(
        path: &Path,
        name: &str,
        uuid: LunUuid,
        size_bytes: u64,
    ) -> Result<Self, ImageError> {
        check_name(name).map_err(ImageError::Name)?;
        check_size(size_bytes)?;
        let draft = Draft::create(path)?;
        let label = Label::new_mirror(uuid, name.to_owned(), size_bytes);
        let file = Arc::new(draft.file.try_clone().map_err(ImageError::io("open", path))?);
        LabelSlot::append(&file, offset_for(size_bytes), 0, label)
            .map_err(ImageError::io("write the label of", path))?;
        let file = Arc::new(draft.publish()?);
        let slot =
            LabelSlot::find(&file, path)?.ok_or_else(|| ImageError::NoLabel { path: path.to_owned() })?;
        Self::with(path, file, slot, Found { created: true, ..Found::default() })
    }

    fn with(path: &Path, file: Arc<File>, slot: LabelSlot, found: Found) -> Result<Self, ImageError> {
        let backing = FileBacking::new(Arc::clone(&file), slot.label().size_bytes)
            .map_err(ImageError::io("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            backing: Arc::new(backing),
            slot: Mutex::new(slot),
            found,
            undo: RwLock::new(None),
            failed: AtomicBool::new(false),
        })
    }

    /// The file's path, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system part; keeps the lock as long as it lives.
    #[must_use]
    pub fn backing(&self) -> Arc<FileBacking> {
        Arc::clone(&self.backing)
    }

    /// Bytes of the file system.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        super::Backing::size_bytes(&*self.backing)
    }

    /// The label as last written. May wait for a sync of the label that is going on.
    #[must_use]
    pub fn label(&self) -> Label {
        self.slot.lock().label().clone()
    }

    /// How the image was found.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found
    }

    /// What the mirror log must know of this image, as its LUN number `id`.
    #[must_use]
    pub fn log_lun(&self, id: LunId) -> LogLun {
        let label = self.label();
        LogLun {
            id,
            uuid: label.uuid,
            generation: label.generations.current().unwrap_or_default(),
            name: label.name,
            size_bytes: label.size_bytes,
            durable_epoch: label.durable_epoch,
            clean: self.found.clean,
            all_regions: label.all_regions,
        }
    }

    /// Changes the label and syncs the file (for state, role and generations).
    ///
    /// # Errors
    /// The system's. After a failed sync each later call fails.
    pub fn update_label(&self, change: impl FnOnce(&mut Label)) -> io::Result<()> {
        self.guarded(|slot| {
            let mut label = slot.label().clone();
            change(&mut label);
            slot.store(label)?;
            slot.sync()
        })
    }

    /// The mirror log has all regions durably marked (see [`Label::all_regions`]): the label need not say so any more.
    ///
    /// # Errors
    /// As for [`Self::update_label`].
    pub fn regions_marked(&self) -> io::Result<()> {
        if !self.slot.lock().label().all_regions {
            return Ok(());
        }
        self.update_label(|label| label.all_regions = false)
    }

    /// Mirror: syncs the image, then writes `epoch` to the label, which becomes durable with the next sync. One
    /// fdatasync and one 4 KiB write.
    ///
    /// # Errors
    /// The system's; latches: no later sync of this image succeeds.
    pub fn sync_epoch(&self, epoch: Epoch) -> io::Result<()> {
        self.guarded(|slot| {
            slot.sync()?;
            let mut label = slot.label().clone();
            label.durable_epoch = epoch;
            slot.store(label)
        })
    }

    /// Mirror: follows a changed size of the primary. What a grown image gained is a hole. Needs the image for itself:
    /// fetch [`Self::backing`] again afterwards. A crash on the way leaves the old or the new size.
    ///
    /// # Errors
    /// An impossible size; the system's.
    pub fn resize_mirror(&mut self, size_bytes: u64) -> Result<(), ImageError> {
        check_size(size_bytes)?;
        self.give_up_undo(&io::Error::other("its size changes"))
            .map_err(ImageError::io("resize", &self.path))?;
        let (path, file) = (&self.path, &self.file);
        resize(file, self.slot.get_mut(), size_bytes).map_err(ImageError::io("resize", path))?;
        let backing = FileBacking::new(Arc::clone(file), size_bytes);
        self.backing = Arc::new(backing.map_err(ImageError::io("open", path))?);
        Ok(())
    }

    /// Ends the use of an image from which all is written: syncs it and notes how it looks, so that the next open can
    /// tell that nobody changed it. A primary's label gets `clean` and the durable epoch that it last heard of, if given.
    /// The file's modification time is as before the label's last write.
    ///
    /// # Errors
    /// As for [`Self::sync_epoch`]; the image then counts as closed uncleanly.
    pub fn close_clean(&self, durable_epoch: Option<Epoch>) -> Result<(), ImageError> {
        let close = |slot: &mut LabelSlot| {
            slot.sync()?;
            let metadata = self.file.metadata()?;
            let mut label = slot.label().clone();
            if label.role == Role::Primary {
                label.state = State::Clean;
            }
            label.durable_epoch = durable_epoch.unwrap_or(label.durable_epoch);
            label.closed = match Superblock::read(&self.file, &self.path) {
                Ok(now) => Some(digest(&now, &metadata)),
                // A mirror that was never in sync may hold no superblock yet.
                Err(_) if label.role == Role::Mirror => None,
                Err(error) => return Err(io::Error::other(error)),
            };
            slot.store(label)?;
            set_modified(&self.file, &metadata)?;
            self.file.sync_all()
        };
        self.guarded(close).map_err(ImageError::io("close", &self.path))
    }

    fn guarded(&self, run: impl FnOnce(&mut LabelSlot) -> io::Result<()>) -> io::Result<()> {
        let mut slot = self.slot.lock();
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of the image failed; it must be opened again"));
        }
        run(&mut slot).inspect_err(|error| {
            log::error!("{}: {error}", self.path.display());
            self.failed.store(true, Ordering::Release);
        })
    }
}

/// Reads the label of an image, without its lock, for `status` and the like. `None`: it has none.
///
/// # Errors
/// Damaged, newer, or unreadable.
pub fn read_label(path: &Path) -> Result<Option<Label>, ImageError> {
    let file = Arc::new(File::open(path).map_err(ImageError::io("open", path))?);
    if !file.metadata().map_err(ImageError::io("stat", path))?.is_file() {
        return Err(ImageError::NotRegular { path: path.to_owned() });
    }
    Ok(LabelSlot::find(&file, path)?.map(|slot| slot.label().clone()))
}

fn open_locked(path: &Path, wait: Duration) -> Result<Arc<File>, ImageError> {
    loop {
        // A look before opening: opening a device or a FIFO may do things.
        let regular = |metadata: &Metadata| {
            if metadata.is_file() { Ok(()) } else { Err(ImageError::NotRegular { path: path.to_owned() }) }
        };
        regular(&std::fs::metadata(path).map_err(ImageError::io("open", path))?)?;
        let file = File::options().read(true).write(true).open(path).map_err(ImageError::io("open", path))?;
        let opened = file.metadata().map_err(ImageError::io("stat", path))?;
        regular(&opened)?;
        lock::lock(&file, path, wait)?;
        // The name may have got another file while we waited.
        let named = std::fs::metadata(path).map_err(ImageError::io("open", path))?;
        if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) {
            lock::check_loop_devices(&file, path)?;
            return Ok(Arc::new(file));
        }
    }
}

/// Moves the label behind the new end; at each instant a valid label is the last of the file.
fn resize(file: &Arc<File>, slot: &mut LabelSlot, size_bytes: u64) -> io::Result<()> {
    let (old_size, old_offset, offset) = (slot.label().size_bytes, slot.offset(), offset_for(size_bytes));
    let zero = |from: u64, to: u64| match to.checked_sub(from) {
        Some(length) if length > 0 => file.write_all_at(&vec![0; length.min(LABEL_BYTES) as usize], from),
        _ => Ok(()),
    };
    let mut label = slot.label().clone();
    if offset > old_offset {
        *slot = LabelSlot::append(file, offset, slot.serial(), label.clone())?;
        zero(old_offset, offset)?;
    }
    if size_bytes > old_size {
        // Where the label was before, also if an earlier growth was interrupted, there is file system now: zeros, durable
        // before the label says so.
        zero(offset_for(old_size), offset.min(slot.offset()))?;
        file.sync_data()?;
    }
    label.size_bytes = size_bytes;
    if offset < slot.offset() {
        zero(size_bytes, offset)?;
        *slot = LabelSlot::append(file, offset, slot.serial(), label)?;
        file.set_len(offset + LABEL_BYTES)?;
        file.sync_all()
    } else if label.size_bytes != old_size {
        slot.store(label)?;
        slot.sync()
    } else {
        Ok(())
    }
}

fn check_size(size_bytes: u64) -> Result<(), ImageError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) || size_bytes > SIZE_BYTES_MAX {
        let why = format!("a mirror image has whole sectors and at most {} TiB", SIZE_BYTES_MAX >> 40);
        return Err(ImageError::Size { size_bytes, why });
    }
    Ok(())
}

fn digest(superblock: &Superblock, metadata: &Metadata) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(superblock.raw());
    hasher.update(&metadata.len().to_le_bytes());
    hasher.update(&metadata.mtime().to_le_bytes());
    hasher.update(&metadata.mtime_nsec().to_le_bytes());
    *hasher.finalize().as_bytes()
}

fn set_modified(file: &File, before: &Metadata) -> io::Result<()> {
    let times = [
        libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        libc::timespec { tv_sec: before.mtime(), tv_nsec: before.mtime_nsec() },
    ];
    // SAFETY: the descriptor is open and `times` holds the two elements that the call reads.
    if unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
