//! Two packet sockets of crate afpacket, each on the near end of a container's veth pair.
//!
//! The far ends must have TSO and checksum offload off: the crate knows no virtio-net header, so what isn't in the bytes
//! of a frame is lost.

use std::io::{Read, Write};
use std::thread;

use afpacket::sync::RawPacketStream;
use anyhow::Context;

use super::{Between, FRAME};

/// Forwards until it is killed.
pub(crate) fn forward(between: &Between) -> anyhow::Result<()> {
    let mut sockets = vec![];
    for interface in &between.ends {
        let name = interface.to_str().context("an interface's name is UTF-8")?;
        let open = || {
            let mut socket = RawPacketStream::new()?;
            socket.bind(name)?;
            socket.set_promisc(name, true)?;
            // What came in between from all interfaces.
            socket.drain();
            Ok::<_, std::io::Error>(socket)
        };
        sockets.push(open().with_context(|| format!("opening a packet socket on {name}"))?);
    }
    let [a, b] = &sockets[..] else {
        anyhow::bail!("two interfaces must be named");
    };
    println!("ready");
    std::io::stdout().flush().context("writing to stdout")?;
    thread::scope(|s| {
        s.spawn(|| copy(a, b));
        s.spawn(|| copy(b, a));
    });
    Ok(())
}

fn copy(mut from: &RawPacketStream, mut to: &RawPacketStream) {
    let mut frame = vec![0; FRAME];
    loop {
        match from.read(&mut frame) {
            // A frame longer than the MTU is refused: dropped.
            Ok(n) => drop(to.write(&frame[..n])),
            Err(_) => thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}
