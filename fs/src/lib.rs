//! The primary storage of mirrorfs.
