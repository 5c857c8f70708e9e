//! Round trips in a closed loop: a datagram that holds its number, the next once it has come back.
//!
//! A closed loop leaves out what would have waited behind a slow answer (coordinated omission): it tells how long one
//! round trip takes on an idle path, not how a path answers under a given load.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Ends, ready};

/// An answer that takes longer is lost.
const LOST: Duration = Duration::from_millis(200);

/// Distribution of the round trips, in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RoundTrips {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) count: u64,
    pub(crate) lost: u64,
}

pub(super) fn echo(ends: &Ends) -> anyhow::Result<()> {
    let socket =
        UdpSocket::bind(ends.address).with_context(|| format!("binding {}", ends.address))?;
    ready()?;
    let mut buffer = [0; 2048];
    loop {
        let (n, from) = socket
            .recv_from(&mut buffer)
            .context("receiving a datagram")?;
        // The one who asked may be gone.
        let _ = socket.send_to(&buffer[..n], from);
    }
}

pub(super) fn ping(ends: &Ends) -> anyhow::Result<RoundTrips> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("opening a UDP socket")?;
    socket
        .connect(ends.address)
        .with_context(|| format!("connecting to {}", ends.address))?;
    socket
        .set_read_timeout(Some(LOST))
        .context("setting a time limit to receive")?;
    let mut times =
        Histogram::<u64>::new_with_bounds(100, 10_000_000_000, 3).context("making a histogram")?;
    let (mut number, mut lost, mut answer) = (0_u64, 0, [0; 64]);
    let open = Instant::now() + ends.warm_up();
    let close = open + ends.time();
    loop {
        let sent = Instant::now();
        if sent >= close {
            break;
        }
        number += 1;
        socket
            .send(&number.to_be_bytes())
            .context("sending a datagram")?;
        // A late answer to an earlier one is passed over.
        let back = loop {
            match socket.recv(&mut answer) {
                Ok(8) if answer[..8] == number.to_be_bytes() => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        if sent < open {
            continue;
        }
        if back {
            times.saturating_record(sent.elapsed().as_nanos() as u64);
        } else {
            lost += 1;
        }
    }
    let at = |q| times.value_at_quantile(q) as f64 / 1e3;
    Ok(RoundTrips {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        count: times.len(),
        lost,
    })
}
