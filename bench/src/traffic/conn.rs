//! TCP connections opened, accepted and closed, one after the other.
//!
//! The acceptor closes at once; the connector waits for that end of stream, then closes with SO_LINGER 0, which
//! resets: neither side keeps a TIME_WAIT, so no port runs out, and no connection counts that wasn't accepted. On the wire
//! that is SYN, SYN+ACK, ACK, FIN+ACK, (ACK,) RST.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use serde::{Deserialize, Serialize};

use super::{Ends, ready};

/// Connections made in the time measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Connects {
    pub(crate) connections: u64,
    pub(crate) seconds: f64,
}

pub(super) fn accept(ends: &Ends) -> anyhow::Result<()> {
    let listener = TcpListener::bind(ends.address)
        .with_context(|| format!("listening on {}", ends.address))?;
    ready()?;
    thread::scope(|s| {
        for _ in 0..ends.streams {
            s.spawn(|| {
                for stream in listener.incoming() {
                    drop(stream);
                }
            });
        }
    });
    Ok(())
}

pub(super) fn connect(ends: &Ends) -> anyhow::Result<Connects> {
    let open = Instant::now() + ends.warm_up();
    while Instant::now() < open {
        once(ends)?;
    }
    let (start, mut connections) = (Instant::now(), 0);
    while start.elapsed() < ends.time() {
        once(ends)?;
        connections += 1;
    }
    Ok(Connects {
        connections,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn once(ends: &Ends) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(ends.address)
        .with_context(|| format!("connecting to {}", ends.address))?;
    setsockopt(
        &stream,
        Linger,
        &linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .context("setting SO_LINGER")?;
    stream
        .set_read_timeout(Some(Duration::from_secs(3)))
        .context("setting a time limit to receive")?;
    stream
        .read(&mut [0])
        .context("waiting for the end of the stream")?;
    Ok(())
}
