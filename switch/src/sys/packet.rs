//! AF_PACKET sockets: opening, binding, options (include/uapi/linux/if_packet.h, net/packet/af_packet.c).

use super::filter::{RETURN, set_program};
use nix::errno::Errno;
use std::ffi::CStr;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

// Not in libc for every target; values from if_packet.h.
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_VNET_HDR: libc::c_int = 15;

/// What went wrong with a packet socket.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// No socket.
    #[error("cannot open a packet socket for interface `{name}`: {source}; {remedy}", remedy = open_remedy(*.source))]
    Open {
        /// Interface.
        name: String,
        /// Kernel's answer.
        source: Errno,
    },
    /// No such interface.
    #[error(
        "there is no interface `{name}` in this network namespace: {source}; create it first (ip link add) or check the name"
    )]
    NoInterface {
        /// Interface.
        name: String,
        /// Kernel's answer.
        source: Errno,
    },
    /// An fd that isn't a packet socket of the right kind.
    #[error(
        "the file descriptor handed over is not usable as a packet port: {0}; open it with AF_PACKET, SOCK_RAW and bind it to an interface"
    )]
    NotPacket(&'static str),
    /// An option or the binding was refused.
    #[error("{act} on the packet socket failed: {source}; {remedy}", remedy = option_remedy(*.source))]
    Option {
        /// What was tried.
        act: &'static str,
        /// Kernel's answer.
        source: Errno,
    },
}

fn open_remedy(e: Errno) -> &'static str {
    match e {
        Errno::EPERM | Errno::EACCES => {
            "it needs CAP_NET_RAW in the network namespace: run as root or in a user namespace"
        }
        Errno::EMFILE | Errno::ENFILE => "raise the limit of open files (ulimit -n)",
        Errno::EAFNOSUPPORT => "the kernel has no AF_PACKET (CONFIG_PACKET)",
        _ => "check your privileges",
    }
}

fn option_remedy(e: Errno) -> &'static str {
    match e {
        Errno::ENOPROTOOPT => "the kernel is too old: 4.20 or newer is needed",
        Errno::ENOMEM => "free memory or use fewer workers",
        Errno::EPERM => "run as root or with CAP_NET_RAW and CAP_NET_ADMIN",
        Errno::ENETDOWN => "set the interface up first",
        Errno::ENODEV | Errno::ENXIO => "the interface was deleted: create it again",
        _ => "check that the interface exists and is an Ethernet device",
    }
}

/// Opens a packet socket for interface `name` of the calling thread's network namespace. It has protocol 0, so it
/// receives nothing yet: [`start`] begins. Non-blocking, close-on-exec.
pub fn open(name: &str) -> Result<OwnedFd, PacketError> {
    let err = |source| PacketError::Open {
        name: name.to_owned(),
        source,
    };
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes its arguments by value.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map_err(err)?;
    // SAFETY: the kernel just gave us this fd, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = nix::net::if_::if_nametoindex(name).map_err(|source| PacketError::NoInterface {
        name: name.to_owned(),
        source,
    })?;
    bind(&fd, index as i32, 0)?;
    Ok(fd)
}

fn bind(fd: &OwnedFd, index: i32, protocol: u16) -> Result<(), PacketError> {
    // SAFETY: sockaddr_ll is plain old data; all zero is a valid value.
    let mut sa: libc::sockaddr_ll = unsafe { zeroed() };
    sa.sll_family = libc::AF_PACKET as u16;
    sa.sll_protocol = protocol.to_be();
    sa.sll_ifindex = index;
    // SAFETY: bind reads a sockaddr_ll of the given size, which lives across the call.
    let r = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const sa).cast(),
            size_of_val(&sa) as libc::socklen_t,
        )
    };
    Errno::result(r)
        .map(drop)
        .map_err(|source| PacketError::Option {
            act: "binding to the interface",
            source,
        })
}

/// Begins to receive all protocols from the interface the socket is bound to.
pub fn start(fd: &OwnedFd) -> Result<(), PacketError> {
    let index = interface(fd).map_err(|source| PacketError::Option {
        act: "asking for the interface",
        source,
    })?;
    bind(fd, index, libc::ETH_P_ALL as u16)
}

/// Index of the interface the socket is bound to; negative once it was deleted, 0 when unbound.
pub fn interface(fd: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: sockaddr_ll is plain old data; all zero is a valid value.
    let mut sa: libc::sockaddr_ll = unsafe { zeroed() };
    let mut len = size_of_val(&sa) as libc::socklen_t;
    // SAFETY: getsockname writes at most `len` bytes to `sa`; both live across the call.
    let r =
        unsafe { libc::getsockname(fd.as_fd().as_raw_fd(), (&raw mut sa).cast(), &raw mut len) };
    Errno::result(r)?;
    Ok(sa.sll_ifindex)
}

/// Checks that an fd is a raw packet socket bound to an interface.
pub fn check(fd: &OwnedFd) -> Result<(), PacketError> {
    let get = |name| get_int(fd, libc::SOL_SOCKET, name).unwrap_or(-1);
    if get(libc::SO_DOMAIN) != libc::AF_PACKET {
        return Err(PacketError::NotPacket("it isn't a packet socket"));
    }
    if get(libc::SO_TYPE) != libc::SOCK_RAW {
        return Err(PacketError::NotPacket("it isn't of type SOCK_RAW"));
    }
    if interface(fd).is_ok_and(|i| i > 0) {
        Ok(())
    } else {
        Err(PacketError::NotPacket("it isn't bound to an interface"))
    }
}

pub(super) fn set<T>(
    fd: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
    act: &'static str,
) -> Result<(), PacketError> {
    // SAFETY: setsockopt reads size_of::<T>() bytes of `value`, which lives across the call.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(r)
        .map(drop)
        .map_err(|source| PacketError::Option { act, source })
}

fn get_int(fd: impl AsFd, level: libc::c_int, name: libc::c_int) -> Result<i32, Errno> {
    let mut v: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: getsockopt writes at most `len` bytes to `v`; both live across the call.
    let r = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut v).cast(),
            &raw mut len,
        )
    };
    Errno::result(r).map(|_| v)
}

/// Sets what every packet port needs, before [`start`]: virtio-net headers, VLAN tags beside the frames, own frames
/// ignored, no queueing discipline on the way out, buffers of `buffer` bytes each way (as far as allowed).
pub fn configure(fd: &OwnedFd, buffer: i32) -> Result<(), PacketError> {
    let on: libc::c_int = 1;
    let p = libc::SOL_PACKET;
    set(fd, p, PACKET_VNET_HDR, &on, "asking for virtio-net headers")?;
    set(fd, p, libc::PACKET_AUXDATA, &on, "asking for VLAN tags")?;
    set(
        fd,
        p,
        PACKET_IGNORE_OUTGOING,
        &on,
        "ignoring outgoing frames",
    )?;
    set(
        fd,
        p,
        PACKET_QDISC_BYPASS,
        &on,
        "bypassing the queueing discipline",
    )?;
    for (force, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        // Beyond net.core.[rw]mem_max takes CAP_NET_ADMIN of the namespace; less works too.
        if set(fd, libc::SOL_SOCKET, force, &buffer, "").is_err() {
            set(fd, libc::SOL_SOCKET, plain, &buffer, "setting buffer sizes")?;
        }
    }
    Ok(())
}

/// Has the interface take all frames as long as the socket is open.
pub fn set_promiscuous(fd: &OwnedFd) -> Result<(), PacketError> {
    // SAFETY: packet_mreq is plain old data; all zero is a valid value.
    let mut req: libc::packet_mreq = unsafe { zeroed() };
    let act = "making the interface promiscuous";
    req.mr_ifindex = interface(fd).map_err(|source| PacketError::Option { act, source })?;
    req.mr_type = libc::PACKET_MR_PROMISC as u16;
    set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &req, act)
}

/// A group of sockets that share an interface's frames by flow: those of one flow come in order by one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fanout {
    /// A new group; the kernel chooses a number that no other program in the network namespace has.
    New,
    /// That group, by its number.
    Join(u16),
    /// A new group whose first member gets everything until [`super::steer::steer`] says otherwise.
    NewSteered,
    /// That group, by its number, if it was made so.
    JoinSteered(u16),
}

/// Begins to receive as [`start`] does, as a member of a fanout group, and returns the group's number. The interface
/// has to be up before Linux 6.13.
pub fn start_in_group(fd: &OwnedFd, group: Fanout) -> Result<u16, PacketError> {
    let (number, flags, act) = match group {
        Fanout::New | Fanout::NewSteered => (
            0,
            libc::PACKET_FANOUT_FLAG_UNIQUEID,
            "making a fanout group",
        ),
        Fanout::Join(number) | Fanout::JoinSteered(number) => {
            (number, 0, "joining the fanout group")
        }
    };
    // A member has to receive already; until it has joined it would receive everything besides the group.
    let s = libc::SOL_SOCKET;
    let joins = matches!(group, Fanout::Join(_) | Fanout::JoinSteered(_));
    if joins {
        set_program(fd, (s, libc::SO_ATTACH_FILTER), &[(RETURN, 0, 0, 0)])
            .map_err(|source| PacketError::Option { act, source })?;
    }
    start(fd)?;
    // The group has a hook of its own, which doesn't inherit the sockets' PACKET_IGNORE_OUTGOING.
    let kind = match group {
        Fanout::New | Fanout::Join(_) => libc::PACKET_FANOUT_HASH,
        Fanout::NewSteered | Fanout::JoinSteered(_) => libc::PACKET_FANOUT_CBPF,
    } | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    let v = u32::from(number) | (kind | flags) << 16;
    set(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &v, act)?;
    if joins {
        set(fd, s, libc::SO_DETACH_FILTER, &0, act)?;
    }
    get_int(fd, libc::SOL_PACKET, libc::PACKET_FANOUT)
        .map(|v| v as u16)
        .map_err(|source| PacketError::Option { act, source })
}

/// Takes the socket's pending error.
#[must_use]
pub fn take_error(fd: impl AsFd) -> Option<Errno> {
    match get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR) {
        Ok(0) => None,
        Ok(e) => Some(Errno::from_raw(e)),
        Err(e) => Some(e),
    }
}

/// Frames that the kernel dropped because the socket's buffer was full, since the last call (PACKET_STATISTICS).
pub fn take_drops(fd: impl AsFd) -> Result<u32, Errno> {
    // struct tpacket_stats_v3 is the longest: packets, drops, freeze count.
    let mut v = [0u32; 3];
    let mut len = size_of_val(&v) as libc::socklen_t;
    // SAFETY: getsockopt writes at most `len` bytes to `v`; both live across the call.
    let r = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            v.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(r).map(|_| v[1])
}

/// Name of the interface the socket is bound to, and whether it is set up, in the socket's own namespace.
pub fn link(fd: impl AsFd) -> Result<(String, bool), Errno> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: ifreq is plain old data; all zero is a valid value.
    let mut req: libc::ifreq = unsafe { zeroed() };
    req.ifr_ifru.ifru_ifindex = interface(&fd)?;
    // SAFETY: SIOCGIFNAME reads the index and writes the name of an ifreq, which lives across the call.
    Errno::result(unsafe { libc::ioctl(raw, libc::SIOCGIFNAME as _, &raw mut req) })?;
    let name: Vec<u8> = req.ifr_name.iter().map(|c| *c as u8).collect();
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of an ifreq, which lives across the call.
    Errno::result(unsafe { libc::ioctl(raw, libc::SIOCGIFFLAGS as _, &raw mut req) })?;
    // SAFETY: SIOCGIFFLAGS filled the flags member of the union.
    let flags = libc::c_int::from(unsafe { req.ifr_ifru.ifru_flags });
    let name = CStr::from_bytes_until_nul(&name)
        .map(|c| c.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok((name, flags & libc::IFF_UP != 0))
}

/// Release of the kernel, and major and minor version; zeros if it doesn't say.
pub(crate) fn kernel() -> (String, (u32, u32)) {
    let Ok(u) = nix::sys::utsname::uname() else {
        return (String::new(), (0, 0));
    };
    let release = u.release().to_string_lossy().into_owned();
    let mut parts = release
        .split(['.', '-'])
        .map(|p| p.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    (release, version)
}

/// Whether the kernel knows UDP segmentation in virtio-net headers (Linux 6.2).
#[must_use]
pub fn has_uso() -> bool {
    kernel().1 >= (6, 2)
}
