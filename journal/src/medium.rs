//! Where queue and region maps lie: files in a directory, or (feature `simulation`) on a simulated disk.

#[cfg(feature = "simulation")]
use crate::simulation::SimulatedDisk;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
#[cfg(feature = "simulation")]
use std::sync::Arc;

/// How a file is opened; always for reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It must be there.
    Existing,
    /// Made if missing.
    Make,
    /// Made if missing, emptied if not.
    Fresh,
}

/// The directory of one log.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    #[cfg(feature = "simulation")]
    simulated: Option<Arc<SimulatedDisk>>,
}

impl From<&Path> for Folder {
    fn from(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            #[cfg(feature = "simulation")]
            simulated: None,
        }
    }
}

impl Folder {
    #[cfg(feature = "simulation")]
    pub(crate) fn simulated(dir: &Path, disk: Arc<SimulatedDisk>) -> Self {
        Self { dir: dir.to_path_buf(), simulated: Some(disk) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Only what is read and written through [`Handle`] can be there.
    pub(crate) fn is_simulated(&self) -> bool {
        #[cfg(feature = "simulation")]
        if self.simulated.is_some() {
            return true;
        }
        false
    }

    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.simulated {
            return Ok(disk.names());
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            names.extend(entry?.file_name().to_str().map(str::to_owned));
        }
        Ok(names)
    }

    /// `path` lies in this directory.
    pub(crate) fn open(&self, path: &Path, mode: Mode) -> io::Result<Handle> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.simulated {
            return disk.open(&name_of(path), mode).map(|id| Handle::Simulated(Arc::clone(disk), id));
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(mode != Mode::Existing)
            .truncate(mode == Mode::Fresh)
            .open(path)
            .map(Handle::Real)
    }

    /// `path` lies in this directory.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.simulated {
            return disk.remove(&name_of(path));
        }
        std::fs::remove_file(path)
    }

    /// Makes what was made and removed here durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        if let Some(disk) = &self.simulated {
            return disk.sync_names();
        }
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(feature = "simulation")]
fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// An open file.
#[derive(Debug)]
pub(crate) enum Handle {
    Real(File),
    #[cfg(feature = "simulation")]
    Simulated(Arc<SimulatedDisk>, usize),
}

impl From<File> for Handle {
    fn from(file: File) -> Self {
        Self::Real(file)
    }
}

impl Handle {
    pub(crate) fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.read_exact_at(into, at),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => disk.read_exact_at(*id, into, at),
        }
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.write_all_at(bytes, at),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => disk.write_all_at(*id, bytes, at),
        }
    }

    /// Writes the slices one behind the other from `at` on, with few calls. One caller at a time.
    pub(crate) fn write_slices_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
        const SLICES: usize = 1000;
        let file = match self {
            Self::Real(file) => file,
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => {
                let mut at = at;
                for slice in slices.iter() {
                    disk.write_all_at(*id, slice, at)?;
                    at += slice.len() as u64;
                }
                return Ok(());
            }
        };
        let mut writer = file;
        writer.seek(SeekFrom::Start(at))?;
        let mut left = slices;
        while !left.is_empty() {
            let count = left.len().min(SLICES);
            match writer.write_vectored(&left[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// fdatasync.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        match self {
            Self::Real(file) => file.sync_data(),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => disk.sync_data(*id),
        }
    }

    pub(crate) fn set_len(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Real(file) => file.set_len(bytes),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => disk.set_len(*id, bytes),
        }
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::Real(file) => Ok(file.metadata()?.len()),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => Ok(disk.len(*id)),
        }
    }

    /// Gives the range back to the file system; it reads as zeros afterwards.
    pub(crate) fn punch(&self, from: u64, length: u64) -> io::Result<()> {
        let file = match self {
            Self::Real(file) => file,
            #[cfg(feature = "simulation")]
            Self::Simulated(disk, id) => return disk.write_all_at(*id, &vec![0; length as usize], from),
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (from, length) = (from as libc::off_t, length as libc::off_t);
        // SAFETY: the descriptor is open, the call takes numbers only.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, from, length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
