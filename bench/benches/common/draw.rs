//! Numbers that are drawn, the same in every run.

/// A fixed generator.
#[derive(Debug)]
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    /// A number less than `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % n
    }
}
