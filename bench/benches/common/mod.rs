//! What several benches need.

mod draw;
pub(crate) mod gateway;

pub(crate) use draw::Draw;
