//! Which line of writes an image belongs to, and what two of them are to each other.

use mirrorfs_journal::Generation;
use std::io;

/// Predecessors that a chain remembers.
pub const PREDECESSORS_MAX: usize = 8;

/// A generation with its last predecessors, newest first. Empty only on a mirror that was never in sync, or was demoted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Generations(Vec<Generation>);

/// What the peer's chain is to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same generation: go on.
    Equal,
    /// The peer's generation is one of our predecessors: it can be resynced.
    PeerBehind,
    /// Ours is one of the peer's predecessors: we are stale.
    SelfBehind,
    /// Neither: both were written to independently (split brain).
    Diverged,
}

impl Generations {
    /// A chain as read from a label or a greeting; what is beyond the last remembered predecessor is dropped.
    #[must_use]
    pub fn from_chain(chain: &[Generation]) -> Self {
        Self(chain.iter().copied().take(1 + PREDECESSORS_MAX).collect())
    }

    /// A new line of writes without predecessors.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn random() -> io::Result<Self> {
        Ok(Self(vec![random_generation()?]))
    }

    /// The chain after a promotion: a new generation, with ours as its predecessors.
    ///
    /// # Errors
    /// As [`Self::random`].
    pub fn promoted(&self) -> io::Result<Self> {
        let mut chain = vec![random_generation()?];
        chain.extend(self.0.iter().copied().take(PREDECESSORS_MAX));
        Ok(Self(chain))
    }

    /// The generation now, `None` for an empty chain.
    #[must_use]
    pub fn current(&self) -> Option<Generation> {
        self.0.first().copied()
    }

    /// The chain, newest first.
    #[must_use]
    pub fn chain(&self) -> &[Generation] {
        &self.0
    }

    /// What the peer's chain is to ours. An empty one is behind every other.
    #[must_use]
    pub fn relation(&self, peer: &Self) -> Relation {
        match (self.current(), peer.current()) {
            (mine, theirs) if mine == theirs => Relation::Equal,
            (_, None) => Relation::PeerBehind,
            (None, _) => Relation::SelfBehind,
            (_, Some(theirs)) if self.0.contains(&theirs) => Relation::PeerBehind,
            (Some(mine), _) if peer.0.contains(&mine) => Relation::SelfBehind,
            _ => Relation::Diverged,
        }
    }
}

fn random_generation() -> io::Result<Generation> {
    loop {
        let id = u64::from_le_bytes(random_bytes()?);
        // Zero fills the unused places of a chain on disk.
        if id != 0 {
            return Ok(Generation(id));
        }
    }
}

pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn relations() {
        let first = Generations::random().unwrap();
        let second = first.promoted().unwrap();
        let other = first.promoted().unwrap();
        let none = Generations::default();
        assert_eq!(first.relation(&first), Relation::Equal);
        assert_eq!(second.relation(&first), Relation::PeerBehind);
        assert_eq!(first.relation(&second), Relation::SelfBehind);
        assert_eq!(second.relation(&other), Relation::Diverged);
        assert_eq!(second.relation(&none), Relation::PeerBehind);
        assert_eq!(none.relation(&second), Relation::SelfBehind);
    }

    #[test]
    fn a_chain_remembers_eight_predecessors() {
        let mut chain = Generations::random().unwrap();
        let first = chain.clone();
        for _ in 0..PREDECESSORS_MAX {
            chain = chain.promoted().unwrap();
        }
        assert_eq!(chain.relation(&first), Relation::PeerBehind);
        chain = chain.promoted().unwrap();
        assert_eq!(chain.chain().len(), 9);
        assert_eq!(chain.relation(&first), Relation::Diverged);
    }
}
