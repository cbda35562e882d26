//! A disk in memory that knows what has been synced.

use crate::medium::Mode;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;

/// What a write is torn into: each piece of it is lost or kept by itself.
const PIECE_BYTES: usize = 512;

/// A directory of files for one log. At a power cut it loses what was not synced, or keeps a random part of it.
#[derive(Debug, Default)]
pub struct SimulatedDisk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Names made or removed and not synced, in order.
    pending_names: Vec<(String, Option<usize>)>,
    /// Changes until the power goes.
    changes_left: Option<u64>,
    fail_next_write: bool,
    fail_next_sync: bool,
}

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Not synced, in order.
    pending: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                if to.len() < at + bytes.len() {
                    to.resize(at + bytes.len(), 0);
                }
                to[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Length(bytes) => to.resize(*bytes, 0),
        }
    }
}

impl State {
    /// Every change passes here first.
    fn powered(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn change(&mut self, id: usize, change: Change) -> io::Result<()> {
        self.powered()?;
        if std::mem::take(&mut self.fail_next_write) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let file = &mut self.files[id];
        change.apply(&mut file.now);
        file.pending.push(change);
        Ok(())
    }
}

impl SimulatedDisk {
    /// The power goes after so many more changes; they fail from then on.
    pub fn cut_after(&self, changes: u64) {
        self.state.lock().changes_left = Some(changes);
    }

    /// Whether a change has failed, or would, because the power is off.
    pub fn is_cut(&self) -> bool {
        self.state.lock().changes_left == Some(0)
    }

    /// The next write finds the disk full.
    pub fn fail_next_write(&self) {
        self.state.lock().fail_next_write = true;
    }

    /// The next fdatasync fails.
    pub fn fail_next_sync(&self) {
        self.state.lock().fail_next_sync = true;
    }

    /// The process that used the disk is gone and all of its changes are there.
    pub fn process_killed(&self) {
        let mut state = self.state.lock();
        (state.changes_left, state.fail_next_write, state.fail_next_sync) = (None, false, false);
    }

    /// The power was cut: what was not synced is lost, but for what `random` (a number below its argument) keeps.
    /// `keep_percent`: chance of each piece. Names and lengths are a file system's journal: what was kept of them is
    /// what came first.
    pub fn power_cut(&self, keep_percent: u64, random: &mut dyn FnMut(u64) -> u64) {
        self.process_killed();
        let state = &mut *self.state.lock();
        let kept = random(state.pending_names.len() as u64 + 1) as usize;
        for (name, id) in state.pending_names.drain(..).take(kept) {
            match id {
                Some(id) => state.durable_names.insert(name, id),
                None => state.durable_names.remove(&name),
            };
        }
        state.names = state.durable_names.clone();
        for file in &mut state.files {
            'changes: for change in file.pending.drain(..) {
                match &change {
                    Change::Write(at, bytes) => {
                        for (piece, part) in bytes.chunks(PIECE_BYTES).enumerate() {
                            if random(100) < keep_percent {
                                Change::Write(at + piece * PIECE_BYTES, part.to_vec())
                                    .apply(&mut file.durable);
                            }
                        }
                    }
                    // What was written behind a length that is lost is lost with it.
                    Change::Length(_) if random(100) >= keep_percent => break 'changes,
                    Change::Length(_) => change.apply(&mut file.durable),
                }
            }
            file.now.clone_from(&file.durable);
        }
    }

    /// Flips one byte of a file that is there, if there is any.
    pub fn damage(&self, random: &mut dyn FnMut(u64) -> u64) {
        let state = &mut *self.state.lock();
        let ids: Vec<usize> = state.names.values().copied().collect();
        if ids.is_empty() {
            return;
        }
        let file = &mut state.files[ids[random(ids.len() as u64) as usize]];
        if file.now.is_empty() {
            return;
        }
        let at = random(file.now.len() as u64) as usize;
        file.now[at] ^= 0x55;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= 0x55;
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state.lock().names.keys().cloned().collect()
    }

    pub(crate) fn open(&self, name: &str, mode: Mode) -> io::Result<usize> {
        let mut state = self.state.lock();
        if let Some(id) = state.names.get(name).copied() {
            if mode == Mode::Fresh {
                state.change(id, Change::Length(0))?;
            }
            return Ok(id);
        }
        if mode == Mode::Existing {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.powered()?;
        let id = state.files.len();
        state.files.push(Contents::default());
        state.names.insert(name.to_owned(), id);
        state.pending_names.push((name.to_owned(), Some(id)));
        Ok(id)
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.pending_names.push((name.to_owned(), None));
        Ok(())
    }

    pub(crate) fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        state.pending_names.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    pub(crate) fn read_exact_at(&self, id: usize, into: &mut [u8], at: u64) -> io::Result<()> {
        let state = self.state.lock();
        let at = at as usize;
        let bytes = state.files[id].now.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn write_all_at(&self, id: usize, bytes: &[u8], at: u64) -> io::Result<()> {
        self.state.lock().change(id, Change::Write(at as usize, bytes.to_vec()))
    }

    pub(crate) fn sync_data(&self, id: usize) -> io::Result<()> {
        let mut state = self.state.lock();
        state.powered()?;
        if std::mem::take(&mut state.fail_next_sync) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let file = &mut state.files[id];
        for change in file.pending.drain(..) {
            change.apply(&mut file.durable);
        }
        Ok(())
    }

    pub(crate) fn set_len(&self, id: usize, bytes: u64) -> io::Result<()> {
        self.state.lock().change(id, Change::Length(bytes as usize))
    }

    pub(crate) fn len(&self, id: usize) -> u64 {
        self.state.lock().files[id].now.len() as u64
    }
}
