//! AF_PACKET port: a veth end or a physical uplink, with virtio-net headers and offloads.
//!
//! # Theory of operation
//!
//! The socket is opened with protocol 0 and bound before it asks for frames, so none of another interface
//! slips in. Frames come by recvmmsg straight into [`Frame`]s (head and tail) and go by sendmmsg, both with 10
//! bytes of virtio-net header: what a container sends arrives before segmentation and checksumming, and the kernel
//! segments in software what the device can't. Own frames are ignored, the queueing discipline is bypassed.
//! The kernel takes VLAN tags out of received frames; they are put back.
//!
//! With [`Receive::Ring`] frames come by the ring of [`crate::sys::ring`] instead, without a system call per batch. They
//! wait there until their block closes, up to a millisecond: good for small frames in great number on an uplink,
//! bad for round trips. Either way a frame is copied once, into its [`Frame`].
//!
//! Errors of af_packet.c that matter: ENETDOWN once when the interface goes down or away (a deleted one has interface
//! index -1 then), ENXIO on sending to a deleted one, EMSGSIZE above the MTU, ENOBUFS when the device is full.
//! An interface set down is looked at every 200 ms until it is up or deleted.

use super::{PortFault, PortIo, RxState, TxQueue};
use crate::clock::Nanos;
use crate::frame::{BATCH_SIZE, Batch, DropReason, Frame, Offloads, VNET_HDR_LEN, VnetHdr};
use crate::stats::Tally;
use crate::sys::bpf;
use crate::sys::mmsg::{self, MAX_MESSAGES, Received, StrippedTag};
use crate::sys::packet;
pub use crate::sys::packet::{Fanout, PacketError};
use crate::sys::ring::{Ring, RingFrame};
use crate::sys::steer;
use arrayvec::ArrayVec;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Socket buffer each way, in bytes, as the kernel accounts them.
const BUFFER: i32 = 4 << 20;
/// How often an interface that is down is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Frames offered to the kernel at first; doubled while they are all used.
const FEW: usize = 4;

/// How frames come from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receive {
    /// By recvmmsg.
    #[default]
    Socket,
    /// By a ring of this many blocks of [`BLOCK_SIZE`](crate::sys::ring::BLOCK_SIZE) in shared memory.
    Ring {
        /// Blocks, clamped to what [`Ring::new`] takes.
        blocks: u32,
    },
}

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketOptions {
    /// Have the interface take frames for all MACs while attached. A veth end delivers everything anyway.
    pub promiscuous: bool,
    /// Fanout group, when several workers share the interface.
    pub fanout: Option<Fanout>,
    /// How frames come from the kernel.
    pub receive: Receive,
}

/// One packet socket on an interface.
#[derive(Debug)]
pub struct PacketPort {
    fd: OwnedFd,
    ring: Option<Ring>,
    fanout: Option<u16>,
    steered: bool,
    name: String,
    offloads: Offloads,
    want: usize,
    busy: bool,
    down: bool,
    changed: bool,
}

impl PacketPort {
    /// Opens an interface of the calling thread's network namespace.
    pub fn open_in_current_netns(
        name: &str,
        options: PacketOptions,
    ) -> Result<PacketPort, PacketError> {
        PacketPort::new(packet::open(name)?, options)
    }

    /// Takes a packet socket (AF_PACKET, SOCK_RAW) bound to an interface, best with protocol 0, and begins to receive.
    pub fn new(fd: OwnedFd, options: PacketOptions) -> Result<PacketPort, PacketError> {
        packet::check(&fd)?;
        packet::configure(&fd, BUFFER)?;
        let (name, _) = packet::link(&fd).map_err(|source| PacketError::Option {
            act: "asking for the interface",
            source,
        })?;
        let ring = match options.receive {
            Receive::Socket => None,
            Receive::Ring { blocks } => Some(Ring::new(&fd, blocks)?),
        };
        let steered = matches!(
            options.fanout,
            Some(Fanout::NewSteered | Fanout::JoinSteered(_))
        );
        let fanout = match options.fanout {
            None => {
                packet::start(&fd)?;
                None
            }
            Some(group) => Some(packet::start_in_group(&fd, group)?),
        };
        if options.promiscuous {
            packet::set_promiscuous(&fd)?;
        }
        let offloads = Offloads {
            uso: packet::has_uso(),
            ..Offloads::ALL
        };
        Ok(PacketPort {
            fd,
            ring,
            fanout,
            steered,
            name,
            offloads,
            want: FEW,
            busy: false,
            down: false,
            changed: false,
        })
    }

    /// Has a program of the kernel, a socket filter, decide which frames are received.
    pub fn set_filter(&self, program: BorrowedFd<'_>) -> Result<(), PacketError> {
        bpf::attach_filter(&self.fd, program).map_err(|source| PacketError::Option {
            act: "attaching the filter",
            source,
        })
    }

    /// Name of the interface when the port was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of the fanout group it is in.
    #[must_use]
    pub fn fanout(&self) -> Option<u16> {
        self.fanout
    }

    /// After a burst: counts as receive errors what the kernel dropped because the socket's buffer was full.
    fn count_kernel_drops(&mut self, tally: &mut Tally) {
        if std::mem::take(&mut self.busy) {
            tally.errors += packet::take_drops(&self.fd).unwrap_or(0);
        }
    }

    /// An error other than that nothing is there. It may concern one frame only (EINVAL: a GSO type that virtio can't
    /// tell), with others behind it that make no further event.
    fn receive_error(&mut self, e: Errno, tally: &mut Tally) -> Result<RxState, PortFault> {
        tally.errors += 1;
        self.fault(e).map_or(Ok(RxState::More), Err)
    }

    /// What a socket error means: gone, down, or nothing (`None`).
    fn fault(&mut self, e: Errno) -> Option<PortFault> {
        match e {
            Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV => {}
            _ => return None,
        }
        if packet::interface(&self.fd).map_or(true, |i| i <= 0) {
            return Some(self.gone());
        }
        self.down = true;
        Some(PortFault::LinkDown(format!(
            "interface `{}` was set down; set it up (ip link set {} up)",
            self.name, self.name
        )))
    }

    fn gone(&self) -> PortFault {
        PortFault::Gone(format!("interface `{}` was deleted", self.name))
    }

    /// Copies frames out of the ring until the batch is full or no block of ours is left.
    fn recv_ring(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        let Some(ring) = &mut self.ring else {
            return Ok(RxState::Empty);
        };
        while !rx.is_full() {
            let Some(got) = ring.next_frame() else {
                if ring.take_losing() {
                    self.busy = true;
                }
                tally.errors += ring.take_broken();
                self.count_kernel_drops(tally);
                // No system call of ours tells that the interface went down; this one does.
                return match packet::take_error(&self.fd) {
                    Some(e) => self.receive_error(e, tally),
                    None => Ok(RxState::Empty),
                };
            };
            accept_ring(&got, rx, tally);
        }
        // More than a batch at once: the ring may have been full.
        self.busy = true;
        Ok(RxState::More)
    }

    /// Moves what one recvmmsg brought into the batch.
    fn accept(
        frames: ArrayVec<Frame, MAX_MESSAGES>,
        got: &[Received],
        rx: &mut Batch,
        tally: &mut Tally,
    ) {
        for (mut frame, r) in frames.into_iter().zip(got) {
            let len = r.len.saturating_sub(VNET_HDR_LEN);
            tally.frame(len);
            let vnet = frame
                .received(VNET_HDR_LEN, r.len)
                .and_then(|h| VnetHdr::checked(h, len));
            if r.truncated {
                tally.count_drop(DropReason::Oversize);
                continue;
            }
            let Some(v) = vnet else {
                tally.count_drop(DropReason::BadOffload);
                continue;
            };
            frame.vnet = v;
            // Else every small frame that waits to be sent would hold 64 KiB.
            drop(frame.take_spare_tail());
            if let Some(tag) = r.tag
                && !insert_tag(&mut frame, tag)
            {
                tally.count_drop(DropReason::Runt);
                continue;
            }
            // The caller asked for no more than there is room for.
            let _ = rx.push(frame);
        }
    }
}

/// Copies a frame of the ring into the batch.
fn accept_ring(got: &RingFrame<'_>, rx: &mut Batch, tally: &mut Tally) {
    let Some((header, bytes)) = got.bytes.split_at_checked(VNET_HDR_LEN) else {
        tally.errors += 1;
        return;
    };
    tally.frame(bytes.len());
    let mut frame = Frame::new();
    if got.truncated || !frame.append(bytes) {
        tally.count_drop(DropReason::Oversize);
        return;
    }
    let Some(vnet) = VnetHdr::checked(header, bytes.len()) else {
        tally.count_drop(DropReason::BadOffload);
        return;
    };
    frame.vnet = vnet;
    if let Some(tag) = got.tag
        && !insert_tag(&mut frame, tag)
    {
        tally.count_drop(DropReason::Runt);
        return;
    }
    // The caller stops at a full batch.
    let _ = rx.push(frame);
}

/// Puts a VLAN tag behind the MAC addresses; false if the frame has none.
pub(super) fn insert_tag(frame: &mut Frame, tag: StrippedTag) -> bool {
    if frame.head().len() < 12 || !frame.push_front(4) {
        return false;
    }
    let Some(h) = frame.head_mut().first_chunk_mut::<16>() else {
        return false;
    };
    h.copy_within(4..16, 0);
    let [p0, p1] = tag.tpid.to_be_bytes();
    let [t0, t1] = tag.tci.to_be_bytes();
    h[12..].copy_from_slice(&[p0, p1, t0, t1]);
    true
}

impl PortIo for PacketPort {
    fn recv(&mut self, rx: &mut Batch, tally: &mut Tally) -> Result<RxState, PortFault> {
        if self.ring.is_some() {
            return self.recv_ring(rx, tally);
        }
        while !rx.is_full() {
            let n = self.want.min(BATCH_SIZE - rx.len()).min(MAX_MESSAGES);
            let mut frames = ArrayVec::<Frame, MAX_MESSAGES>::new();
            for _ in 0..n {
                frames.push(Frame::new());
            }
            let mut got = ArrayVec::new();
            let r = {
                let mut bufs: ArrayVec<_, MAX_MESSAGES> = frames
                    .iter_mut()
                    .map(|f| f.recv_slices(VNET_HDR_LEN))
                    .collect();
                mmsg::recvmmsg(&self.fd, &mut bufs, &mut got, true)
            };
            match r {
                Ok(()) => {}
                Err(Errno::EAGAIN) => {
                    self.count_kernel_drops(tally);
                    return Ok(RxState::Empty);
                }
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    return self.receive_error(e, tally);
                }
            }
            PacketPort::accept(frames, &got, rx, tally);
            if got.len() < n {
                self.want = (got.len() + 1).max(FEW);
                self.count_kernel_drops(tally);
                // recvmmsg puts an error that ends a batch back on the socket, where sending would meet it.
                return match packet::take_error(&self.fd) {
                    Some(e) => self.receive_error(e, tally),
                    None => Ok(RxState::Empty),
                };
            }
            self.busy |= n == MAX_MESSAGES || rx.is_full();
            self.want = (self.want * 2).min(MAX_MESSAGES);
        }
        Ok(RxState::More)
    }

    fn send(&mut self, out: &mut TxQueue) -> Result<(), PortFault> {
        while !out.is_empty() {
            let mut bufs = ArrayVec::<_, MAX_MESSAGES>::new();
            for frame in out.iter_mut().take(MAX_MESSAGES) {
                let hdr = frame.vnet.to_bytes();
                match frame.send_slices(&hdr) {
                    Some(s) => bufs.push(s),
                    None => break,
                }
            }
            if bufs.is_empty() {
                drop(bufs);
                out.reject(DropReason::TxError);
                continue;
            }
            let r = mmsg::sendmmsg(&self.fd, &bufs);
            drop(bufs);
            match r {
                Ok(n) => (0..n).for_each(|_| out.sent()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EMSGSIZE) => out.reject(DropReason::Mtu),
                Err(Errno::ENOBUFS | Errno::ENOMEM) => out.reject(DropReason::QueueFull),
                Err(e) => match self.fault(e) {
                    Some(fault) => return Err(fault),
                    None => out.reject(DropReason::TxError),
                },
            }
        }
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn joins(&self) -> bool {
        self.offloads.uso && self.offloads.csum
    }

    fn attaches(&self) -> bool {
        self.steered
    }

    fn set_attached(&mut self, on: bool) -> bool {
        self.steered && steer::steer(&self.fd, on).is_ok()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn tick(&mut self, now: Nanos) -> Result<Option<Nanos>, PortFault> {
        if !self.down {
            return Ok(None);
        }
        match packet::link(&self.fd) {
            Ok((_, true)) => {
                self.down = false;
                self.changed = true;
                Ok(None)
            }
            Ok((_, false)) => Ok(Some(now.after(LOOK))),
            Err(_) => Err(self.gone()),
        }
    }

    fn fd_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}
