//! Link and peer server together: real sockets on loopback, the real mirror log, a mirror store in memory.
#![allow(clippy::unwrap_used, reason = "a failed expectation in a test is a failed test")]
#![allow(missing_docs, reason = "tests")]

mod attacks;
mod faults;
mod proxy;
mod security;
mod stream;
mod support;
