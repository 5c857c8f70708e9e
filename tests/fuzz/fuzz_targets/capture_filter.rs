#![no_main]
//! Filters of captures: no text makes the parser panic, errors point into the text, and what is a filter judges any frame,
//! with `not` and parentheses meaning what they say.

use libfuzzer_sys::fuzz_target;
use vswitch_core::capture::Filter;
use vswitch_core::wire::parse;

fuzz_target!(|input: &[u8]| {
    // A line with the filter, then the frame.
    let end = input.iter().position(|b| *b == b'\n');
    let (text, frame) = input.split_at(end.unwrap_or(input.len()));
    let frame = frame.get(1..).unwrap_or_default();
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let filter = match text.parse::<Filter>() {
        Ok(filter) => filter,
        Err(e) => {
            assert!(e.at <= text.chars().count(), "{e:?}");
            return;
        }
    };
    let Some(meta) = parse(frame, frame.len()) else {
        return;
    };
    let passes = filter.matches(frame, frame.len(), &meta);
    // A text at the limits of depth or length is no filter any more with something around it.
    if let Ok(not) = format!("not ({text})").parse::<Filter>() {
        assert_eq!(not.matches(frame, frame.len(), &meta), !passes);
    }
    if let Ok(both) = format!("({text}) and ({text}) or less 0").parse::<Filter>() {
        assert_eq!(both.matches(frame, frame.len(), &meta), passes);
    }
});
