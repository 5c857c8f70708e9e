//! /dev/net/tun: opening TAP queues and their ioctls (include/uapi/linux/if_tun.h, drivers/net/tun.c).

use crate::frame::Offloads;
use nix::errno::Errno;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

// libc lacks the names of these three offload bits on some targets; values from if_tun.h.
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// What went wrong with a TAP device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// /dev/net/tun can't be opened.
    #[error("cannot open /dev/net/tun: {0}; {remedy}", remedy = open_remedy(*.0))]
    Open(Errno),
    /// The device can't be created or attached.
    #[error("cannot create TAP device `{name}`: {source}; {remedy}", remedy = create_remedy(*.source))]
    Create {
        /// Wanted name.
        name: String,
        /// Kernel's answer.
        source: Errno,
    },
    /// A name that no interface can have.
    #[error("`{0}` can't be an interface name: use 1 to 15 bytes without `/`, `:` or spaces")]
    Name(String),
    /// An fd that isn't a TAP queue of the right kind.
    #[error(
        "the file descriptor handed over is not usable as a TAP port: {0}; open it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"
    )]
    NotTap(&'static str),
    /// An ioctl on an open queue failed.
    #[error("{act} on the TAP device failed: {source}")]
    Ioctl {
        /// What was tried.
        act: &'static str,
        /// Kernel's answer.
        source: Errno,
    },
}

fn open_remedy(e: Errno) -> &'static str {
    match e {
        Errno::EACCES | Errno::EPERM => {
            "give your user access to it (chmod 0666 /dev/net/tun, or a udev rule) or run as root"
        }
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
            "load the driver (modprobe tun) or make the node (mknod /dev/net/tun c 10 200)"
        }
        _ => "check that the tun driver is available",
    }
}

fn create_remedy(e: Errno) -> &'static str {
    match e {
        Errno::EPERM => {
            "it needs CAP_NET_ADMIN in the network namespace: run as root or in a user namespace"
        }
        Errno::EBUSY => "a device of that name is in use: choose another name or delete it",
        Errno::EINVAL => {
            "a device of that name and another kind exists, or the kernel is too old: choose another name"
        }
        _ => "check the name and your privileges",
    }
}

/// Flags and name of an open TAP queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapInfo {
    /// Interface name in the namespace the device is in.
    pub name: String,
    /// IFF_VNET_HDR is set.
    pub vnet_hdr: bool,
    /// IFF_MULTI_QUEUE is set.
    pub multi_queue: bool,
}

fn ifreq(name: &str) -> Result<libc::ifreq, TunError> {
    let bad = || TunError::Name(name.to_owned());
    if name.len() >= libc::IFNAMSIZ
        || name.contains(['/', ':', '\0'])
        || name.contains(char::is_whitespace)
    {
        return Err(bad());
    }
    // SAFETY: ifreq is plain old data; all zero is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (d, s) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *d = s as libc::c_char;
    }
    Ok(req)
}

/// Whether a device may have this name.
pub fn check_name(name: &str) -> Result<(), TunError> {
    ifreq(name).map(drop)
}

fn req_name(req: &libc::ifreq) -> String {
    let bytes: Vec<u8> = req.ifr_name.iter().map(|c| *c as u8).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map(|c| c.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Whether /dev/net/tun is the driver's and may be opened.
pub fn check() -> Result<(), TunError> {
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open("/dev/net/tun", flags, nix::sys::stat::Mode::empty())
        .map_err(TunError::Open)?;
    let stat = nix::sys::stat::fstat(&fd).map_err(TunError::Open)?;
    // Documentation/admin-guide/devices.txt: misc (10), minor 200.
    let is_device = stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
    if is_device && stat.st_rdev == libc::makedev(10, 200) {
        return Ok(());
    }
    Err(TunError::Open(Errno::ENODEV))
}

/// Opens one queue of TAP device `name` in the calling thread's network namespace, creating the device if needed; an empty
/// name lets the kernel choose (`tap%d`). The queue is non-blocking, close-on-exec, with virtio-net headers.
/// The device is moved with its queues when it is moved to another namespace; the fd holds a reference to the
/// namespace it was opened in, not the one the device is in.
pub fn open_tap(name: &str, multi_queue: bool) -> Result<OwnedFd, TunError> {
    let mut req = ifreq(if name.is_empty() { "tap%d" } else { name })?;
    let flags =
        nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open("/dev/net/tun", flags, nix::sys::stat::Mode::empty())
        .map_err(TunError::Open)?;
    let mut f = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        f |= libc::IFF_MULTI_QUEUE;
    }
    req.ifr_ifru.ifru_flags = f as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives across the call.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &mut req) };
    Errno::result(r).map_err(|source| TunError::Create {
        name: name.to_owned(),
        source,
    })?;
    Ok(fd)
}

/// Name and flags of an open queue; fails if it isn't a TAP without packet information.
pub fn tap_info(fd: impl AsFd) -> Result<TapInfo, TunError> {
    let mut req = ifreq("")?;
    // SAFETY: TUNGETIFF writes an ifreq, which lives across the call.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETIFF as _, &mut req) };
    Errno::result(r).map_err(|_| TunError::NotTap("it isn't attached to a TUN/TAP device"))?;
    // SAFETY: TUNGETIFF filled the flags member of the union.
    let flags = libc::c_int::from(unsafe { req.ifr_ifru.ifru_flags }) & 0xffff;
    if flags & libc::IFF_TAP == 0 {
        return Err(TunError::NotTap("it is a TUN (L3) device"));
    }
    if flags & libc::IFF_NO_PI == 0 {
        return Err(TunError::NotTap("it carries packet information"));
    }
    Ok(TapInfo {
        name: req_name(&req),
        vnet_hdr: flags & libc::IFF_VNET_HDR != 0,
        multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
    })
}

/// Attaches a queue of a multi-queue device to what the kernel hands out, or detaches it: then it only sends. What waits in it is
/// lost when it is detached. EINVAL: it is so already, or the device has a single queue.
pub fn set_attached(fd: impl AsFd, on: bool) -> Result<(), TunError> {
    let mut req = ifreq("")?;
    let flag = if on {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    req.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: TUNSETQUEUE reads an ifreq, which lives across the call.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETQUEUE as _, &req) };
    Errno::result(r).map_err(|source| TunError::Ioctl {
        act: "attaching or detaching a queue",
        source,
    })?;
    Ok(())
}

/// Sets the length of the virtio-net header in bytes and reads it back.
pub fn set_vnet_hdr_len(fd: impl AsFd, len: usize) -> Result<(), TunError> {
    let act = "setting the virtio-net header length";
    let mut v = len as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives across the call.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &v) };
    Errno::result(r).map_err(|source| TunError::Ioctl { act, source })?;
    // SAFETY: TUNGETVNETHDRSZ writes an int, which lives across the call.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETVNETHDRSZ as _, &mut v) };
    Errno::result(r).map_err(|source| TunError::Ioctl { act, source })?;
    if v == len as libc::c_int {
        Ok(())
    } else {
        Err(TunError::Ioctl {
            act,
            source: Errno::EINVAL,
        })
    }
}

/// Tells the kernel what may stay undone in frames that we read; returns what it accepted (USO needs Linux 6.2).
pub fn set_offloads(fd: impl AsFd, want: Offloads) -> Result<Offloads, TunError> {
    let bits = |o: Offloads| {
        let mut b = 0;
        if o.csum {
            b |= TUN_F_CSUM;
            b |= if o.tso4 {
                TUN_F_TSO4 | TUN_F_TSO_ECN
            } else {
                0
            };
            b |= if o.tso6 {
                TUN_F_TSO6 | TUN_F_TSO_ECN
            } else {
                0
            };
            b |= if o.uso { TUN_F_USO4 | TUN_F_USO6 } else { 0 };
        }
        b
    };
    let mut last = Errno::EINVAL;
    for o in [
        want,
        Offloads { uso: false, ..want },
        Offloads {
            csum: want.csum,
            ..Offloads::NONE
        },
    ] {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let r = unsafe {
            libc::ioctl(
                fd.as_fd().as_raw_fd(),
                libc::TUNSETOFFLOAD as _,
                libc::c_ulong::from(bits(o)),
            )
        };
        match Errno::result(r) {
            Ok(_) => return Ok(o),
            Err(e) => last = e,
        }
    }
    Err(TunError::Ioctl {
        act: "setting offloads",
        source: last,
    })
}

/// Sets the carrier seen by the container (TUNSETCARRIER).
pub fn set_carrier(fd: impl AsFd, up: bool) -> Result<(), TunError> {
    let v = libc::c_int::from(up);
    // SAFETY: TUNSETCARRIER reads an int, which lives across the call.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETCARRIER as _, &v) };
    Errno::result(r)
        .map(drop)
        .map_err(|source| TunError::Ioctl {
            act: "setting the carrier",
            source,
        })
}

/// Scatter read without going through a `Read` handle.
pub fn readv(fd: impl AsFd, bufs: &mut [io::IoSliceMut<'_>]) -> Result<usize, Errno> {
    nix::sys::uio::readv(fd, bufs)
}

/// Gather write.
pub fn writev(fd: impl AsFd, bufs: &[io::IoSlice<'_>]) -> Result<usize, Errno> {
    nix::sys::uio::writev(fd, bufs)
}
