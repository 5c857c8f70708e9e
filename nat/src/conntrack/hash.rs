//! The keyed hash of tuples and sources.
//!
//! Containers choose tuples, so the hash must not have collisions that hold for every key. The words are compressed by NH, the
//! universal hash of UMAC (Black et al. 1999; RFC 4418 section 5.2): a sum of products of keyed words, for which any two
//! different inputs collide with chance 2^-64 over the keys. One folded multiplication then mixes the sum. The three
//! products of a tuple don't wait for each other, which makes this quicker than a chained hash of 40 bytes.

/// Keys, drawn from a seed.
#[derive(Clone)]
pub(super) struct Keyed {
    keys: [u64; 6],
    last: [u64; 2],
}

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys don't belong into logs.
        f.write_str("Keyed")
    }
}

/// One step of SplitMix64 (Steele et al. 2014).
fn draw(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

impl Keyed {
    pub(super) fn new(mut seed: u64) -> Keyed {
        Keyed {
            keys: std::array::from_fn(|_| draw(&mut seed)),
            last: std::array::from_fn(|_| draw(&mut seed)),
        }
    }

    /// Hash of five words.
    #[inline]
    pub(super) fn tuple(&self, w: [u64; 5]) -> u32 {
        let k = &self.keys;
        let sum = product(w[0].wrapping_add(k[0]), w[1].wrapping_add(k[1]))
            .wrapping_add(product(w[2].wrapping_add(k[2]), w[3].wrapping_add(k[3])))
            .wrapping_add(product(w[4].wrapping_add(k[4]), k[5]));
        (self.mix(sum) >> 32) as u32
    }

    /// Hash of two words.
    pub(super) fn pair(&self, w: [u64; 2]) -> u64 {
        self.mix(product(
            w[0].wrapping_add(self.keys[0]),
            w[1].wrapping_add(self.keys[1]),
        ))
    }

    fn mix(&self, sum: u128) -> u64 {
        let mixed = product(sum as u64 ^ self.last[0], (sum >> 64) as u64 ^ self.last[1]);
        mixed as u64 ^ (mixed >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest and empty buckets of 2^14 hashes in as many buckets.
    fn spread(seed: u64, words: impl Fn(u64) -> [u64; 5]) -> (usize, usize) {
        let keyed = Keyed::new(seed);
        let mut buckets = vec![0usize; 1 << 14];
        for n in 0..1 << 14 {
            buckets[(keyed.tuple(words(n)) >> 18) as usize] += 1;
        }
        let empty = buckets.iter().filter(|&&n| n == 0).count();
        (buckets.into_iter().max().unwrap_or(0), empty)
    }

    #[test]
    fn regular_tuples_spread_like_random_ones() {
        for seed in 0..20 {
            let inputs: [&dyn Fn(u64) -> [u64; 5]; 4] = [
                &|n| [0, 0xffff_c000_0201, 0, 0xffff_c633_6401, n << 48 | 17 << 8],
                &|n| [0, 0xffff_c000_0201 + n, 0, 0xffff_c633_6401, 17 << 8],
                &|n| [0x2001_0db8 << 32, n, 0x2001_0db8 << 32, n, n << 32],
                &|n| [n << 20, n, n << 40, n << 50, n << 60],
            ];
            for (i, words) in inputs.into_iter().enumerate() {
                let (most, empty) = spread(seed, words);
                // At random: 6027 empty (1/e), the fullest has 7 or 8.
                assert!(
                    most <= 12 && empty < 7000,
                    "seed {seed} input {i}: {most} {empty}"
                );
            }
        }
    }

    #[test]
    fn seeds_make_different_hashes() {
        let words = [1, 2, 3, 4, 5];
        let all: std::collections::HashSet<u32> = (0..1000)
            .map(|seed| Keyed::new(seed).tuple(words))
            .collect();
        assert!(all.len() > 995);
        // Colliding under one seed says nothing about another.
        let (a, b) = (Keyed::new(1), Keyed::new(2));
        let mut first = std::collections::HashMap::new();
        let (mut collide, mut again) = (0, 0);
        for n in 0..20_000u64 {
            let w = [n, 0, 0, 0, 0];
            if let Some(other) = first.insert(a.tuple(w) >> 16, w) {
                collide += 1;
                again += u32::from(b.tuple(other) >> 16 == b.tuple(w) >> 16);
            }
        }
        assert!(collide > 1000 && again < 5, "{collide} {again}");
    }
}
