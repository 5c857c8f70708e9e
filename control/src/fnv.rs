//! FNV-1a: a hash that stays the same from one run and version to the next, for names and addresses that are made of other names.
//! Not for tables: who chooses the bytes chooses the hash.

/// The 64-bit hash of the bytes.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_of_the_reference() {
        for (text, hash) in [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c)] {
            assert_eq!(super::hash(text.bytes()), hash, "{text}");
        }
    }
}
