//! Batched message I/O: recvmmsg(2) and sendmmsg(2) over scatter/gather pairs (head, tail).
//!
//! Never blocks (MSG_DONTWAIT). Packet sockets' auxiliary data (`struct tpacket_auxdata`, include/uapi/linux/if_packet.h)
//! is read here, because the kernel hands VLAN tags over beside the frame.

use arrayvec::ArrayVec;
use nix::errno::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Most messages in one call.
pub const MAX_MESSAGES: usize = 32;

const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const ETH_P_8021Q: u16 = 0x8100;

/// Room for one control message of `struct tpacket_auxdata` (20 bytes) and its header, aligned.
const CONTROL: usize = 64;

#[repr(align(8))]
struct Control(#[expect(dead_code, reason = "room for the kernel")] [u8; CONTROL]);

/// A VLAN tag that the kernel took out of a frame, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrippedTag {
    /// Tag protocol: 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Priority, DEI and VLAN id.
    pub tci: u16,
}

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes written to its buffers.
    pub len: usize,
    /// The message was longer than its buffers: the rest is lost.
    pub truncated: bool,
    /// The tag the kernel took out.
    pub tag: Option<StrippedTag>,
}

/// Decides whether `status` of a packet socket says that a tag was taken out, and which.
pub(crate) fn stripped_tag(status: u32, tci: u16, tpid: u16) -> Option<StrippedTag> {
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let known = status & TP_STATUS_VLAN_TPID_VALID != 0;
    Some(StrippedTag {
        tpid: if known { tpid } else { ETH_P_8021Q },
        tci,
    })
}

/// Receives up to [`MAX_MESSAGES`] messages, one into each pair of buffers, and says in `out` what came. `auxdata` asks
/// for a packet socket's tags; never for a unix socket, whose peer could hand over file descriptors that way.
/// Errors: the first message's error (EAGAIN: none there).
pub fn recvmmsg(
    fd: impl AsFd,
    bufs: &mut [[IoSliceMut<'_>; 2]],
    out: &mut ArrayVec<Received, MAX_MESSAGES>,
    auxdata: bool,
) -> Result<(), Errno> {
    out.clear();
    let mut control = [const { MaybeUninit::<Control>::uninit() }; MAX_MESSAGES];
    let mut msgs = ArrayVec::<libc::mmsghdr, MAX_MESSAGES>::new();
    for (buf, c) in bufs.iter_mut().zip(&mut control) {
        // SAFETY: mmsghdr is plain old data; all zero is a valid value.
        let mut m: libc::mmsghdr = unsafe { zeroed() };
        // IoSliceMut has the layout of iovec (documented by std).
        m.msg_hdr.msg_iov = buf.as_mut_ptr().cast();
        m.msg_hdr.msg_iovlen = 2;
        if auxdata {
            // Left as it is: the kernel says by msg_controllen how much of it it wrote.
            m.msg_hdr.msg_control = c.as_mut_ptr().cast();
            m.msg_hdr.msg_controllen = CONTROL as _;
        }
        msgs.push(m);
    }
    // SAFETY: every header points at buffers borrowed mutably for the whole call.
    let n = unsafe { receive(fd.as_fd(), &mut msgs) }?;
    for m in msgs.iter().take(n) {
        out.push(Received {
            len: m.msg_len as usize,
            truncated: m.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            tag: auxdata_tag(&m.msg_hdr),
        });
    }
    Ok(())
}

/// Receives as many messages as there are headers, without waiting; returns how many came.
///
/// # Safety
/// What the headers point at lives and is neither read nor written by others during the call.
pub(super) unsafe fn receive(
    fd: BorrowedFd<'_>,
    msgs: &mut [libc::mmsghdr],
) -> Result<usize, Errno> {
    // SAFETY: the caller's promise; the count is the slice's.
    let n = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            msgs.as_mut_ptr(),
            msgs.len() as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    Ok(Errno::result(n)? as usize)
}

/// The value of a received message's first control message of this level and type, if that is whole.
///
/// # Safety
/// The header's control buffer is alive with the length that the kernel set, and any bytes are a `T`.
pub(super) unsafe fn control<T: Copy>(
    header: &libc::msghdr,
    level: libc::c_int,
    kind: libc::c_int,
) -> Option<T> {
    let enough = size_of::<libc::cmsghdr>() + size_of::<T>();
    // SAFETY: the caller's promise.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: within the control buffer, by the caller's promise, or null.
    while let Some(c) = unsafe { at.as_ref() } {
        let len: usize = c.cmsg_len as _;
        if c.cmsg_level == level && c.cmsg_type == kind && len >= enough {
            // SAFETY: level, type and length say that a `T` is there; it may be unaligned.
            return Some(unsafe { libc::CMSG_DATA(c).cast::<T>().read_unaligned() });
        }
        // SAFETY: as before.
        at = unsafe { libc::CMSG_NXTHDR(header, at) };
    }
    None
}

fn auxdata_tag(header: &libc::msghdr) -> Option<StrippedTag> {
    // SAFETY: the header's control buffer is alive and the kernel set its length; the struct is of integers.
    let aux: libc::tpacket_auxdata =
        unsafe { control(header, libc::SOL_PACKET, libc::PACKET_AUXDATA) }?;
    stripped_tag(aux.tp_status, aux.tp_vlan_tci, aux.tp_vlan_tpid)
}

/// Sends up to [`MAX_MESSAGES`] messages; returns how many the kernel took. Errors: the first message's error.
pub fn sendmmsg(fd: impl AsFd, bufs: &[[IoSlice<'_>; 2]]) -> Result<usize, Errno> {
    let mut msgs = ArrayVec::<libc::mmsghdr, MAX_MESSAGES>::new();
    for buf in bufs.iter().take(MAX_MESSAGES) {
        // SAFETY: mmsghdr is plain old data; all zero is a valid value.
        let mut m: libc::mmsghdr = unsafe { zeroed() };
        // IoSlice has the layout of iovec (documented by std); the kernel only reads it.
        m.msg_hdr.msg_iov = buf.as_ptr().cast_mut().cast();
        m.msg_hdr.msg_iovlen = if buf[1].is_empty() { 1 } else { 2 };
        msgs.push(m);
    }
    // SAFETY: every header points at buffers borrowed for the whole call; the count is the array's.
    let n = unsafe {
        libc::sendmmsg(
            fd.as_fd().as_raw_fd(),
            msgs.as_mut_ptr(),
            msgs.len() as libc::c_uint,
            (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
        )
    };
    Errno::result(n).map(|n| n as usize)
}
