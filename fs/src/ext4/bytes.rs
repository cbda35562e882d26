//! Little-endian fields at fixed offsets of a raw structure. Offsets are constants within the structure's checked size.

/// Reads a 16-bit field.
pub(crate) fn le16(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}
/// Reads a 32-bit field.
pub(crate) fn le32(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}
/// Writes a 16-bit field.
pub(crate) fn put16(raw: &mut [u8], at: usize, value: u16) {
    raw[at..at + 2].copy_from_slice(&value.to_le_bytes());
}
/// Writes a 32-bit field.
pub(crate) fn put32(raw: &mut [u8], at: usize, value: u32) {
    raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
/// Reads a big-endian 32-bit field (jbd2).
pub(crate) fn be32(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}
/// Writes a big-endian 32-bit field (jbd2).
pub(crate) fn put_be32(raw: &mut [u8], at: usize, value: u32) {
    raw[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
