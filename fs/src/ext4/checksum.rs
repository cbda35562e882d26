//! ext4's checksums: CRC32C without the final inversion (metadata_csum), CRC16 (uninit_bg).

/// Goes on with CRC32C from the register `seed` over `bytes`, as the kernel's `ext4_chksum`: no inversion at either end.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// CRC16 (polynomial 0x8005, reflected) as the kernel's `crc16`, for group descriptors under `uninit_bg`.
pub(crate) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |mut crc, byte| {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { (crc >> 1) ^ 0xA001 } else { crc >> 1 };
        }
        crc
    })
}
