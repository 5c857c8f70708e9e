//! Connection tracking through its interface.

mod control;
mod limits;
mod lives;
mod rig;
