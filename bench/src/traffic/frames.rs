//! Frames made by hand, for curves of cost against table size: from one of many MACs to another, or datagrams of one of many flows.
//!
//! A packet socket sends them into a TAP device, whose counter tells what the switch has read. No more than [`AHEAD`] frames are ahead of
//! that, fewer than the device's queue holds: all that is sent is switched, and the switch always finds some.
//!
//! MAC n of side s is 02:00:0s:nn:nn:nn. Ends are MACs that no stack has, so a kernel that gets a frame drops it at once.

use std::fs::File;
use std::io::{IoSlice, Read, Seek};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use serde::{Deserialize, Serialize};
use vswitch_core::sys::packet;
use vswitch_core::wire::csum;

use super::monotonic;

const BATCH: usize = 64;
/// A TAP device's queue holds 1,000 frames.
const AHEAD: u64 = 512;
/// Sleep while the switch has enough to read.
const REST: Duration = Duration::from_micros(50);
/// The switch takes what is there in this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
/// A queue out of which nothing has come for so long is empty.
const QUIET: Duration = Duration::from_millis(500);
/// Of the frames sent the switch reads at least so many.
const READ: f64 = 0.999;

/// What the frames are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// 60 bytes of an ethertype for experiments (IEEE 802, 0x88b5).
    Macs,
    /// UDP datagrams of 64 bytes; a flow is a pair of a source port and a destination.
    Flows,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Frames {
    /// Interface.
    device: String,
    #[arg(long, value_enum)]
    kind: Kind,
    /// Whose MACs send: those of the other side receive.
    #[arg(long, default_value_t = 0)]
    side: u8,
    /// MACs of each side, or flows.
    #[arg(long)]
    count: u32,
    /// MACs of the other side, if not as many.
    #[arg(long)]
    far: Option<u32>,
    /// Number of the first flow.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Each once, in order, instead of drawn ones for a time; MACs then speak to themselves.
    #[arg(long)]
    once: bool,
    /// How long, else.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

/// What was sent, all of which the switch has read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) frames: u64,
    pub(crate) seconds: f64,
}

/// Frames that the switch has read from a device, or that were dropped before it could.
struct Taken([File; 2]);

impl Taken {
    fn of(device: &str) -> anyhow::Result<Self> {
        let open = |name| {
            let path = format!("/sys/class/net/{device}/statistics/{name}");
            File::open(&path).with_context(|| format!("opening {path}"))
        };
        Ok(Self([open("tx_packets")?, open("tx_dropped")?]))
    }

    fn read(&mut self) -> anyhow::Result<[u64; 2]> {
        let mut counts = [0; 2];
        for (file, count) in self.0.iter_mut().zip(&mut counts) {
            let mut text = String::new();
            file.rewind()
                .and_then(|()| file.read_to_string(&mut text))
                .context("reading a device's counter")?;
            *count = text.trim().parse().context("reading a device's counter")?;
        }
        Ok(counts)
    }
}

/// A fixed generator.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * u64::from(n) >> 32) as u32
    }
}

fn mac(side: u8, n: u32) -> [u8; 6] {
    let n = n.to_be_bytes();
    [2, 0, side, n[1], n[2], n[3]]
}

/// A datagram of 64 bytes without a checksum, its flow to be filled in by [`flow`].
fn datagram(side: u8) -> Vec<u8> {
    let mut b = vec![0; 14 + 20 + 8 + 64];
    b[..6].copy_from_slice(&mac(side ^ 1, 0));
    b[6..12].copy_from_slice(&mac(side, 0));
    b[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    b[16..18].copy_from_slice(&92_u16.to_be_bytes());
    b[22..24].copy_from_slice(&[64, 17]);
    b[26..30].copy_from_slice(&[192, 0, 2, 1]);
    b[38..40].copy_from_slice(&72_u16.to_be_bytes());
    b
}

/// Source ports of one destination.
const PORTS: u32 = 60_000;

/// Makes it a datagram of flow `n`, of which there are 60,000 times 65,536.
fn flow(b: &mut [u8], n: u32) {
    let [.., high, low] = (n / PORTS).to_be_bytes();
    b[30..34].copy_from_slice(&[198, 18, high, low]);
    b[24..26].fill(0);
    let sum = csum::finish(csum::add(0, &b[14..34]));
    b[24..26].copy_from_slice(&sum.to_be_bytes());
    let port = 1024 + (n % PORTS) as u16;
    b[34..36].copy_from_slice(&port.to_be_bytes());
    b[36..38].copy_from_slice(&5000_u16.to_be_bytes());
}

impl Frames {
    fn blank(&self) -> Vec<u8> {
        match self.kind {
            Kind::Flows => datagram(self.side),
            Kind::Macs => {
                let mut b = vec![0; 60];
                b[12..14].copy_from_slice(&[0x88, 0xb5]);
                b
            }
        }
    }

    /// Makes it frame number `n`.
    fn fill(&self, b: &mut [u8], n: u64, draw: &mut Draw) {
        let far = self.far.unwrap_or(self.count);
        match (self.kind, self.once) {
            (Kind::Flows, true) => flow(b, self.first.wrapping_add(n as u32)),
            (Kind::Flows, false) => flow(b, self.first.wrapping_add(draw.below(self.count))),
            (Kind::Macs, once) => {
                let (from, to) = if once {
                    (n as u32, mac(self.side, n as u32))
                } else {
                    (draw.below(self.count), mac(self.side ^ 1, draw.below(far)))
                };
                b[..6].copy_from_slice(&to);
                b[6..12].copy_from_slice(&mac(self.side, from));
            }
        }
    }
}

/// Sends until all are sent or the time is over, and the switch has read them.
pub(super) fn send(f: &Frames) -> anyhow::Result<Sent> {
    ensure!(f.count > 0, "--count is at least 1");
    nix::unistd::alarm::set(f.seconds.ceil() as u32 + super::SLACK_SECONDS);
    let socket = packet::open(&f.device)?;
    let mut taken = Taken::of(&f.device)?;
    let [before, dropped] = taken.read()?;
    let limit = if f.once { u64::from(f.count) } else { u64::MAX };
    let end = Instant::now() + Duration::from_secs_f64(f.seconds);
    let (mut buffers, mut draw) = (vec![f.blank(); BATCH], Draw(monotonic()));
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let to = [None::<SockaddrStorage>; BATCH];
    let (start, mut sent, mut read) = (Instant::now(), 0_u64, 0_u64);
    while sent < limit && (f.once || Instant::now() < end) {
        if sent - read > AHEAD - BATCH as u64 {
            let now: u64 = taken.read()?.iter().sum();
            ensure!(start.elapsed() < PATIENCE, "the switch reads nothing");
            read = now - before - dropped;
            if sent - read > AHEAD - BATCH as u64 {
                std::thread::sleep(REST);
            }
            continue;
        }
        let some = (limit - sent).min(BATCH as u64) as usize;
        for (i, b) in buffers[..some].iter_mut().enumerate() {
            f.fill(b, sent + i as u64, &mut draw);
        }
        let slices: Vec<_> = buffers[..some].iter().map(|b| [IoSlice::new(b)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &to[..some],
            [],
            flags,
        ) {
            Ok(messages) => sent += messages.count() as u64,
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => std::thread::sleep(REST),
            Err(e) => return Err(e).context("sending frames"),
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    // What a queueing discipline drops is in no counter of the device: a few may be missing.
    let (mut progress, mut frames) = (Instant::now(), 0);
    while frames < sent && progress.elapsed() < QUIET {
        let now = taken.read()?[0] - before;
        if now > frames {
            (frames, progress) = (now, Instant::now());
        }
        std::thread::sleep(REST);
    }
    ensure!(
        frames as f64 >= sent as f64 * READ,
        "of {sent} frames the switch has read {frames}"
    );
    Ok(Sent { frames, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_differ_and_their_headers_are_whole() {
        let mut seen = std::collections::HashSet::new();
        let mut b = datagram(0);
        for n in [0, 1, 59_999, 60_000, 999_999, 60_000 * 300] {
            flow(&mut b, n);
            assert_eq!(csum::finish(csum::add(0, &b[14..34])), 0);
            assert!(seen.insert(b.clone()), "{n}");
        }
    }

    #[test]
    fn draws_are_below_and_reach_the_ends() {
        let mut d = Draw(1);
        let drawn: Vec<u32> = (0..1000).map(|_| d.below(7)).collect();
        assert!(drawn.iter().all(|n| *n < 7) && drawn.contains(&0) && drawn.contains(&6));
    }
}
