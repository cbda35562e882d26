//! Numbers that name things, each a type of its own.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in one region, the unit of dirty tracking, routing and resync. A request never crosses a region border.
pub const REGION_BYTES: u64 = 1 << 20;

/// Bits of a [`Sequence`] or [`Epoch`] that count within one incarnation; the incarnation is above them.
pub const COUNTER_BITS: u32 = 40;

/// One start of the primary's mount process for an image; raised in the label, synced, before the first append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u32);

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// The first number of an incarnation. Counters start at 1, so that 0 of any incarnation means "none yet".
            #[must_use]
            pub fn first(incarnation: Incarnation) -> Self {
                Self((u64::from(incarnation.0) << COUNTER_BITS) | 1)
            }
            /// The number after this one, in the same incarnation.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
            /// The incarnation that this number was given in.
            #[must_use]
            pub fn incarnation(self) -> Incarnation {
                Incarnation((self.0 >> COUNTER_BITS) as u32)
            }
            /// The count within the incarnation.
            #[must_use]
            pub fn counter(self) -> u64 {
                self.0 & ((1 << COUNTER_BITS) - 1)
            }
        }

        impl fmt::Display for $name {
            /// `INCARNATION.COUNTER`, as all commands print it.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}.{}", self.incarnation().0, self.counter())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            /// Reads `INCARNATION.COUNTER`, or the plain 64-bit number.
            fn from_str(text: &str) -> Result<Self, String> {
                let bad = || format!("'{text}' is not a number of the form INCARNATION.COUNTER");
                match text.split_once('.') {
                    Some((high, low)) => {
                        let (high, low): (u64, u64) =
                            (high.parse().map_err(|_| bad())?, low.parse().map_err(|_| bad())?);
                        if high >> (64 - COUNTER_BITS) != 0 || low >> COUNTER_BITS != 0 {
                            return Err(bad());
                        }
                        Ok(Self((high << COUNTER_BITS) | low))
                    }
                    None => text.parse().map(Self).map_err(|_| bad()),
                }
            }
        }
    };
}

counted! {
    /// Place of a mirror storage request (or barrier) in the log; never repeats, also across crashes.
    Sequence
}
counted! {
    /// Set of requests that the mirror may reorder among themselves; 0 means "none yet". Never repeats.
    Epoch
}

/// Number of a LUN within one link, given in the order of the mount's LUNs. Names and UUIDs tie it to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LunId(pub u16);

/// Random name of an image, made once with it; the mirror image carries the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LunUuid(pub [u8; 16]);

impl fmt::Display for LunUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                write!(f, "-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for LunUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Random id of a line of writes to an image: who may write. A new one is made by `mke2fs` and by `promote`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A region's number within its LUN: byte offset divided by [`REGION_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RegionNo(pub u64);

impl RegionNo {
    /// The region that holds byte `offset`.
    #[must_use]
    pub fn of(offset: u64) -> Self {
        Self(offset / REGION_BYTES)
    }
    /// First byte of the region.
    #[must_use]
    pub fn start(self) -> u64 {
        self.0 * REGION_BYTES
    }
}
