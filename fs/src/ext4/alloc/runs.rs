//! A set of blocks kept as merged runs.

use std::collections::BTreeMap;

/// Disjoint runs of blocks, neighbours merged.
#[derive(Default)]
pub(super) struct RunSet(BTreeMap<u64, u64>);

impl RunSet {
    /// Adds a run; what is in the set already stays.
    pub(super) fn insert(&mut self, start: u64, count: u64) {
        let (mut from, mut to) = (start, start + count);
        if let Some((&before, &end)) = self.0.range(..=from).next_back()
            && end >= from
        {
            from = before;
            to = to.max(end);
        }
        while let Some((&next, &end)) = self.0.range(from..=to).next() {
            to = to.max(end);
            self.0.remove(&next);
        }
        self.0.insert(from, to);
    }

    /// Takes a run out; true if any of it was in the set.
    pub(super) fn remove(&mut self, start: u64, count: u64) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let (from, to) = (start, start + count);
        let mut found = false;
        while let Some((&before, &end)) = self.0.range(..to).next_back() {
            if end <= from {
                break;
            }
            found = true;
            self.0.remove(&before);
            if before < from {
                self.0.insert(before, from);
            }
            if end > to {
                self.0.insert(to, end);
            }
        }
        found
    }

    /// Takes out the first run at or behind `from`.
    pub(super) fn pop(&mut self, from: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.0.range(from..).next()?;
        self.0.remove(&start);
        Some((start, end - start))
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_and_split() {
        let mut set = RunSet::default();
        set.insert(10, 5);
        set.insert(20, 5);
        set.insert(15, 5);
        assert_eq!(set.0.iter().collect::<Vec<_>>(), [(&10, &25)]);
        assert!(set.remove(12, 4));
        assert!(!set.remove(12, 4));
        assert_eq!(set.0.iter().collect::<Vec<_>>(), [(&10, &12), (&16, &25)]);
        set.insert(0, 100);
        assert_eq!(set.pop(0), Some((0, 100)));
        assert!(set.is_empty());
    }
}
