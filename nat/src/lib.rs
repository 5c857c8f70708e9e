//! L3 gateway of vswitch (connection tracking, address translation, rootless backend).
