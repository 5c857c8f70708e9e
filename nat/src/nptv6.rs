//! NPTv6: stateless, checksum-neutral translation of IPv6 prefixes (RFC 6296).
//!
//! The prefix is replaced, and one 16-bit word of the rest is adjusted so that the address's sum stays the same, and with it every
//! transport checksum, also of protocols that aren't parsed and of quotes in ICMP errors. The word is bits 48 to 63 if the prefix is
//! /48 or shorter (3.4), else the first word of the interface identifier that isn't 0xffff (3.5). 0xffff and 0 are the same
//! number in one's complement: a result of 0xffff is written as 0, and a word that is 0xffff can't be adjusted, for the way back would
//! give 0 (3.2, 3.5).

use std::net::Ipv6Addr;

/// Why a pair of prefixes isn't accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Nothing to adjust would be left.
    #[error("translate prefixes of {0} bits: the length has to be from 1 to 64 bits")]
    Length(u8),
    /// Bits beyond the length are set.
    #[error("translate prefix {0}/{1}: bits behind the prefix are set, clear them")]
    HostBits(Ipv6Addr, u8),
}

/// A translation between an internal and an external prefix of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nptv6 {
    internal: u128,
    external: u128,
    mask: u128,
    len: u8,
    /// Added to the adjusted word on the way out; its complement on the way in.
    adjustment: u16,
}

impl Nptv6 {
    /// A translation between two prefixes of `len` bits.
    pub fn new(internal: Ipv6Addr, external: Ipv6Addr, len: u8) -> Result<Nptv6, PrefixError> {
        if !(1..=64).contains(&len) {
            return Err(PrefixError::Length(len));
        }
        let mask = u128::MAX << (128 - u32::from(len));
        for prefix in [internal, external] {
            if u128::from(prefix) & !mask != 0 {
                return Err(PrefixError::HostBits(prefix, len));
            }
        }
        let (internal, external) = (u128::from(internal), u128::from(external));
        // RFC 6296 3.1: internal minus external, in one's complement.
        let adjustment = add(sum(internal), !sum(external));
        Ok(Nptv6 {
            internal,
            external,
            mask,
            len,
            adjustment,
        })
    }

    /// The external address of an internal one (a source on its way out). `None` if it isn't in the internal prefix, or can't be
    /// translated: destination unreachable is the answer then (3.5).
    #[must_use]
    pub fn outbound(&self, addr: Ipv6Addr) -> Option<Ipv6Addr> {
        self.map(addr, self.internal, self.external, self.adjustment)
    }

    /// The internal address of an external one (a destination on its way in); `None` as above.
    #[must_use]
    pub fn inbound(&self, addr: Ipv6Addr) -> Option<Ipv6Addr> {
        self.map(addr, self.external, self.internal, !self.adjustment)
    }

    /// Whether the address is in the internal prefix, translatable or not.
    #[must_use]
    pub fn has_internal(&self, addr: Ipv6Addr) -> bool {
        u128::from(addr) & self.mask == self.internal
    }

    /// Whether the address is in the external prefix, translatable or not.
    #[must_use]
    pub fn has_external(&self, addr: Ipv6Addr) -> bool {
        u128::from(addr) & self.mask == self.external
    }

    fn map(&self, addr: Ipv6Addr, from: u128, to: u128, adjustment: u16) -> Option<Ipv6Addr> {
        let addr = u128::from(addr);
        if addr & self.mask != from {
            return None;
        }
        let word = |i: u32| (addr >> (112 - 16 * i)) as u16;
        let at = if self.len <= 48 {
            // Adjustable unless it is all ones.
            Some(3).filter(|i| word(*i) != 0xffff)
        } else {
            (4..8).find(|i| word(*i) != 0xffff)
        }?;
        let shift = 112 - 16 * at;
        let adjusted = match add(word(at), adjustment) {
            0xffff => 0,
            w => w,
        };
        let rest = addr & !self.mask & !(0xffff << shift);
        Some((to | rest | u128::from(adjusted) << shift).into())
    }
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

fn sum(a: u128) -> u16 {
    (0..8).fold(0, |s, i| add(s, (a >> (16 * i)) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a(s: &str) -> Ipv6Addr {
        s.parse().expect("an address")
    }

    #[test]
    fn rfc_6296_appendix_b() {
        // The appendix's own prefix: FD01:0203:0405::/48 and 2001:DB8:1::/48.
        let n = Nptv6::new(a("fd01:203:405::"), a("2001:db8:1::"), 48).expect("sound prefixes");
        assert_eq!(n.adjustment, 0xd54f);
        assert_eq!(
            n.outbound(a("fd01:203:405:1::1234")),
            Some(a("2001:db8:1:d550::1234"))
        );
        assert_eq!(
            n.inbound(a("2001:db8:1:d550::1234")),
            Some(a("fd01:203:405:1::1234"))
        );
    }

    #[test]
    fn what_is_not_of_the_prefix_or_has_no_adjustable_word() {
        let n = Nptv6::new(a("fd01:203:405::"), a("2001:db8:1::"), 48).expect("sound prefixes");
        assert_eq!(n.outbound(a("fd01:203:406:1::1234")), None);
        assert_eq!(n.inbound(a("fd01:203:405:1::1234")), None);
        assert_eq!(n.outbound(a("fd01:203:405:ffff::1")), None);
        let n = Nptv6::new(a("fd00:0:0:1::"), a("2001:db8:0:2::"), 64).expect("sound prefixes");
        assert_eq!(n.outbound(a("fd00::1:ffff:ffff:ffff:ffff")), None);
        let there = n
            .outbound(a("fd00::1:ffff:0:0:1"))
            .expect("the next word is adjusted");
        assert_eq!(there.segments()[4], 0xffff);
        assert_ne!(there.segments()[5], 0);
    }

    #[test]
    fn prefixes_that_make_no_sense() {
        let (i, e) = (a("fd00::"), a("2001:db8::"));
        assert_eq!(Nptv6::new(i, e, 65), Err(PrefixError::Length(65)));
        assert_eq!(Nptv6::new(i, e, 0), Err(PrefixError::Length(0)));
        assert_eq!(
            Nptv6::new(i, a("2001:db8::1"), 48),
            Err(PrefixError::HostBits(a("2001:db8::1"), 48))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn there_and_back_with_the_sum_unchanged(
            internal in any::<u128>(), external in any::<u128>(), host in any::<u128>(),
            ones in prop::collection::vec(0..8u32, 0..4), len in 16..=64u8,
        ) {
            let mask = u128::MAX << (128 - u32::from(len));
            let ones = ones.iter().fold(0u128, |o, i| o | 0xffff << (16 * i));
            let n = Nptv6::new((internal & mask).into(), (external & mask).into(), len).expect("sound");
            let addr = (internal & mask) | ((host | ones) & !mask);
            if let Some(out) = n.outbound(addr.into()) {
                prop_assert_eq!(u128::from(out) & mask, external & mask);
                prop_assert_eq!(sum(out.into()) % 0xffff, sum(addr) % 0xffff);
                // 0 is the one word that may not come back as it was, were 0xffff adjustable.
                prop_assert_eq!(n.inbound(out), Some(addr.into()));
            }
        }
    }
}
