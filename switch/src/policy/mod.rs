//! Policy: what may pass, and how much of it.

pub mod meter;
