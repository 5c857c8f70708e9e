#![no_main]
//! A client of DNS by TCP that keeps to no rule: the stack meets no panic (a caught one aborts here too), connections stay bounded, nothing but
//! TCP segments of its own connections is sent, and all end once it is silent.
//!
//! The input is a series of segments: two bits of which connection, flags, how far sequence number and acknowledgement
//! are from what is right (two bytes each), window, milliseconds that pass before it in units of 64, length and payload.

use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use std::time::Duration;
use vswitch_core::clock::Nanos;
use vswitch_core::wire::MacAddr;
use vswitch_nat::service::dns::{Listener, MAX_PER_PORT, Peer, resolved};

const SERVER: [u8; 4] = [192, 0, 2, 1];
const CLIENT: [u8; 4] = [192, 0, 2, 9];

fn peer(port: u16) -> Peer {
    Peer {
        port: 1,
        mac: MacAddr([2, 0, 0, 0, 0, 9]),
        client: SocketAddr::from((CLIENT, port)),
        local: SocketAddr::from((SERVER, 53)),
    }
}

fn segment(port: u16, flags: u8, numbers: (u32, u32), window: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0];
    p.extend((40 + payload.len() as u16).to_be_bytes());
    p.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    p.extend(CLIENT);
    p.extend(SERVER);
    p.extend(port.to_be_bytes());
    p.extend(53u16.to_be_bytes());
    p.extend(numbers.0.to_be_bytes());
    p.extend(numbers.1.to_be_bytes());
    p.extend([0x50, flags]);
    p.extend(window);
    p.extend([0; 4]);
    p.extend(payload);
    p
}

/// Sends what there is to send; remembers what the client could know of it.
fn flush(listener: &mut Listener, now: Nanos, known: &mut [(u32, u32); 4]) {
    listener.flush(now, &mut |peer, packet| {
        assert!(packet.len() <= 1500 && packet[0] >> 4 == 4 && packet[9] == 6);
        let tcp = &packet[20..];
        let word = |i: usize| u32::from_be_bytes(tcp[i..i + 4].try_into().expect("4 bytes"));
        let data = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let len = data as u32 + u32::from(tcp[13] & 2 != 0);
        let port = u16::from_be_bytes([tcp[2], tcp[3]]);
        assert_eq!(port, peer.client.port());
        known[usize::from(port - 4000)] = (word(8), word(4).wrapping_add(len));
    });
}

fuzz_target!(|input: &[u8]| {
    let _ = resolved(input);
    let mut now = Nanos(3_600_000_000_000);
    let mut listener = Listener::new(1500, 7, now);
    let mut known = [(1000u32, 0u32); 4];
    let mut rest = input;
    while let [
        which,
        flags,
        s0,
        s1,
        a0,
        a1,
        w0,
        w1,
        wait,
        l0,
        l1,
        tail @ ..,
    ] = rest
    {
        let len = usize::from(u16::from_be_bytes([*l0, *l1])).min(tail.len());
        let (payload, after) = tail.split_at(len);
        rest = after;
        now = now.after(Duration::from_millis(u64::from(*wait) * 64));
        listener.tick(now);
        let port = 4000 + u16::from(which % 4);
        let (seq, ack) = known[usize::from(which % 4)];
        let off = |a: u8, b: u8| i32::from(i16::from_be_bytes([a, b]));
        let numbers = (
            seq.wrapping_add_signed(off(*s0, *s1)),
            ack.wrapping_add_signed(off(*a0, *a1)),
        );
        listener.packet(
            peer(port),
            segment(port, *flags, numbers, [*w0, *w1], payload),
            now,
        );
        while let Some(query) = listener.next_query(now) {
            match which >> 6 {
                0 => {}
                1 => listener.reset(query.connection),
                n => {
                    let answer = vec![1; usize::from(n) * 20_000 + query.message.len()];
                    listener.answer(query.connection, &answer, now);
                }
            }
        }
        flush(&mut listener, now, &mut known);
        assert!(listener.len() <= MAX_PER_PORT);
    }
    for _ in 0..700 {
        now = now.after(Duration::from_millis(250));
        listener.tick(now);
        while listener.next_query(now).is_some() {}
        flush(&mut listener, now, &mut known);
    }
    assert!(listener.is_empty());
    assert_eq!(listener.next_deadline(), Nanos::MAX);
});
