//! Settings that both sides share.

use std::fmt;
use std::time::Duration;

/// All times of a link; each can be set down to milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Interval at which heartbeats are sent (claims: second predetermined time).
    pub heartbeat_interval: Duration,
    /// Age at which a timestamp is too old (first predetermined time).
    pub heartbeat_timeout: Duration,
    /// Time without a request after which a peer connection thread looks at its element (third predetermined time).
    pub request_timeout: Duration,
    /// First length of the probation after an interruption.
    pub probation: Duration,
    /// Time without progress on the oldest sent request or barrier after which the session ends as `stalled`.
    pub stall_timeout: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(250),
            heartbeat_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(1),
            probation: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// The 32-byte key of a pair of hosts. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How the link is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Noise `NNpsk0` on TCP, keyed MAC on UDP.
    Key(Key),
    /// Plain TCP and unkeyed heartbeats (MAC under the all-zero key): loopback, or `--insecure`.
    None,
}
