//! CRC32c of SCTP (RFC 9260, appendix A): computed where it was left to be done, and updated for a change of the ports without
//! reading the packet.
//!
//! The CRC is linear: bits changed in the message change the CRC by the CRC of those bits alone, begun at 0. The ports are the
//! first four bytes, so what they add is `delta * x^(8 * length) mod P`. Its price is the same for any length, and a packet damaged
//! on its way stays recognizable: a CRC computed anew would vouch for the damage.
//!
//! Polynomials over GF(2) are held reflected, as CRC32c sends them: bit 31 is x^0.

/// P without x^32, reflected.
const POLY: u32 = 0x82f6_3b78;

/// `x^(8 * 2^k) mod P`: enough for any packet of less than 2^17 bytes.
const POWERS: [u32; 17] = {
    let mut powers = [0; 17];
    let mut p = 1 << (31 - 8);
    let mut k = 0;
    while k < 17 {
        powers[k] = p;
        p = multiply(p, p);
        k += 1;
    }
    powers
};

/// `a * b mod P`.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut b, mut bit) = (0, b, 0);
    while bit < 32 {
        // Masks instead of branches: the bits are as good as random.
        product ^= b & 0u32.wrapping_sub(a >> (31 - bit) & 1);
        b = b >> 1 ^ (POLY & 0u32.wrapping_sub(b & 1));
        bit += 1;
    }
    product
}

/// What the CRC (as the little-endian number in the header) changes by if the first four bytes of a packet of `len` bytes
/// change by `delta` (old XOR new, little-endian).
#[must_use]
pub fn change(delta: u32, len: usize) -> u32 {
    let mut c = delta;
    for (k, power) in POWERS.iter().enumerate() {
        if len >> k & 1 != 0 {
            c = multiply(c, *power);
        }
    }
    c
}

/// What a byte does to the CRC.
const BYTES: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut c, mut bit) = (n as u32, 0);
        while bit < 8 {
            c = c >> 1 ^ (POLY & 0u32.wrapping_sub(c & 1));
            bit += 1;
        }
        table[n] = c;
        n += 1;
    }
    table
};

/// Goes on with a CRC, begun with [`START`], over further bytes.
#[must_use]
pub fn add(crc: u32, bytes: &[u8]) -> u32 {
    let step = |c: u32, b: &u8| c >> 8 ^ BYTES[usize::from(c as u8 ^ b)];
    bytes.iter().fold(crc, step)
}

/// What [`add`] begins with; the complement of what it ends with is the CRC.
pub const START: u32 = !0;

/// The CRC of whole bytes.
#[must_use]
pub fn of(bytes: &[u8]) -> u32 {
    !add(START, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_3720_vectors() {
        // Appendix B.4.
        assert_eq!(of(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(of(&rising).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_change_is_what_computing_anew_gives(
            mut bytes in prop::collection::vec(any::<u8>(), 12..3000),
            new in any::<[u8; 4]>(),
        ) {
            let (before, old) = (of(&bytes), *bytes.first_chunk().expect("4 bytes"));
            bytes[..4].copy_from_slice(&new);
            let delta = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            prop_assert_eq!(before ^ change(delta, bytes.len()), of(&bytes));
        }
    }
}
