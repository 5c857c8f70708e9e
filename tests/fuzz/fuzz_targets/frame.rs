#![no_main]
//! A frame against a plain vector: whatever is done to it, both hold the same bytes.

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vswitch_core::frame::{Frame, HEAD_SIZE, TAIL_SIZE, outstanding};

#[derive(Arbitrary, Debug)]
enum Act {
    Append { len: u16, byte: u8 },
    PushFront { len: u8, byte: u8 },
    PullFront { len: u16 },
    Truncate { len: u32 },
    Duplicate,
    Send { prefix: u8 },
}

fuzz_target!(|acts: Vec<Act>| {
    let before = outstanding();
    {
        let (mut frame, mut model) = (Frame::new(), Vec::new());
        for act in acts.into_iter().take(64) {
            apply(act, &mut frame, &mut model);
            assert_eq!(frame.len(), model.len());
            assert_eq!(frame.is_empty(), model.is_empty());
            assert_eq!(frame.to_vec(), model);
        }
    }
    assert_eq!(outstanding(), before, "every slot came back");
});

fn apply(act: Act, frame: &mut Frame, model: &mut Vec<u8>) {
    match act {
        Act::Append { len, byte } => {
            let bytes = vec![byte; usize::from(len)];
            if frame.append(&bytes) {
                model.extend(bytes);
            } else {
                let room = HEAD_SIZE - frame.headroom() + TAIL_SIZE;
                assert!(model.len() + bytes.len() > room, "it would have fitted");
            }
        }
        Act::PushFront { len, byte } => {
            let (len, room) = (usize::from(len), frame.headroom());
            assert_eq!(frame.push_front(len), len <= room);
            if len <= room {
                frame.head_mut()[..len].fill(byte);
                model.splice(..0, vec![byte; len]);
            }
        }
        Act::PullFront { len } => {
            if frame.pull_front(usize::from(len)) {
                model.drain(..usize::from(len));
            }
        }
        Act::Truncate { len } => {
            frame.truncate(len as usize);
            model.truncate(len as usize);
        }
        Act::Duplicate => *frame = frame.duplicate(),
        Act::Send { prefix } => {
            let prefix = vec![0xee; usize::from(prefix)];
            let room = frame.headroom();
            let Some(slices) = frame.send_slices(&prefix) else {
                assert!(room < prefix.len());
                return;
            };
            let sent = [&slices[0][..], &slices[1][..]].concat();
            assert_eq!(sent, [&prefix[..], model].concat());
        }
    }
}
