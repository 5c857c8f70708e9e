//! A flood of datagrams by `sendmmsg`, counted at the far end by `recvmmsg`, 64 per call.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, SndBuf};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt};
use serde::{Deserialize, Serialize};

use super::{Ends, ready};

const BATCH: usize = 64;
/// Largest datagram received whole; what is longer is cut, and still counts.
const LARGEST: usize = 2048;
/// Silence after which the flood is over.
const QUIET: Duration = Duration::from_millis(300);

/// What arrived.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Delivered {
    /// Datagrams in the time measured.
    pub(crate) datagrams: u64,
    pub(crate) seconds: f64,
    /// Datagrams of the whole flood.
    pub(crate) total: u64,
}

/// What was sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Flood {
    pub(crate) sent: u64,
}

pub(super) fn sink(ends: &Ends) -> anyhow::Result<Delivered> {
    let socket =
        UdpSocket::bind(ends.address).with_context(|| format!("binding {}", ends.address))?;
    // Forced beyond the system's limit where root may.
    if setsockopt(&socket, RcvBufForce, &(4 << 20)).is_err() {
        let _ = setsockopt(&socket, RcvBuf, &(4 << 20));
    }
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .context("setting a time limit to receive")?;
    ready()?;
    let mut buffers = [[0_u8; LARGEST]; BATCH];
    receive(&socket, &mut buffers)?;
    socket
        .set_read_timeout(Some(QUIET))
        .context("setting a time limit to receive")?;
    let first = Instant::now();
    let (open, close) = (first + ends.warm_up(), first + ends.warm_up() + ends.time());
    let (mut total, mut counted, mut start, mut end) = (0, 0, None, None);
    let mut last = first;
    loop {
        let n = receive(&socket, &mut buffers)?;
        let now = Instant::now();
        if n == 0 {
            break;
        }
        last = now;
        total += n;
        if now >= open && end.is_none() {
            if start.is_none() {
                // What came before the clock read isn't in the time measured.
                start = Some(now);
            } else {
                counted += n;
            }
            if now >= close {
                end = Some(now);
            }
        }
    }
    let start = start.context("nothing arrived in the time measured")?;
    let seconds = (end.unwrap_or(last) - start).as_secs_f64();
    Ok(Delivered {
        datagrams: counted,
        seconds,
        total,
    })
}

/// Number of datagrams received; 0 when none came in time.
fn receive(socket: &UdpSocket, buffers: &mut [[u8; LARGEST]; BATCH]) -> anyhow::Result<u64> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut slices: Vec<[IoSliceMut<'_>; 1]> =
        buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
    let flags = MsgFlags::MSG_WAITFORONE;
    let received = recvmmsg(
        socket.as_raw_fd(),
        &mut headers,
        slices.iter_mut(),
        flags,
        None,
    );
    match received {
        Ok(messages) => Ok(messages.count() as u64),
        Err(Errno::EAGAIN) => Ok(0),
        Err(e) => Err(e).context("receiving datagrams"),
    }
}

pub(super) fn flood(ends: &Ends) -> anyhow::Result<Flood> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("opening a UDP socket")?;
    socket
        .connect(ends.address)
        .with_context(|| format!("connecting to {}", ends.address))?;
    let _ = setsockopt(&socket, SndBuf, &(1 << 20));
    let payload = vec![0x5a; ends.size];
    let one = [IoSlice::new(&payload)];
    let slices = [one; BATCH];
    let to = [None::<SockaddrStorage>; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let end = Instant::now() + ends.warm_up() + ends.time() + Duration::from_millis(50);
    let mut sent = 0;
    while Instant::now() < end {
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            to,
            [],
            MsgFlags::empty(),
        ) {
            Ok(messages) => sent += messages.count() as u64,
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => {}
            Err(e) => return Err(e).context("sending datagrams"),
        }
    }
    Ok(Flood { sent })
}
