//! Control plane of vswitch.
