//! The TCP mirror of the rootless backend against a model of both its ends, by random bytes. The same model is fuzzed
//! (`tests/fuzz/fuzz_targets/slirp_model.rs`), whose corpus is run here too.

mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_get_what_the_other_has_sent(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        model::run(&bytes);
    }
}

#[test]
fn what_fuzzing_has_found_goes_well() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/slirp_model");
    let all = std::fs::read_dir(corpus).expect("the corpus is checked in");
    let mut n = 0;
    for entry in all {
        model::run(&std::fs::read(entry.expect("readable").path()).expect("readable"));
        n += 1;
    }
    assert!(n > 0);
}
