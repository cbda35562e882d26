//! A mirror image between two states of its primary, and the way back.

use super::generation::Generations;
use super::label::State;
use super::open::Image;
use super::undo::{self, UndoFile};
use mirrorfs_journal::{Epoch, Generation};
use std::io;
use std::sync::Arc;

impl Image {
    /// Mirror: a resync begins, or (with the primary's generations) has ended; synced. A first sync stays one until then.
    ///
    /// While another one lasts there is a way back from it to the state at its beginning, as long as each change is announced
    /// by [`Self::before_overwrite`]: see [`Self::roll_back`].
    ///
    /// # Errors
    /// As for [`Self::sync_epoch`].
    pub fn set_resyncing(&self, resyncing: bool, generations: &[Generation]) -> io::Result<()> {
        let label = self.label();
        match (resyncing, label.state) {
            (true, State::FirstSync | State::Resyncing { .. }) => Ok(()),
            (true, _) => {
                let made = UndoFile::create(&self.path, label.uuid, label.durable_epoch, label.size_bytes);
                let undo = made.inspect_err(|error| self.warn_of_undo(error)).ok();
                let way = undo.as_ref().map(UndoFile::way);
                self.update_label(|label| label.state = State::Resyncing { undo: way })?;
                *self.undo.write() = undo.map(Arc::new);
                Ok(())
            }
            (false, _) => {
                self.update_label(|label| {
                    label.state = State::InSync;
                    label.generations = Generations::from_chain(generations);
                })?;
                self.drop_undo();
                Ok(())
            }
        }
    }

    /// Mirror: must be called before a range is written or discarded. During a resync it saves what the range holds, and may
    /// block on a sync. Where that can't be done the way back is given up, and the resync goes on.
    ///
    /// # Errors
    /// The label's, as for [`Self::sync_epoch`].
    pub fn before_overwrite(&self, offset: u64, length: u64) -> io::Result<()> {
        let Some(undo) = self.undo.read().clone() else { return Ok(()) };
        undo.save(&self.backing, offset, length).or_else(|error| self.give_up_undo(&error))
    }

    /// Mirror in the middle of a resync: puts the state back that it had when the resync began, durably, and says so in the
    /// label. The epoch of that state; `None` if there is no way back.
    ///
    /// # Errors
    /// A damaged undo file, or the system's; can be tried again.
    pub fn roll_back(&self) -> io::Result<Option<Epoch>> {
        let Some(undo) = self.undo.read().clone() else { return Ok(None) };
        undo.roll_back(&self.backing)?;
        self.file.sync_data()?;
        let epoch = undo.way().epoch;
        self.update_label(|label| {
            // Numbers that were seen are not given again.
            label.incarnation = label.incarnation.max(label.durable_epoch.incarnation());
            (label.state, label.durable_epoch) = (State::InSync, epoch);
        })?;
        self.drop_undo();
        Ok(Some(epoch))
    }

    /// As the label says: takes the undo file up, or removes what is left of one.
    pub(super) fn take_up_undo(&self) -> io::Result<()> {
        let label = self.label();
        let State::Resyncing { undo: Some(way) } = label.state else {
            undo::remove(&self.path);
            return Ok(());
        };
        match UndoFile::open(&self.path, label.uuid, way, label.size_bytes) {
            Ok(undo) => {
                *self.undo.write() = Some(Arc::new(undo));
                Ok(())
            }
            Err(error) => self.give_up_undo(&error),
        }
    }

    /// The resync goes on without a way back, which the label says before anything else is done.
    pub(super) fn give_up_undo(&self, why: &io::Error) -> io::Result<()> {
        // One thread does it; the others wait for the label.
        let mut undo = self.undo.write();
        if matches!(self.label().state, State::Resyncing { undo: Some(_) }) {
            self.warn_of_undo(why);
            self.update_label(|label| label.state = State::Resyncing { undo: None })?;
            *undo = None;
            undo::remove(&self.path);
        }
        Ok(())
    }

    /// The label speaks of it no more.
    fn drop_undo(&self) {
        *self.undo.write() = None;
        undo::remove(&self.path);
    }

    fn warn_of_undo(&self, error: &io::Error) {
        log::warn!("{}: no way back from this resync until it has ended: {error}", self.path.display());
    }
}
