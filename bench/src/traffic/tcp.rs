//! TCP streams from one end to the other, a thread and 128 KiB of buffer per stream and end. The sink listens; with `--down`, for a
//! sink whose address can't be reached (it is behind NAT), the source does. With `--size` the source writes so many bytes at a time
//! and has each sent at once (TCP_NODELAY), with `--rate` as well so many times a second.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use super::{Ends, cpu_seconds, ready};

const BUFFER: usize = 128 * 1024;

/// What the receiver counted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Streams {
    /// Payload bytes in the time measured.
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Payload bytes of the whole run, and CPU seconds of the receiver for them.
    pub(crate) total_bytes: u64,
    pub(crate) cpu_seconds: f64,
}

/// What the sender used.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sourced {
    pub(crate) cpu_seconds: f64,
}

/// The streams, of the end that listens or of the one that connects.
fn streams(ends: &Ends, listens: bool) -> anyhow::Result<Vec<TcpStream>> {
    if !listens {
        let connect = |_| {
            TcpStream::connect(ends.address)
                .with_context(|| format!("connecting to {}", ends.address))
        };
        return (0..ends.streams).map(connect).collect();
    }
    let listener = TcpListener::bind(ends.address)
        .with_context(|| format!("listening on {}", ends.address))?;
    setsockopt(&listener, ReceiveTimeout, &TimeVal::new(10, 0))
        .context("setting a time limit to accept")?;
    ready()?;
    let accept = |index| {
        let accepted = listener.accept();
        accepted
            .map(|(stream, _)| stream)
            .with_context(|| format!("accepting stream {index}"))
    };
    (0..ends.streams).map(accept).collect()
}

pub(super) fn sink(ends: &Ends) -> anyhow::Result<Streams> {
    let streams = streams(ends, !ends.down)?;
    let counts: Arc<Vec<AtomicU64>> =
        Arc::new((0..ends.streams).map(|_| AtomicU64::new(0)).collect());
    for (index, stream) in streams.iter().enumerate() {
        let (mut reader, counts) = (
            stream.try_clone().context("sharing a stream")?,
            Arc::clone(&counts),
        );
        thread::spawn(move || {
            let mut buffer = vec![0; BUFFER];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if let Some(count) = counts.get(index) {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
        });
    }
    let sum = || {
        counts
            .iter()
            .map(|c| c.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    thread::sleep(ends.warm_up());
    let (start, before) = (Instant::now(), sum());
    thread::sleep(ends.time());
    let (seconds, after) = (start.elapsed().as_secs_f64(), sum());
    // Closed with bytes unread, which resets it: so the sender ends.
    for stream in streams {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    Ok(Streams {
        bytes: after - before,
        seconds,
        total_bytes: after,
        cpu_seconds: cpu_seconds(),
    })
}

pub(super) fn source(ends: &Ends) -> anyhow::Result<Sourced> {
    let end = Instant::now() + ends.time() + Duration::from_secs(5);
    let mut writers = vec![];
    for mut stream in streams(ends, ends.down)? {
        let limit = Some(Duration::from_secs(2));
        stream
            .set_write_timeout(limit)
            .context("setting a time limit to write")?;
        let (size, every) = match ends.size {
            0 => (BUFFER, None),
            size => (size, (ends.rate > 0.0).then(|| 1.0 / ends.rate)),
        };
        stream
            .set_nodelay(ends.size > 0)
            .context("having small writes sent at once")?;
        writers.push(thread::spawn(move || {
            let buffer = vec![0x5a; size];
            // Sleeps end when they are to end.
            let _ = nix::sys::prctl::set_timerslack(1);
            let mut next = Instant::now();
            while Instant::now() < end && stream.write_all(&buffer).is_ok() {
                if let Some(every) = every {
                    next += Duration::from_secs_f64(every);
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        }));
    }
    for writer in writers {
        let _ = writer.join();
    }
    Ok(Sourced {
        cpu_seconds: cpu_seconds(),
    })
}
