//! Defects that tests plant, so that the judges are seen to fail. The product has none: there [`Planted::has`] is a constant.

/// What can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Revoke records do not reach the log.
    DroppedRevoke,
    /// A freed block may be taken again before the Flush behind the commit that freed it.
    EarlyReuse,
    /// No Flush between a transaction's blocks and its commit record.
    EarlyCommitRecord,
    /// The superblock never names the newest orphan.
    SkippedOrphan,
    /// Block bitmaps stay as they are, though the counts change.
    MissingBitmapUpdate,
    /// No Flush behind the superblock that moves the log's tail.
    UnflushedTail,
    /// A logged block that begins with the magic number is logged as it is.
    UnescapedMagic,
}

/// The defect of one mount, if it has one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted(#[cfg(test)] pub(crate) Option<Defect>);

impl Planted {
    /// Whether this mount has the defect.
    #[cfg(test)]
    pub(crate) fn has(self, defect: Defect) -> bool {
        self.0 == Some(defect)
    }

    /// Whether this mount has the defect: never.
    #[cfg(not(test))]
    pub(crate) const fn has(self, _: Defect) -> bool {
        false
    }
}
