#![no_main]
//! The TCP mirror between a correct TCP of the container, a wire that loses, doubles and reorders, and a host socket that takes and gives
//! as it likes: the model says what is checked.

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/tcp_model/model/mod.rs"]
mod model;

fuzz_target!(|bytes: &[u8]| model::run(bytes));
