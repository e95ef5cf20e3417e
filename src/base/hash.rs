//! A hash that stays the same across runs, versions and machines, which the standard hasher does not promise.

/// The published offset basis of 32-bit FNV-1a.
pub const FNV_OFFSET: u32 = 0x811c_9dc5;

/// 32-bit FNV-1a, from an offset basis of the caller's choice.
pub fn fnv1a(offset: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(offset, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
