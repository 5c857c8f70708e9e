//! Round trips: a datagram there and back, or as many bytes of a TCP stream.
//!
//! In a closed loop ([`ping`]) the next is sent once the last has come back. That leaves out what would have waited behind a slow
//! answer (coordinated omission): it tells how long one round trip takes on an idle path, not how a path answers under a given load.
//! In an open loop ([`load`]) datagrams have their times, whatever has come back, and a round trip begins at its time, not
//! when the sender got round to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Ends, monotonic, ready};

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
    /// Percentiles and their values.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// Percentiles of a curve.
const CURVE: [f64; 14] = [
    0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0,
];
/// The sender sleeps until so long before a datagram's time, and looks at the clock from then on.
const AWAKE: Duration = Duration::from_micros(30);

impl RoundTrips {
    fn of(times: &Histogram<u64>, lost: u64) -> Self {
        let at = |percent: f64| times.value_at_quantile(percent / 100.0) as f64 / 1e3;
        Self {
            p50: at(50.0),
            p99: at(99.0),
            p999: at(99.9),
            count: times.len(),
            lost,
            curve: CURVE.iter().map(|p| (*p, at(*p))).collect(),
        }
    }
}

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(100, 10_000_000_000, 3).context("making a histogram")
}

fn connected(ends: &Ends) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("opening a UDP socket")?;
    socket
        .connect(ends.address)
        .with_context(|| format!("connecting to {}", ends.address))?;
    socket
        .set_read_timeout(Some(LOST))
        .context("setting a time limit to receive")?;
    Ok(socket)
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
    let (socket, mut times) = (connected(ends)?, histogram()?);
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
    Ok(RoundTrips::of(&times, lost))
}

pub(super) fn tcp_echo(ends: &Ends) -> anyhow::Result<()> {
    let listener = TcpListener::bind(ends.address)
        .with_context(|| format!("listening on {}", ends.address))?;
    ready()?;
    let (mut stream, _) = listener.accept().context("accepting a connection")?;
    stream.set_nodelay(true).context("turning delay off")?;
    let mut buffer = [0; 2048];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let back = buffer.get(..n).unwrap_or_default();
        stream.write_all(back).context("sending back")?;
    }
    Ok(())
}

/// A closed loop over a stream.
pub(super) fn tcp_ping(ends: &Ends) -> anyhow::Result<RoundTrips> {
    let mut stream = TcpStream::connect(ends.address)
        .with_context(|| format!("connecting to {}", ends.address))?;
    stream.set_nodelay(true).context("turning delay off")?;
    let (mut times, mut answer) = (histogram()?, [0; 64]);
    let open = Instant::now() + ends.warm_up();
    let close = open + ends.time();
    loop {
        let sent = Instant::now();
        if sent >= close {
            return Ok(RoundTrips::of(&times, 0));
        }
        stream.write_all(&[7; 64]).context("sending")?;
        stream.read_exact(&mut answer).context("receiving")?;
        if sent >= open {
            times.saturating_record(sent.elapsed().as_nanos() as u64);
        }
    }
}

/// An open loop: `rate` datagrams a second, each holding its time.
pub(super) fn load(ends: &Ends) -> anyhow::Result<RoundTrips> {
    let socket = connected(ends)?;
    // Sleeps end when they are to end.
    nix::sys::prctl::set_timerslack(1).context("setting the timer slack")?;
    let every = Duration::from_secs_f64(1.0 / ends.rate);
    let warm = (ends.warm_up().as_secs_f64() * ends.rate).ceil() as u64;
    let all = warm + (ends.time().as_secs_f64() * ends.rate).ceil() as u64;
    let start = monotonic();
    let at = |number: u64| start + every.as_nanos() as u64 * number;
    std::thread::scope(|s| {
        let receiver = s.spawn(|| {
            let (mut times, mut answer) = (histogram()?, [0; 64]);
            let last = at(all) + LOST.as_nanos() as u64;
            let mut next = 0;
            while next < all && monotonic() < last {
                let Ok(8) = socket.recv(&mut answer) else {
                    continue;
                };
                let Some(number) = answer.first_chunk().map(|n| u64::from_be_bytes(*n)) else {
                    continue;
                };
                next = number + 1;
                if (warm..all).contains(&number) {
                    times.saturating_record(monotonic().saturating_sub(at(number)));
                }
            }
            anyhow::Ok(times)
        });
        for number in 0..all {
            let time = at(number);
            let ahead = Duration::from_nanos(time.saturating_sub(monotonic()));
            if ahead > AWAKE {
                std::thread::sleep(ahead - AWAKE);
            }
            while monotonic() < time {
                std::hint::spin_loop();
            }
            socket
                .send(&number.to_be_bytes())
                .context("sending a datagram")?;
        }
        let times = receiver.join();
        let times = times.map_err(|_| anyhow::anyhow!("the receiver gave up"))??;
        Ok(RoundTrips::of(
            &times,
            all - warm - times.len().min(all - warm),
        ))
    })
}
