//! What a connection keeps of its judgement, in the 32 bits that connection tracking has for it.

use vswitch_core::port::PortId;

/// The rule that let a connection be, and the port it comes from, which its next judgement needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Number of the rule; `None` is the default.
    pub rule: Option<u16>,
    /// Port that the connection comes from.
    pub from: PortId,
}

/// No rule has this number: there are fewer.
const DEFAULT: u16 = u16::MAX;

impl Mark {
    /// As a number.
    #[must_use]
    pub fn pack(self) -> u32 {
        u32::from(self.rule.unwrap_or(DEFAULT)) << 16 | u32::from(self.from.0)
    }

    /// From a number.
    #[must_use]
    pub fn unpack(word: u32) -> Mark {
        let rule = (word >> 16) as u16;
        Mark {
            rule: (rule != DEFAULT).then_some(rule),
            from: PortId(word as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back() {
        for rule in [None, Some(0), Some(super::super::MAX_RULES as u16 - 1)] {
            for from in [0, 1, u16::MAX] {
                let mark = Mark {
                    rule,
                    from: PortId(from),
                };
                assert_eq!(Mark::unpack(mark.pack()), mark);
            }
        }
    }
}
