//! Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// Adds `bytes` to a running sum of big-endian 16-bit words. An odd last byte is padded with zero, so only the last
/// slice of a sum may have an odd length.
#[must_use]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    // One's-complement addition is associative over wider words and indifferent to byte order (RFC 1071 2): words
    // are added as the machine has them, in four lanes so that the compiler can use vector registers.
    let mut lanes = [0u64; 4];
    let mut chunks = bytes.chunks_exact(16);
    for c in &mut chunks {
        for (lane, w) in lanes.iter_mut().zip(c.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
        }
    }
    let mut native: u64 = lanes.iter().sum();
    let mut pairs = chunks.remainder().chunks_exact(2);
    for w in &mut pairs {
        native += u64::from(u16::from_ne_bytes([w[0], w[1]]));
    }
    if let [last] = *pairs.remainder() {
        native += u64::from(u16::from_ne_bytes([last, 0]));
    }
    sum + u64::from(u16::from_be(fold(native)))
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
