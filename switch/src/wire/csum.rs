//! Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

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

/// The sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) of `len` bytes of a transport protocol.
#[must_use]
pub fn pseudo((from, to): (IpAddr, IpAddr), proto: u8, len: usize) -> u64 {
    [from, to]
        .into_iter()
        .fold(u64::from(proto) + len as u64, |sum, ip| match ip {
            IpAddr::V4(a) => add(sum, &a.octets()),
            IpAddr::V6(a) => add(sum, &a.octets()),
        })
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

/// What replacing a 16-bit word does to a sum: `~m + m'` of RFC 1624, equation 3. Differences add up.
#[must_use]
pub fn diff16(old: u16, new: u16) -> u64 {
    u64::from(!old) + u64::from(new)
}

/// What replacing a 32-bit field (an IPv4 address), at an even offset, does to a sum.
#[must_use]
pub fn diff32(old: u32, new: u32) -> u64 {
    u64::from(!old) + u64::from(new)
}

/// What replacing a 128-bit field (an IPv6 address), at an even offset, does to a sum.
#[must_use]
pub fn diff128(old: [u8; 16], new: [u8; 16]) -> u64 {
    add(add(0, &old.map(|b| !b)), &new)
}

/// A checksum after fields it covers changed by `diff` (RFC 1624, equation 3). The sum in it can't become +0 again,
/// so the result is the one that summing anew gives.
#[must_use]
pub fn update(checksum: u16, diff: u64) -> u16 {
    !fold(u64::from(!checksum) + diff)
}

/// The same for UDP, where 0 says that there is no checksum and a computed 0 is sent as 0xffff (RFC 768).
#[must_use]
pub fn update_udp(checksum: u16, diff: u64) -> u16 {
    match (checksum, update(checksum, diff)) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        (_, new) => new,
    }
}

/// The same for a sum not yet inverted: the pseudo-header sum in the checksum field of a frame whose checksum
/// is left to offloading.
#[must_use]
pub fn update_partial(sum: u16, diff: u64) -> u16 {
    fold(u64::from(sum) + diff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1624_example() {
        // Section 4: equation 2 would give 0xffff here.
        assert_eq!(update(0xdd2f, diff16(0x5555, 0x3285)), 0);
        assert_eq!(update_udp(0xdd2f, diff16(0x5555, 0x3285)), 0xffff);
        assert_eq!(update_udp(0, diff16(0x5555, 0x3285)), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_update_is_what_summing_anew_gives(
            mut bytes in prop::collection::vec(prop_oneof![Just(0), Just(0xff), any::<u8>()], 24..80),
            new in prop::array::uniform16(prop_oneof![Just(0), Just(0xff), any::<u8>()]),
            width in prop::sample::select(vec![2usize, 4, 16]),
            at in 0..4usize,
        ) {
            // A sum is +0 only if all is zero, which no packet is.
            bytes[23] |= 1;
            let (old_sum, at) = (fold(add(0, &bytes)), at * 2);
            let old: Vec<u8> = bytes[at..at + width].to_vec();
            bytes[at..at + width].copy_from_slice(&new[..width]);
            let diff = match width {
                2 => diff16(u16::from_be_bytes([old[0], old[1]]), u16::from_be_bytes([new[0], new[1]])),
                4 => diff32(
                    u32::from_be_bytes(old.try_into().expect("4 bytes")),
                    u32::from_be_bytes(*new.first_chunk().expect("4 bytes")),
                ),
                _ => diff128(old.try_into().expect("16 bytes"), new),
            };
            let sum = fold(add(0, &bytes));
            prop_assert_eq!(update(!old_sum, diff), !sum);
            prop_assert_eq!(update_partial(old_sum, diff), sum);
            if !old_sum != 0 {
                prop_assert_eq!(update_udp(!old_sum, diff), if !sum == 0 { 0xffff } else { !sum });
            }
        }
    }
}
