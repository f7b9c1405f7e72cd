//! Big-endian fields at fixed offsets. Each function panics if the field lies outside of the slice, so callers
//! check the length first.

/// The 16-bit field at `at`, as a host number.
#[inline]
#[must_use]
pub fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit field at `at`, as a host number.
#[inline]
#[must_use]
pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes the host number `value` into the 16-bit field at `at`.
#[inline]
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the host number `value` into the 32-bit field at `at`.
#[inline]
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// A length as a 16-bit field holds it. Callers keep `len` within 65 535; a greater one would wrap.
#[inline]
#[must_use]
pub fn len16(len: usize) -> u16 {
    debug_assert!(len <= 0xffff, "length {len} does not fit 16 bits");
    (len as u64 & 0xffff) as u16
}
