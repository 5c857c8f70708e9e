//! Two TAP devices of crate tun-tap, each in its container.

use std::io::Write;
use std::thread;

use anyhow::Context;
use tun_tap::{Iface, Mode};

use super::{Between, FRAME, enter};

/// Forwards until it is killed.
pub(crate) fn forward(between: &Between) -> anyhow::Result<()> {
    let mut taps = vec![];
    for netns in &between.ends {
        enter(netns)?;
        let tap = Iface::without_packet_info(&between.device, Mode::Tap);
        taps.push(tap.with_context(|| format!("opening a TAP device in {}", netns.display()))?);
    }
    let [a, b] = &taps[..] else {
        anyhow::bail!("two namespaces must be named");
    };
    println!("ready");
    std::io::stdout().flush().context("writing to stdout")?;
    thread::scope(|s| {
        s.spawn(|| copy(a, b));
        s.spawn(|| copy(b, a));
    });
    Ok(())
}

fn copy(from: &Iface, to: &Iface) {
    let mut frame = vec![0; FRAME];
    loop {
        // A device that is down refuses both.
        match from.recv(&mut frame) {
            Ok(n) => drop(to.send(&frame[..n])),
            Err(_) => thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}
