#![no_main]
//! The framing of a hostile stream peer: what is split off lies inside what was received, in order, and the way it was cut
//! into reads doesn't matter.

use libfuzzer_sys::fuzz_target;
use vswitch_core::frame::MAX_FRAME;
use vswitch_core::port::stream::{LENGTH, split_frame};

fuzz_target!(|input: (Vec<u8>, u16)| {
    let (bytes, cut) = (input.0, usize::from(input.1));
    let first = split_frame(&bytes);
    if let Ok(Some((frame, rest))) = first {
        assert!(!frame.is_empty() && frame.len() <= MAX_FRAME);
        assert_eq!(LENGTH + frame.len() + rest.len(), bytes.len());
        assert_eq!(bytes[LENGTH..LENGTH + frame.len()], *frame);
    }
    // Seen in part first, it is incomplete or says the same.
    let part = &bytes[..cut.min(bytes.len())];
    match (split_frame(part), first) {
        (Ok(None), _) => {}
        (Ok(Some((a, _))), Ok(Some((b, _)))) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!(a, b),
        (a, b) => panic!("{a:?} of a part, {b:?} of all"),
    }
});
