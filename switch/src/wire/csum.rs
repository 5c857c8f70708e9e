//! Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// Adds `bytes` to a running sum of big-endian 16-bit words. An odd last byte is padded with zero, so only the last
/// slice of a sum may have an odd length.
#[must_use]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = sum;
    let mut chunks = bytes.chunks_exact(4);
    for c in &mut chunks {
        // One's-complement addition is associative over wider words as well.
        sum += u64::from(u32::from_be_bytes([c[0], c[1], c[2], c[3]]));
    }
    match *chunks.remainder() {
        [a] => sum + (u64::from(a) << 8),
        [a, b] => sum + u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => sum + u64::from(u16::from_be_bytes([a, b])) + (u64::from(c) << 8),
        _ => sum,
    }
}

/// Folds a running sum to 16 bits, not inverted.
#[must_use]
pub fn fold(sum: u64) -> u16 {
    let mut s = sum;
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    s as u16
}

/// The checksum of a running sum.
#[must_use]
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}
