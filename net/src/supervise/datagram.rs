//! Bytes of a heartbeat; the layout is in `PROTOCOL.md`.

use crate::config::Security;
use crate::wire::SessionId;

/// Bytes of a heartbeat datagram, always.
pub const DATAGRAM_BYTES: usize = 136;

/// Which way a heartbeat goes; a reflected one has the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The primary's side: sends first heartbeats, local to mirror.
    Local,
    /// The peer: sends second heartbeats, mirror to local.
    Mirror,
}

/// Which link a heartbeat belongs to, among those that one peer port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId(pub u64);

impl LinkId {
    /// The link of the primary with this node name.
    #[must_use]
    pub fn of_node(node: &str) -> Self {
        Self(u64_at(blake3::hash(node.as_bytes()).as_bytes(), 0))
    }
}

/// Key of the datagrams' MAC, derived from the pair's key.
#[derive(Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// The all-zero key stands in where there is none.
    #[must_use]
    pub fn derive(security: &Security) -> Self {
        let key = match security {
            Security::Key(key) => key.0,
            Security::None => [0; 32],
        };
        Self(blake3::derive_key("mirrorfs 2026 heartbeat mac", &key))
    }
}

/// A decoded, authentic datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub side: Side,
    /// Number of elements of the sender's array (0: no session yet).
    pub count: u16,
    /// Link.
    pub link: LinkId,
    /// Random at each start of the sender.
    pub boot_id: u64,
    /// Rises with each datagram of the boot, starts at 1.
    pub counter: u64,
    /// The sender's session; zero: none.
    pub session: SessionId,
    /// Bit i: element i is closed in the sender's array.
    pub marks: u64,
    /// Boot id that the sender last heard; 0: none.
    pub echo_boot: u64,
    /// Counter that it last heard of that boot.
    pub echo_counter: u64,
    /// Sender's time, microseconds.
    pub sent_us: u64,
    /// `sent_us` of what is echoed.
    pub echo_us: u64,
    /// Time between hearing what is echoed and sending this, microseconds.
    pub held_us: u32,
    /// Rises by one with each tick of the sender, whatever number of datagrams it sends; for the loss count.
    pub beat: u32,
    /// Loss that the sender sees of the other's beats, percent.
    pub loss_percent: u8,
}

/// Why a datagram was not even authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

const MAGIC: &[u8; 4] = b"mfsh";
const FORMAT: u8 = 1;
/// Bytes under the MAC.
const SIGNED: usize = DATAGRAM_BYTES - 32;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Datagram {
    /// Bytes with MAC.
    #[must_use]
    pub fn seal(&self, key: &MacKey) -> [u8; DATAGRAM_BYTES] {
        let mut bytes = [0; DATAGRAM_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = FORMAT;
        bytes[5] = match self.side {
            Side::Local => 0,
            Side::Mirror => 1,
        };
        bytes[6..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.link.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.boot_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.counter.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.session.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.marks.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.echo_boot.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.echo_counter.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.sent_us.to_le_bytes());
        bytes[80..88].copy_from_slice(&self.echo_us.to_le_bytes());
        bytes[88..92].copy_from_slice(&self.held_us.to_le_bytes());
        bytes[92..96].copy_from_slice(&self.beat.to_le_bytes());
        bytes[96] = self.loss_percent;
        let mac = blake3::keyed_hash(&key.0, &bytes[..SIGNED]);
        bytes[SIGNED..].copy_from_slice(mac.as_bytes());
        bytes
    }

    /// Checks length, MAC and fields. The peer uses it to find the link before [`HeartbeatLogic::on_authentic`].
    ///
    /// # Errors
    /// Empty, truncated, too long, forged, of a foreign key or of an unknown format.
    ///
    /// [`HeartbeatLogic::on_authentic`]: super::heartbeat::HeartbeatLogic::on_authentic
    pub fn open(bytes: &[u8], key: &MacKey) -> Result<Self, NotAuthentic> {
        if bytes.len() != DATAGRAM_BYTES || bytes[..4] != MAGIC[..] || bytes[4] != FORMAT {
            return Err(NotAuthentic);
        }
        let mut mac = [0; 32];
        mac.copy_from_slice(&bytes[SIGNED..]);
        // `Hash` compares in constant time.
        if blake3::keyed_hash(&key.0, &bytes[..SIGNED]) != blake3::Hash::from_bytes(mac) {
            return Err(NotAuthentic);
        }
        let side = match bytes[5] {
            0 => Side::Local,
            1 => Side::Mirror,
            _ => return Err(NotAuthentic),
        };
        let datagram = Self {
            side,
            count: u16_at(bytes, 6),
            link: LinkId(u64_at(bytes, 8)),
            boot_id: u64_at(bytes, 16),
            counter: u64_at(bytes, 24),
            session: SessionId(u128::from(u64_at(bytes, 32)) | u128::from(u64_at(bytes, 40)) << 64),
            marks: u64_at(bytes, 48),
            echo_boot: u64_at(bytes, 56),
            echo_counter: u64_at(bytes, 64),
            sent_us: u64_at(bytes, 72),
            echo_us: u64_at(bytes, 80),
            held_us: u32_at(bytes, 88),
            beat: u32_at(bytes, 92),
            loss_percent: bytes[96],
        };
        let senseless = datagram.boot_id == 0
            || datagram.counter == 0
            || datagram.count > crate::connection::CONNECTIONS_MAX
            || datagram.loss_percent > 100
            || bytes[97..SIGNED].iter().any(|&byte| byte != 0);
        if senseless { Err(NotAuthentic) } else { Ok(datagram) }
    }
}
