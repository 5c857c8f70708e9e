//! Selective acknowledgement, both ways.

use super::*;

#[test]
fn what_waits_is_acknowledged_selectively_the_newest_first() {
    let mut r = Rig::open();
    let at = |i: u32| SEQ.wrapping_add(i * 100);
    let said = |r: &Rig| match r.m.held.blocks(r.m.rcv_next) {
        Says::Blocks(n, blocks) => blocks[..n.into()].to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(said(&r), []);
    for (i, expected) in [
        (4, vec![(4, 5)]),
        (2, vec![(2, 3), (4, 5)]),
        (8, vec![(8, 9), (2, 3), (4, 5)]),
        (6, vec![(6, 7), (2, 3), (4, 5)]),
        (5, vec![(4, 7), (2, 3), (8, 9)]),
    ] {
        r.input(&segment(at(i), OURS, ACK, 4000, &[i as u8; 100]));
        let expected: Vec<_> = expected.iter().map(|(a, b)| (at(*a), at(*b))).collect();
        assert_eq!(said(&r), expected, "{i}");
    }
    for i in [0, 1, 3, 7] {
        r.input(&segment(at(i), OURS, ACK, 4000, &[i as u8; 100]));
    }
    assert_eq!((said(&r), r.io.took.len()), (vec![], 900));
}

#[test]
fn only_the_hole_is_sent_again() {
    let mut r = Rig::open();
    r.io.queue.extend((0..5000u32).map(|i| (i % 251) as u8));
    r.m.readable(false);
    let sent = r.flush();
    let at = |n: u32| OURS.wrapping_add(n);
    // The second thousand is missing: three times, with what is there behind it.
    r.give(SEQ, at(1000), ACK, 4000, &[]);
    let (from, to) = ends();
    let mut again = vec![];
    for i in 3..6 {
        let duplicate = bare(&Header {
            from,
            to,
            seq: SEQ,
            ack: at(1000),
            flags: ACK,
            window: 4000,
            says: Says::Blocks(1, [(at(2000), at(i * 1000)), (0, 0), (0, 0)]),
        });
        r.input(&duplicate.unwrap());
        again = r.flush();
    }
    assert_eq!((again.len(), again[0].0), (1, at(1000)));
    assert_eq!(&again[0].4[..], &sent[0].4[1000..2000]);
}
