//! The label's place in a file, and the rule that one copy is written only when the other is durable.

use super::error::ImageError;
use super::label::{COPY_BYTES, LABEL_BYTES, Label, Pair, VERSION};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// The label's place in an open file. Only the holder of the image's lock may store.
pub(crate) struct LabelSlot {
    file: Arc<File>,
    offset: u64,
    newest: usize,
    serial: u64,
    /// The newest copy is durable.
    durable: bool,
    label: Label,
}

/// Where the label of a file system of this size goes.
pub(crate) fn offset_for(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(COPY_BYTES as u64)
}

impl LabelSlot {
    /// Finds the label at the file's end. The caller has fdatasynced the file, if it is going to store.
    ///
    /// # Errors
    /// Both copies damaged, or written by a newer version. No label is `None`.
    pub(crate) fn find(file: &Arc<File>, path: &Path) -> Result<Option<Self>, ImageError> {
        let length = file.metadata().map_err(ImageError::io("stat", path))?.len();
        let Some(mut offset) = length.checked_sub(LABEL_BYTES) else { return Ok(None) };
        let mut copies = [[0; COPY_BYTES]; 2];
        for (index, copy) in copies.iter_mut().enumerate() {
            file.read_exact_at(copy, offset + (index * COPY_BYTES) as u64)
                .map_err(ImageError::io("read the label of", path))?;
        }
        match Pair::decode([&copies[0], &copies[1]]) {
            Pair::NoLabel => Ok(None),
            Pair::Damaged(field) => Err(ImageError::LabelDamaged { path: path.to_owned(), field }),
            Pair::Newer(found) => {
                Err(ImageError::LabelVersion { path: path.to_owned(), found, known: VERSION })
            }
            Pair::Label { mut copy, serial, label } => {
                if copy == 1
                    && offset < offset_for(label.size_bytes)
                    && length >= offset_for(label.size_bytes) + 4096
                {
                    // A power cut while the pair was appended left the first copy alone at the file's end.
                    (copy, offset) = (0, offset + COPY_BYTES as u64);
                }
                Ok(Some(Self { file: Arc::clone(file), offset, newest: copy, serial, durable: true, label }))
            }
        }
    }

    /// Writes a pair at `offset`, where none has been, and syncs. Both copies go out at once, as there is no older one
    /// to protect, and extend the file together with their content.
    pub(crate) fn append(file: &Arc<File>, offset: u64, serial: u64, label: Label) -> io::Result<Self> {
        let mut pair = [0; 2 * COPY_BYTES];
        pair[..COPY_BYTES].copy_from_slice(&label.encode(serial + 1));
        pair[COPY_BYTES..].copy_from_slice(&label.encode(serial + 2));
        file.write_all_at(&pair, offset)?;
        file.sync_data()?;
        Ok(Self { file: Arc::clone(file), offset, newest: 1, serial: serial + 2, durable: true, label })
    }

    pub(crate) fn label(&self) -> &Label {
        &self.label
    }

    /// First byte of the pair.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Writes the label over the older copy; one pwrite if the newer one is durable, after a sync if not. The new
    /// content is durable with the next sync of the file.
    pub(crate) fn store(&mut self, label: Label) -> io::Result<()> {
        if !self.durable {
            self.sync()?;
        }
        let (older, serial) = (1 - self.newest, self.serial + 1);
        let copy = label.encode(serial);
        self.file.write_all_at(&copy, self.offset + (older * COPY_BYTES) as u64)?;
        (self.newest, self.serial, self.label, self.durable) = (older, serial, label, false);
        Ok(())
    }

    /// fdatasyncs the file, and the label with it.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.durable = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use mirrorfs_journal::{Epoch, LunUuid};

    const PLACE: u64 = 1 << 20;

    fn pair(file: &File) -> [u8; 2 * COPY_BYTES] {
        let mut pair = [0; 2 * COPY_BYTES];
        file.read_exact_at(&mut pair, PLACE).unwrap();
        pair
    }

    /// The story: a mirror writes its label after each sync. Whatever of the last write a power cut leaves, the label
    /// must be the one that was durable or the one that was being written.
    #[test]
    fn no_power_cut_loses_the_durable_label() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = Arc::new(path.reopen().unwrap());
        let label = Label::new_mirror(LunUuid([1; 16]), "data".into(), PLACE);
        let mut slot = LabelSlot::append(&file, PLACE, 0, label.clone()).unwrap();
        let mut durable = pair(&file);
        let crashed = tempfile::NamedTempFile::new().unwrap();
        let crashed_file = Arc::new(crashed.reopen().unwrap());
        for epoch in 1..=20 {
            let before = slot.label().durable_epoch;
            if epoch % 3 == 0 {
                slot.sync().unwrap();
            }
            // Durable by that sync, or by the one that the next store must do first.
            let synced = pair(&file);
            slot.store(Label { durable_epoch: Epoch(epoch), ..label.clone() }).unwrap();
            let now = pair(&file);
            let changed = (0..2).filter(|copy| {
                let range = copy * COPY_BYTES..(copy + 1) * COPY_BYTES;
                now[range.clone()] != synced[range]
            });
            assert_eq!(changed.count(), 1, "one copy at a time");
            for sectors in 0..=2 * COPY_BYTES / 512 {
                for (old, new) in [(&durable, &synced), (&synced, &now)] {
                    let mut torn = *old;
                    torn[..sectors * 512].copy_from_slice(&new[..sectors * 512]);
                    crashed_file.write_all_at(&torn, PLACE).unwrap();
                    let found = LabelSlot::find(&crashed_file, crashed.path()).unwrap().unwrap();
                    let epochs = [before.0.saturating_sub(1), before.0, epoch];
                    assert!(
                        epochs.contains(&found.label().durable_epoch.0),
                        "epoch {epoch}, {sectors} sectors"
                    );
                    if old == &synced {
                        assert!(found.label().durable_epoch >= before);
                    }
                }
            }
            durable = synced;
        }
    }
}
