//! Opening and closing an image.

use super::alloc::Allocator;
use super::bytes::{le16, le32};
use super::cache::MetaCache;
use super::commit::{Command, CommitState, Committer};
use super::defect::Planted;
use super::error::{FsError, Result};
use super::file::DataLocks;
use super::jbd2::{Log, Recovered};
use super::orphan::OrphanList;
use super::superblock::{ErrorRecord, Geometry, SUPERBLOCK_BYTES, feature};
use super::tx::{Core, Running};
use super::types::{GroupNo, Tid};
use super::{Ext4, Options, superblock};
use crate::image::Lun;
use bytes::Bytes;
use mirrorfs_journal::{Epoch, Origin};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The same damage, met again, is logged again after this long.
const SAME_DAMAGE_AGAIN: Duration = Duration::from_secs(60);

/// The commit thread, and who may give it commands.
pub(super) struct Thread {
    handle: Mutex<Option<JoinHandle<()>>>,
    id: thread::ThreadId,
    commands: Mutex<()>,
}

/// What is to be done about damage, and what was found already.
pub(crate) struct Damage {
    /// `s_errors` says that the file system turns read-only.
    stops: bool,
    /// It was damage that made it read-only.
    stopped: bool,
    last: Option<(String, Instant)>,
    /// Met and passed over by the operation under way (its result does not tell); noted when it ends.
    pub(crate) passed_over: Option<FsError>,
}

fn read_superblock(lun: &Lun) -> Result<Vec<u8>> {
    let mut raw = vec![0; SUPERBLOCK_BYTES];
    lun.read(1024, &mut raw)?;
    Ok(raw)
}

fn new_core(lun: &Arc<Lun>, raw: &[u8]) -> Result<Core> {
    let geometry = Arc::new(Geometry::parse(raw)?);
    if geometry.block_count.saturating_mul(u64::from(geometry.block_size)) > lun.size_bytes() {
        let what =
            format!("superblock: {} blocks in an image of {} bytes", geometry.block_count, lun.size_bytes());
        return Err(FsError::corrupt(what, None, None));
    }
    Ok(Core {
        cache: MetaCache::new(lun.clone(), &geometry),
        running: Running::new(Tid(0)),
        alloc: Allocator::new(&geometry),
        orphans: OrphanList::default(),
        free_blocks: 0,
        free_inodes: 0,
        last_orphan: le32(raw, 0xE8),
        counts_changed: false,
        running_blocks_max: 0,
        read_only: None,
        handles: 0,
        commit: CommitState::default(),
        damage: Damage { stops: le16(raw, 0x3C) > 1, stopped: false, last: None, passed_over: None },
        planted: Planted::default(),
        lun: lun.clone(),
        geometry,
    })
}

/// Replays the journal and gives the core as it is then, with the log, empty.
pub(super) fn recover(lun: &Arc<Lun>) -> Result<(Core, Log, Recovered)> {
    let mut raw = read_superblock(lun)?;
    let mut core = new_core(lun, &raw)?;
    let replay = core.geometry.incompat & feature::INCOMPAT_RECOVER != 0;
    let (log, recovered) = Log::open(&mut core, replay)?;
    if !replay && recovered.errno == 0 {
        return Ok((core, log, recovered));
    }
    if recovered.transactions > 0 {
        log::info!("journal replayed: {} transactions, {} blocks", recovered.transactions, recovered.blocks);
    }
    // Replay may have changed everything, the superblock too.
    raw = read_superblock(lun)?;
    let geometry = Geometry::parse(&raw)?;
    if recovered.errno != 0 {
        superblock::mark_error(&mut raw, None);
    }
    superblock::mark_clean(&mut raw);
    superblock::seal(&mut raw, &geometry);
    lun.write(1024, Bytes::copy_from_slice(&raw), Origin::Metadata)?;
    lun.flush()?;
    Ok((new_core(lun, &raw)?, log, recovered))
}

impl Ext4 {
    /// Opens the image: replays its journal, starts the commit thread, and unless it is to be read-only gets ready for
    /// changes and cleans up orphans.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`, I/O errors.
    pub fn open(lun: Arc<Lun>, options: Options) -> Result<Arc<Self>> {
        Self::open_planted(lun, options, Planted::default())
    }

    /// As [`Self::open`], with a defect.
    pub(super) fn open_planted(lun: Arc<Lun>, options: Options, planted: Planted) -> Result<Arc<Self>> {
        let (mut core, mut log, _) = recover(&lun)?;
        (core.planted, log.planted) = (planted, planted);
        for group in 0..core.geometry.group_count {
            let desc = core.group(GroupNo(group))?;
            core.free_blocks += u64::from(desc.free_blocks);
            core.free_inodes += u64::from(desc.free_inodes);
        }
        core.running = Running::new(log.next());
        core.running_blocks_max = log.transaction_blocks_max();
        core.commit.begin(&log);
        let read_only = options.read_only;
        core.read_only = Some(if read_only { "mounted read-only" } else { "being mounted" }.to_owned());
        let core = Arc::new(Mutex::new(core));
        let progress = Arc::new(Condvar::new());
        let committer = Committer::new(core.clone(), progress.clone(), lun.clone(), log);
        let handle = start(committer, core.clone(), progress.clone())?;
        let ext4 = Arc::new(Self {
            core,
            progress,
            data_locks: DataLocks::default(),
            thread: Thread {
                id: handle.thread().id(),
                handle: Mutex::new(Some(handle)),
                commands: Mutex::default(),
            },
            lun,
            options,
        });
        if !read_only {
            ext4.set_read_only(false)?;
        }
        Ok(ext4)
    }

    /// What times are rounded down to: inodes of 128 bytes keep whole seconds.
    pub fn time_granularity(&self) -> std::time::Duration {
        let has_extra = self.core.lock().geometry.want_extra_isize > 0;
        if has_extra { std::time::Duration::from_nanos(1) } else { std::time::Duration::from_secs(1) }
    }

    /// The image.
    pub fn lun(&self) -> &Arc<Lun> {
        &self.lun
    }

    /// Frees what was open without a name, commits, brings everything home, leaves the journal empty and the superblock
    /// clean, and ends the commit thread. Only reads work afterwards. Returns the last epoch.
    ///
    /// # Errors
    /// I/O errors; the image is then left as after a crash.
    pub fn close(&self) -> Result<Option<Epoch>> {
        self.evict_orphans();
        let commands = self.thread.commands.lock();
        {
            let mut core = self.core.lock();
            if let Some(epoch) = core.commit.closed {
                return Ok(epoch);
            }
            core.read_only.get_or_insert_with(|| "unmounted".to_owned());
        }
        let answer = self.command(Command::Close);
        drop(commands);
        self.end_thread();
        answer
    }

    /// Remounts read-only (everything home, the journal empty) or for changes.
    ///
    /// # Errors
    /// I/O errors; `Latched` where changes are refused because of failures or damage, or after close.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let _commands = self.thread.commands.lock();
        {
            let mut core = self.core.lock();
            if core.commit.closed.is_some() {
                return Err(FsError::Latched("unmounted".into()));
            }
            match (&core.read_only, read_only) {
                (None, false) => return Ok(()),
                (Some(_), true) if core.commit.failed.is_none() && !core.damage.stopped => return Ok(()),
                (Some(why), false) if core.commit.failed.is_some() || core.damage.stopped => {
                    return Err(FsError::Latched(why.clone()));
                }
                _ => {}
            }
            core.read_only.get_or_insert_with(|| "mounted read-only".to_owned());
        }
        self.command(if read_only { Command::Stop } else { Command::Start })?;
        if !read_only {
            self.core.lock().read_only = None;
            self.clean_orphans().or_else(|error| match error {
                // Noted already; what could not be cleaned up stays on the list, for e2fsck.
                FsError::Corrupt { .. } => Ok(()),
                error => Err(error),
            })?;
        }
        Ok(())
    }

    /// Has the commit thread carry out a command. One at a time: `commands` is held.
    fn command(&self, command: Command) -> Result<Option<Epoch>> {
        let mut core = self.core.lock();
        if core.commit.abandon {
            return Err(FsError::Latched("unmounted".into()));
        }
        core.commit.command = Some(command);
        core.commit.wake.notify_one();
        loop {
            if let Some(answer) = core.commit.answer.take() {
                return answer;
            }
            self.progress.wait(&mut core);
        }
    }

    fn end_thread(&self) {
        {
            let mut core = self.core.lock();
            core.commit.abandon = true;
            core.commit.wake.notify_one();
        }
        let handle = self.thread.handle.lock().take();
        if let Some(handle) = handle
            && thread::current().id() != self.thread.id
        {
            // It catches its own panics.
            let _ended = handle.join();
        }
    }

    /// Damage that was met: logged, recorded in the superblock, and where that says so (`s_errors`) the end of changes.
    pub(crate) fn note_damage(&self, core: &mut MutexGuard<'_, Core>, error: &FsError) {
        let FsError::Corrupt { inode, block, .. } = error else { return };
        let text = error.to_string();
        let now = Instant::now();
        if core
            .damage
            .last
            .as_ref()
            .is_some_and(|(last, when)| *last == text && now - *when < SAME_DAMAGE_AGAIN)
        {
            return;
        }
        log::error!("{text}");
        if core.read_only.is_none() {
            let record = ErrorRecord { inode: inode.map(|ino| ino.0), block: block.map(|block| block.0) };
            let geometry = core.geometry.clone();
            let (place, offset) = geometry.superblock_place();
            if let Ok(buffer) = core.cache.get(place) {
                let raw = &mut Arc::make_mut(&mut buffer.data)[offset..offset + SUPERBLOCK_BYTES];
                superblock::mark_error(raw, Some(record));
                superblock::seal(raw, &geometry);
                buffer.running = true;
                core.running.blocks.insert(place.0);
                core.running.since.get_or_insert(now);
                core.request_commit();
            }
            if core.damage.stops {
                core.damage.stopped = true;
                core.read_only = Some(text.clone());
                self.progress.notify_all();
            }
        }
        core.damage.last = Some((text, now));
    }
}

fn start(committer: Committer, core: Arc<Mutex<Core>>, progress: Arc<Condvar>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("jbd2".into()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| committer.run()));
        // Nobody is left waiting, however it ended.
        let mut core = core.lock();
        let why = match (&outcome, core.commit.closed) {
            (Ok(()), Some(_)) => None,
            (Ok(()), None) => Some("the file system was dropped without being closed"),
            (Err(_), _) => Some("the commit thread has panicked"),
        };
        let failed = match why {
            Some(why) => {
                log::warn!("{why}");
                core.commit.answer.get_or_insert_with(|| Err(FsError::Latched(why.into())));
                core.latch(why)
            }
            None => Vec::new(),
        };
        drop(core);
        progress.notify_all();
        let why = why.unwrap_or_default();
        super::commit::answer_all(failed, &Err(FsError::Io(io::Error::other(why))));
    })
}

impl Drop for Ext4 {
    /// Without a close before it this is a crash: the thread ends, and nothing more is written.
    fn drop(&mut self) {
        self.end_thread();
    }
}
