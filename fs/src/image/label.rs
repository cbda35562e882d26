#![doc = include_str!("../../IMAGE.md")]

use super::generation::{Generations, PREDECESSORS_MAX, random_bytes};
use mirrorfs_journal::{Epoch, Generation, Incarnation, LunUuid};
use std::fmt;
use std::io;

/// Bytes of one copy.
pub const COPY_BYTES: usize = 4096;
/// Bytes of both, the last of the file.
pub const LABEL_BYTES: u64 = 2 * COPY_BYTES as u64;
/// Longest name of a LUN, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The version that we write, and the newest that we read.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"mirrorfs";
const FLAG_ALL_REGIONS: u32 = 1;
const FLAG_CLOSED: u32 = 2;
const INCARNATION_MAX: u32 = (1 << 24) - 1;
/// Serials grow by one with each copy: a higher one was never written.
const SERIAL_MAX: u64 = 1 << 62;
/// Sizes up to here can be rounded up and added to; also what a superblock may say at most.
const SIZE_BYTES_MAX: u64 = i64::MAX as u64 / 2;
const RESERVED_START: usize = 272;
const CHECKSUM_START: usize = COPY_BYTES - 4;

/// Whether the image is written by a mount or by a peer's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A mount writes it.
    Primary,
    /// A peer daemon writes it.
    Mirror,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Mirror => "mirror",
        })
    }
}

/// Leads back from the middle of a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undo {
    /// Id in the undo file.
    pub id: [u8; 16],
    /// The epoch whose state it leads back to.
    pub epoch: Epoch,
}

/// How the image stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Primary: closed cleanly.
    Clean,
    /// Primary: mounted, or its mount ended uncleanly.
    InUse,
    /// Mirror: a state that the primary was in.
    InSync,
    /// Mirror: between two such states.
    Resyncing {
        /// The way back, if there is one.
        undo: Option<Undo>,
    },
    /// Mirror: never yet in sync, or demoted; there is nothing to go back to.
    FirstSync,
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The LUN's id, the same on primary and mirror.
    pub uuid: LunUuid,
    /// The LUN's name, by [`check_name`].
    pub name: String,
    /// Bytes of the file system.
    pub size_bytes: u64,
    /// Which line of writes.
    pub generations: Generations,
    /// Last incarnation that was used, below 2^24.
    pub incarnation: Incarnation,
    /// Who writes it.
    pub role: Role,
    /// How it stands.
    pub state: State,
    /// Mirror: last epoch that is durable in it. Primary: last one heard of, as of the clean close.
    pub durable_epoch: Epoch,
    /// All regions must be taken as different from the mirror's.
    pub all_regions: bool,
    /// Ties the region map to this image.
    pub region_map: [u8; 16],
    /// Digest of superblock, file size and time, as of the clean close.
    pub closed: Option<[u8; 32]>,
}

impl Label {
    /// The label of a new primary image: a new id and generation, all regions to be mirrored.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new_primary(uuid: LunUuid, name: String, size_bytes: u64) -> io::Result<Self> {
        Ok(Self {
            uuid,
            name,
            size_bytes,
            generations: Generations::random()?,
            incarnation: Incarnation(0),
            role: Role::Primary,
            state: State::InUse,
            durable_epoch: Epoch(0),
            all_regions: true,
            region_map: random_bytes()?,
            closed: None,
        })
    }

    /// The label of a new mirror image: all holes, never in sync.
    #[must_use]
    pub fn new_mirror(uuid: LunUuid, name: String, size_bytes: u64) -> Self {
        Self {
            uuid,
            name,
            size_bytes,
            generations: Generations::default(),
            incarnation: Incarnation(0),
            role: Role::Mirror,
            state: State::FirstSync,
            durable_epoch: Epoch(0),
            all_regions: false,
            region_map: [0; 16],
            closed: None,
        }
    }

    /// The label of this mirror image as the new primary: a new generation, numbers above all that the old primary
    /// gave, all regions to be mirrored.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn promoted(&self) -> io::Result<Self> {
        Ok(Self {
            generations: self.generations.promoted()?,
            incarnation: self.incarnation.max(self.durable_epoch.incarnation()),
            role: Role::Primary,
            state: State::InUse,
            all_regions: true,
            region_map: random_bytes()?,
            closed: None,
            ..self.clone()
        })
    }

    /// The label of this primary image as the mirror of whichever primary with its id comes next. Its own line of writes is
    /// given up: it claims no generation, and nothing of it is believed until a first sync has ended.
    #[must_use]
    pub fn demoted(&self) -> Self {
        Self {
            generations: Generations::default(),
            role: Role::Mirror,
            state: State::FirstSync,
            durable_epoch: Epoch(0),
            all_regions: false,
            closed: None,
            ..self.clone()
        }
    }

    /// The next incarnation; `None` after sixteen million mounts.
    #[must_use]
    pub fn next_incarnation(&self) -> Option<Incarnation> {
        (self.incarnation.0 < INCARNATION_MAX).then(|| Incarnation(self.incarnation.0 + 1))
    }

    /// The copy with this serial.
    pub(crate) fn encode(&self, serial: u64) -> [u8; COPY_BYTES] {
        assert!(check_name(&self.name).is_ok(), "names are checked before they reach a label");
        assert!(self.incarnation.0 <= INCARNATION_MAX);
        let mut flags = 0;
        if self.all_regions {
            flags |= FLAG_ALL_REGIONS;
        }
        if self.closed.is_some() {
            flags |= FLAG_CLOSED;
        }
        let (state, undo) = match self.state {
            State::Clean => (1, None),
            State::InUse => (2, None),
            State::InSync => (3, None),
            State::Resyncing { undo } => (4, undo),
            State::FirstSync => (5, None),
        };
        let mut copy = [0; COPY_BYTES];
        let mut put = |at: usize, bytes: &[u8]| copy[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &flags.to_le_bytes());
        put(16, &serial.to_le_bytes());
        put(24, &self.uuid.0);
        put(40, &self.size_bytes.to_le_bytes());
        put(48, &self.incarnation.0.to_le_bytes());
        let role = match self.role {
            Role::Primary => 1,
            Role::Mirror => 2,
        };
        put(52, &[role, state, self.generations.chain().len() as u8, self.name.len() as u8]);
        put(56, &self.durable_epoch.0.to_le_bytes());
        for (index, generation) in self.generations.chain().iter().enumerate() {
            put(64 + 8 * index, &generation.0.to_le_bytes());
        }
        put(136, &self.region_map);
        put(152, &self.closed.unwrap_or_default());
        put(184, self.name.as_bytes());
        if let Some(undo) = undo {
            put(248, &undo.id);
            put(264, &undo.epoch.0.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&copy[..CHECKSUM_START]);
        copy[CHECKSUM_START..].copy_from_slice(&checksum.to_le_bytes());
        copy
    }

    fn decode(copy: &[u8; COPY_BYTES]) -> Decoded {
        if copy[..8] != *MAGIC {
            return Decoded::NoLabel;
        }
        if u32_at(copy, CHECKSUM_START) != crc32c::crc32c(&copy[..CHECKSUM_START]) {
            return Decoded::Damaged("checksum");
        }
        let version = u32_at(copy, 8);
        if version > VERSION {
            return Decoded::Newer(version);
        }
        match Self::fields(copy) {
            Ok(label) => Decoded::Label(u64_at(copy, 16), label),
            Err(field) => Decoded::Damaged(field),
        }
    }

    fn fields(copy: &[u8; COPY_BYTES]) -> Result<Self, &'static str> {
        let ensure = |good: bool, field| if good { Ok(()) } else { Err(field) };
        ensure(u32_at(copy, 8) == VERSION, "version")?;
        ensure(u64_at(copy, 16) <= SERIAL_MAX, "serial")?;
        ensure(u64_at(copy, 40) <= SIZE_BYTES_MAX, "size")?;
        let flags = u32_at(copy, 12);
        ensure(flags & !(FLAG_ALL_REGIONS | FLAG_CLOSED) == 0, "flags")?;
        let incarnation = u32_at(copy, 48);
        ensure(incarnation <= INCARNATION_MAX, "incarnation")?;
        let role = match copy[52] {
            1 => Role::Primary,
            2 => Role::Mirror,
            _ => return Err("role"),
        };
        let undo_id: [u8; 16] = bytes_at(copy, 248);
        let undo_epoch = Epoch(u64_at(copy, 264));
        let undo = (undo_id != [0; 16]).then_some(Undo { id: undo_id, epoch: undo_epoch });
        ensure(undo.is_some() || undo_epoch.0 == 0, "undo epoch")?;
        let state = match (role, copy[53]) {
            (Role::Primary, 1) => State::Clean,
            (Role::Primary, 2) => State::InUse,
            (Role::Mirror, 3) => State::InSync,
            (Role::Mirror, 4) => State::Resyncing { undo },
            (Role::Mirror, 5) => State::FirstSync,
            _ => return Err("state"),
        };
        ensure(undo.is_none() || matches!(state, State::Resyncing { .. }), "undo")?;
        let count = usize::from(copy[54]);
        ensure(count <= 1 + PREDECESSORS_MAX, "generation count")?;
        ensure(count > 0 || state == State::FirstSync, "generation count")?;
        let chain: Vec<_> = (0..=PREDECESSORS_MAX).map(|i| Generation(u64_at(copy, 64 + 8 * i))).collect();
        ensure(chain[..count].iter().all(|g| g.0 != 0), "generations")?;
        ensure(chain[count..].iter().all(|g| g.0 == 0), "generations")?;
        let name_length = usize::from(copy[55]);
        ensure(name_length <= NAME_BYTES_MAX, "name")?;
        let name = std::str::from_utf8(&copy[184..184 + name_length]).map_err(|_| "name")?;
        ensure(check_name(name).is_ok(), "name")?;
        ensure(copy[184 + name_length..184 + NAME_BYTES_MAX].iter().all(|byte| *byte == 0), "name")?;
        let digest: [u8; 32] = bytes_at(copy, 152);
        let closed = (flags & FLAG_CLOSED != 0).then_some(digest);
        ensure(closed.is_some() || digest == [0; 32], "closed")?;
        ensure(copy[RESERVED_START..CHECKSUM_START].iter().all(|byte| *byte == 0), "reserved")?;
        Ok(Self {
            uuid: LunUuid(bytes_at(copy, 24)),
            name: name.to_owned(),
            size_bytes: u64_at(copy, 40),
            generations: Generations::from_chain(&chain[..count]),
            incarnation: Incarnation(incarnation),
            role,
            state,
            durable_epoch: Epoch(u64_at(copy, 56)),
            all_regions: flags & FLAG_ALL_REGIONS != 0,
            region_map: bytes_at(copy, 136),
            closed,
        })
    }
}

/// What one copy turned out to be.
enum Decoded {
    Label(u64, Label),
    NoLabel,
    Damaged(&'static str),
    Newer(u32),
}

/// What the pair turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    /// The newest valid copy: its index, its serial, its content.
    Label { copy: usize, serial: u64, label: Label },
    /// No trace of a label.
    NoLabel,
    /// No valid copy; the field of the first damaged one.
    Damaged(&'static str),
    /// Written by a newer mirrorfs.
    Newer(u32),
}

impl Pair {
    pub(crate) fn decode(copies: [&[u8; COPY_BYTES]; 2]) -> Self {
        let mut best = Self::NoLabel;
        for (copy, bytes) in copies.into_iter().enumerate() {
            best = match (Label::decode(bytes), best) {
                (Decoded::Newer(version), _) => return Self::Newer(version),
                (Decoded::NoLabel, best) => best,
                (Decoded::Label(serial, _), best @ Self::Label { serial: other, .. }) if serial < other => {
                    best
                }
                (Decoded::Label(serial, label), _) => Self::Label { copy, serial, label },
                (Decoded::Damaged(field), Self::NoLabel) => Self::Damaged(field),
                (Decoded::Damaged(_), best) => best,
            };
        }
        best
    }
}

/// Whether a name can be a LUN's, and thus part of a file name: 1 to 64 of `A-Z a-z 0-9 . _ -`, no dot first.
///
/// # Errors
/// Says what is allowed.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(good) {
        return Ok(());
    }
    Err(format!(
        "'{}' is not a LUN name: use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', no dot first",
        name.escape_default()
    ))
}

fn bytes_at<const N: usize>(copy: &[u8; COPY_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&copy[at..at + N]);
    bytes
}

fn u32_at(copy: &[u8; COPY_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(copy, at))
}

fn u64_at(copy: &[u8; COPY_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(copy, at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn sample() -> Label {
        Label {
            uuid: LunUuid([0x11; 16]),
            name: "data".into(),
            size_bytes: 0x0102_0304_0506,
            generations: Generations::from_chain(&[Generation(0xAABB), Generation(0xCCDD)]),
            incarnation: Incarnation(7),
            role: Role::Mirror,
            state: State::Resyncing { undo: Some(Undo { id: [0x22; 16], epoch: Epoch(0x99) }) },
            durable_epoch: Epoch(0x0102),
            all_regions: true,
            region_map: [0x33; 16],
            closed: Some([0x44; 32]),
        }
    }

    #[test]
    fn golden_bytes() {
        let mut expected = Vec::new();
        expected.extend(b"mirrorfs\x01\0\0\0\x03\0\0\0\x05\0\0\0\0\0\0\0");
        expected.extend([0x11; 16]);
        expected.extend(b"\x06\x05\x04\x03\x02\x01\0\0\x07\0\0\0\x02\x04\x02\x04");
        expected.extend(b"\x02\x01\0\0\0\0\0\0\xBB\xAA\0\0\0\0\0\0\xDD\xCC\0\0\0\0\0\0");
        expected.extend([0; 56]);
        expected.extend([0x33; 16]);
        expected.extend([0x44; 32]);
        expected.extend(b"data");
        expected.extend([0; 60]);
        expected.extend([0x22; 16]);
        expected.extend(b"\x99\0\0\0\0\0\0\0");
        expected.resize(CHECKSUM_START, 0);
        expected.extend(crc32c::crc32c(&expected).to_le_bytes());
        assert_eq!(sample().encode(5)[..], expected[..]);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn every_state_survives_the_disk() {
        let mut label = sample();
        for (role, state) in [
            (Role::Primary, State::Clean),
            (Role::Primary, State::InUse),
            (Role::Mirror, State::InSync),
            (Role::Mirror, State::Resyncing { undo: None }),
            (Role::Mirror, State::FirstSync),
        ] {
            (label.role, label.state) = (role, state);
            let copy = label.encode(9);
            let read = Pair::decode([&copy, &[0; COPY_BYTES]]);
            assert_eq!(read, Pair::Label { copy: 0, serial: 9, label: label.clone() });
        }
    }

    #[test]
    fn no_flipped_byte_is_accepted() {
        let good = sample().encode(5);
        for at in 0..COPY_BYTES {
            for mask in [0x01, 0x80, 0xFF] {
                let mut bad = good;
                bad[at] ^= mask;
                let read = Pair::decode([&bad, &bad]);
                let expected = if at < 8 { Pair::NoLabel } else { Pair::Damaged("checksum") };
                assert_eq!(read, expected, "byte {at}");
                // The other copy still holds.
                let older = sample().encode(4);
                let read = Pair::decode([&bad, &older]);
                assert_eq!(read, Pair::Label { copy: 1, serial: 4, label: sample() }, "byte {at}");
            }
        }
    }

    #[test]
    fn impossible_fields_under_a_good_checksum_are_damage_and_never_a_panic() {
        let good = sample().encode(5);
        for at in 8..CHECKSUM_START {
            for value in [0, 1, 9, 10, 65, 0x7F, 0xFF] {
                let mut bad = good;
                bad[at] = value;
                let checksum = crc32c::crc32c(&bad[..CHECKSUM_START]);
                bad[CHECKSUM_START..].copy_from_slice(&checksum.to_le_bytes());
                match Pair::decode([&bad, &[0; COPY_BYTES]]) {
                    // What is accepted is what a label can say: it leads to the same bytes.
                    Pair::Label { serial, label, .. } => assert_eq!(label.encode(serial), bad, "byte {at}"),
                    Pair::Damaged(_) => {}
                    Pair::Newer(_) => assert!((8..12).contains(&at)),
                    Pair::NoLabel => panic!("byte {at}"),
                }
            }
        }
    }

    /// A label whose serial was the highest there is opened; the next copy written then overflowed (in a release build it
    /// got serial 0, and the older copy held). A size near 2^64 overflowed where it is rounded up.
    #[test]
    fn a_serial_or_size_that_nothing_can_be_added_to_is_damage() {
        for (at, field) in [(16, "serial"), (40, "size")] {
            let mut bad = sample().encode(5);
            bad[at..at + 8].fill(0xFF);
            let checksum = crc32c::crc32c(&bad[..CHECKSUM_START]);
            bad[CHECKSUM_START..].copy_from_slice(&checksum.to_le_bytes());
            assert_eq!(Pair::decode([&bad, &[0; COPY_BYTES]]), Pair::Damaged(field));
        }
    }

    #[test]
    fn the_newest_copy_holds_and_a_newer_version_is_refused() {
        let (old, new) = (sample().encode(7), sample().encode(8));
        for copies in [[&old, &new], [&new, &old]] {
            assert!(matches!(Pair::decode(copies), Pair::Label { serial: 8, .. }));
        }
        let mut newer = old;
        newer[8] = 2;
        let checksum = crc32c::crc32c(&newer[..CHECKSUM_START]);
        newer[CHECKSUM_START..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Pair::decode([&new, &newer]), Pair::Newer(2));
        assert_eq!(Pair::decode([&[0; COPY_BYTES]; 2]), Pair::NoLabel);
    }

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["data", "a", "A-1_b.c", &"x".repeat(64)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "ä", "a\0", "a\n", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
