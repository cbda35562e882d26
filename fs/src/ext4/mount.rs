//! Opening and closing an image.

use super::alloc::Allocator;
use super::bytes::{le32, put16, put32};
use super::cache::MetaCache;
use super::checksum::crc32c;
use super::error::{FsError, Result};
use super::file::DataLocks;
use super::orphan::OrphanList;
use super::superblock::{ChecksumKind, Geometry, SUPERBLOCK_BYTES};
use super::tx::{Core, Running};
use super::types::{GroupNo, Tid};
use super::{Ext4, Options};
use crate::image::Lun;
use mirrorfs_journal::{Epoch, Origin};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;

impl Ext4 {
    /// Opens the image. (Interim: no journal yet; `close` writes everything home.)
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`, I/O errors.
    pub fn open(lun: Arc<Lun>, options: Options) -> Result<Arc<Self>> {
        let mut raw = vec![0; SUPERBLOCK_BYTES];
        lun.read(1024, &mut raw)?;
        let geometry = Arc::new(Geometry::parse(&raw)?);
        let mut core = Core {
            cache: MetaCache::new(lun.clone(), &geometry),
            running: Running::new(Tid(1)),
            alloc: Allocator::new(&geometry),
            orphans: OrphanList::default(),
            free_blocks: 0,
            free_inodes: 0,
            last_orphan: le32(&raw, 0xE8),
            counts_changed: false,
            running_blocks_max: 1 << 30,
            read_only: None,
            handles: 0,
            lun: lun.clone(),
            geometry: geometry.clone(),
        };
        for group in 0..geometry.group_count {
            let desc = core.group(GroupNo(group))?;
            core.free_blocks += u64::from(desc.free_blocks);
            core.free_inodes += u64::from(desc.free_inodes);
        }
        Ok(Arc::new(Self {
            core: Mutex::new(core),
            progress: Condvar::new(),
            data_locks: DataLocks::default(),
            lun,
            options,
        }))
    }

    /// The image.
    pub fn lun(&self) -> &Arc<Lun> {
        &self.lun
    }

    /// Writes everything home.
    ///
    /// # Errors
    /// I/O errors.
    pub fn close(&self) -> Result<Option<Epoch>> {
        let mut core = self.core.lock();
        self.write_home(&mut core)?;
        let _ = &self.options;
        Ok(self.lun.flush()?)
    }

    fn write_home(&self, core: &mut MutexGuard<'_, Core>) -> Result<()> {
        let running = std::mem::replace(&mut core.running, Running::new(Tid(1)));
        let geometry = core.geometry.clone();
        let (place, offset) = geometry.superblock_place();
        let mut blocks: Vec<u64> = running.blocks.iter().copied().collect();
        if !blocks.contains(&place.0) {
            blocks.push(place.0);
        }
        for block in blocks {
            let (free_blocks, free_inodes, last_orphan) =
                (core.free_blocks, core.free_inodes, core.last_orphan);
            let buffer = core.cache.get(super::types::BlockNo(block))?;
            buffer.running = false;
            if block == place.0 {
                let raw = &mut Arc::make_mut(&mut buffer.data)[offset..offset + SUPERBLOCK_BYTES];
                put32(raw, 0xC, free_blocks as u32);
                put32(raw, 0x10, free_inodes as u32);
                put32(raw, 0xE8, last_orphan);
                if geometry.checksums == ChecksumKind::Crc32c {
                    let sum = crc32c(!0, &raw[..0x3FC]);
                    put32(raw, 0x3FC, sum);
                }
                let _ = put16;
            }
            let bytes = buffer.data.as_ref().clone().into();
            self.lun.write(block * u64::from(geometry.block_size), bytes, Origin::Metadata)?;
        }
        core.alloc.committed(&running.freed);
        self.progress.notify_all();
        Ok(())
    }

    /// Asks the commit thread to close and commit the running transaction.
    pub(crate) fn request_commit(&self, _core: &mut MutexGuard<'_, Core>) {}

    /// Has the running transaction committed and waits for it, the core lock released meanwhile.
    pub(crate) fn wait_for_commit(&self, core: &mut MutexGuard<'_, Core>) {
        let _ = self.write_home(core);
    }

    /// Whether blocks freed by transactions that have not committed could relieve an ENOSPC.
    pub(crate) fn frees_pending(&self, core: &Core) -> bool {
        !core.running.freed.is_empty()
    }

    /// Damage that the kernel would answer by turning read-only does so here, and is logged with inode and block.
    pub(crate) fn note_damage(&self, core: &mut MutexGuard<'_, Core>, error: &FsError) {
        if let FsError::Corrupt { .. } = error {
            log::error!("{error}");
            core.read_only.get_or_insert_with(|| error.to_string());
        }
    }
}
