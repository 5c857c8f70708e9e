//! `vswitch-bench`: runs vswitch and its peers side by side and reports what each does.

fn main() {}
