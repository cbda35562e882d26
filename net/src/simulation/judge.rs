//! The judge: knows what the primary's image was at each barrier and what was written between, and says whether what a
//! power cut would leave of the mirror now is one of those states and a part of the epoch after it.

use super::blocks::{BLOCKS, MirrorDisk};

/// Epochs that a label may be behind: a power cut takes its last write.
const LABEL_BEHIND_MAX: usize = 1;

/// A stretch of the primary's life in which each state follows from the one before.
struct Line {
    /// Numbers of its epochs are at least this.
    from: u64,
    base: Vec<u64>,
    /// The base is what the line before ended with.
    follows: bool,
    /// Epochs in which something was written, ascending.
    epochs: Vec<u64>,
    /// Per block: epoch and content, ascending.
    writes: Vec<Vec<(u64, u64)>>,
}

impl Line {
    fn new(from: u64, base: Vec<u64>, follows: bool) -> Self {
        Self { from, base, follows, epochs: Vec::new(), writes: vec![Vec::new(); BLOCKS] }
    }

    fn content(&self, block: usize, upto: u64) -> u64 {
        let writes = &self.writes[block];
        let at = writes.partition_point(|(epoch, _)| *epoch <= upto);
        at.checked_sub(1).map_or(self.base[block], |at| writes[at].1)
    }

    /// The first epoch after `epoch`.
    fn after(&self, epoch: u64) -> Option<u64> {
        self.epochs.get(self.epochs.partition_point(|known| *known <= epoch)).copied()
    }
}

/// One LUN's history.
pub(super) struct History {
    lines: Vec<Line>,
    /// All up to here has been answered, or taken, as durable.
    floor: u64,
    /// What was judged last: mirror's version, floor and number of lines.
    judged: Option<(u64, u64, usize)>,
}

impl Default for History {
    fn default() -> Self {
        Self { lines: vec![Line::new(0, vec![0; BLOCKS], false)], floor: 0, judged: None }
    }
}

impl History {
    fn line(&mut self) -> &mut Line {
        self.lines.last_mut().expect("there is always one")
    }

    /// Whether all epochs known are older than `from`.
    pub(super) fn is_new(&self, from: u64) -> bool {
        self.lines.iter().all(|line| line.epochs.last().is_none_or(|last| *last < from))
    }

    /// The primary wrote `content` in `epoch`.
    pub(super) fn wrote(&mut self, epoch: u64, block: usize, content: u64) {
        let line = self.line();
        if line.epochs.last() != Some(&epoch) {
            line.epochs.push(epoch);
        }
        line.writes[block].push((epoch, content));
    }

    /// What the primary's image holds from now on does not follow from the log: its epochs are `from` and later.
    pub(super) fn begin_line(&mut self, from: u64, base: &[u64]) {
        let line = self.line();
        let follows = (0..BLOCKS).all(|block| line.content(block, u64::MAX) == base[block]);
        self.lines.push(Line::new(from, base.to_vec(), follows));
    }

    pub(super) fn durable(&mut self, epoch: u64) {
        self.floor = self.floor.max(epoch);
    }

    /// The first epoch after `epoch` on the way of a mirror that is not resynced.
    fn after(&self, line: usize, epoch: u64) -> Option<(usize, u64)> {
        if let Some(next) = self.lines[line].after(epoch) {
            return Some((line, next));
        }
        let next = self.lines.get(line + 1).filter(|next| next.follows)?;
        match next.epochs.first() {
            Some(first) => Some((line + 1, *first)),
            None => self.after(line + 1, next.from),
        }
    }

    /// Whether a mirror at `epoch` of `line` lacks something that was said to be durable.
    fn lacks(&self, line: usize, epoch: u64) -> bool {
        let rest = &self.lines[line..];
        rest.iter().any(|line| line.epochs.iter().any(|known| *known > epoch && *known <= self.floor))
    }

    /// Whether everything that the blocks may hold is explained by the state at `epoch` and a part of the next one.
    fn explains(&self, disk: &MirrorDisk, line: usize, epoch: u64) -> Result<(), String> {
        if self.lacks(line, epoch) {
            return Err(format!("it lacks durable epochs up to {}", show(self.floor)));
        }
        let next = self.after(line, epoch);
        for block in 0..BLOCKS {
            let base = self.lines[line].content(block, epoch);
            for content in disk.blocks.possible(block) {
                let part_of_next = || {
                    next.is_some_and(|(line, next)| self.lines[line].writes[block].contains(&(next, content)))
                };
                if content != base && !part_of_next() {
                    let next = next.map_or_else(|| "none".to_owned(), |(_, next)| show(next));
                    return Err(format!(
                        "block {block} may hold {content}, at {} there was {base}, next epoch {next}",
                        show(epoch)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Judges what a power cut now would leave of the mirror.
    pub(super) fn judge(&mut self, disk: &MirrorDisk) -> Result<(), String> {
        let state = (disk.version, self.floor, self.lines.len());
        if self.judged == Some(state) {
            return Ok(());
        }
        for label in disk.labels().filter(|label| !label.resyncing) {
            let line = self.lines.iter().rposition(|line| line.from <= label.epoch).unwrap_or(0);
            let Err(why) = self.explains(disk, line, label.epoch) else { continue };
            // The label may be behind: power cuts took its last writes.
            let mut at = (line, label.epoch);
            let mut also = String::new();
            let explained = (0..LABEL_BEHIND_MAX).any(|_| {
                let Some(next) = self.after(at.0, at.1) else { return false };
                at = next;
                match self.explains(disk, at.0, at.1) {
                    Ok(()) => true,
                    Err(why) => {
                        also = why;
                        false
                    }
                }
            });
            if !explained {
                return Err(format!("mirror with label {}: {why}; or else {also}", show(label.epoch)));
            }
        }
        self.judged = Some(state);
        Ok(())
    }
}

pub(super) fn show(epoch: u64) -> String {
    mirrorfs_journal::Epoch(epoch).to_string()
}
