//! A thread that waits in a system call: what it points to, and its descriptors.
//!
//! It is another's, and hostile: all that is read may have changed before it is used, and its number may be somebody else's by then. Who
//! reads asks the listener afterwards whether the call still waits.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use vswitch_core::sys::pidfd;

/// Descriptors that are looked at, to find duplicates and epoll sets.
const MOST: usize = 1024;
/// What /proc calls an epoll set.
const EPOLL: &str = "anon_inode:[eventpoll]";

/// The thread.
#[derive(Debug)]
pub(super) struct Tracee {
    thread: i32,
    process: OwnedFd,
}

/// A socket of its process.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) fd: OwnedFd,
    inode: u64,
}

fn odd() -> io::Error {
    ErrorKind::InvalidData.into()
}

impl Tracee {
    /// Errors: it can't be seen, or it isn't ours to look into.
    pub(super) fn of(thread: i32) -> io::Result<Tracee> {
        if thread <= 0 {
            return Err(ErrorKind::NotFound.into());
        }
        let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
        let mut lines = status.lines();
        let process = lines.find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok());
        Ok(Tracee {
            thread,
            process: pidfd::open(process.ok_or_else(odd)?)?,
        })
    }

    /// Some of its memory.
    pub(super) fn memory(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let memory = fs::File::open(format!("/proc/{}/mem", self.thread))?;
        let mut bytes = vec![0; len];
        memory.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn link(&self, number: i32) -> io::Result<String> {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.thread))?;
        Ok(link.to_string_lossy().into_owned())
    }

    /// A duplicate of its socket. Errors: also if the thread's descriptors aren't its process's.
    pub(super) fn socket(&self, number: i32) -> io::Result<Held> {
        let fd = pidfd::take(&self.process, number)?;
        let inode = nix::sys::stat::fstat(fd.as_fd())?.st_ino;
        if self.link(number)? != format!("socket:[{inode}]") {
            return Err(odd());
        }
        Ok(Held { fd, inode })
    }

    /// Whether its descriptor is closed by execve(2).
    pub(super) fn is_cloexec(&self, number: i32) -> io::Result<bool> {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.thread))?;
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
        let flags = flags.and_then(|f| i32::from_str_radix(f.trim(), 8).ok());
        Ok(flags.ok_or_else(odd)? & libc::O_CLOEXEC != 0)
    }

    /// Whether something of the process would stay with the old socket if it were replaced: a duplicate, or an epoll set that it is in.
    /// Also if there are too many descriptors to tell.
    pub(super) fn is_shared(&self, number: i32, socket: &Held) -> io::Result<bool> {
        let own = format!("socket:[{}]", socket.inode);
        for (i, entry) in fs::read_dir(format!("/proc/{}/fd", self.thread))?.enumerate() {
            if i >= MOST {
                return Ok(true);
            }
            let entry = entry?;
            let name = entry.file_name();
            let Some(n) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
                continue;
            };
            // One that was closed meanwhile is no duplicate.
            let Ok(link) = self.link(n) else { continue };
            if n != number && link == own || link == EPOLL && self.is_in(n, socket.inode)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an epoll set has the inode (proc(5), `fdinfo`).
    fn is_in(&self, epoll: i32, inode: u64) -> io::Result<bool> {
        let Ok(info) = fs::read_to_string(format!("/proc/{}/fdinfo/{epoll}", self.thread)) else {
            return Ok(false);
        };
        Ok(has_inode(&info, inode))
    }
}

fn has_inode(info: &str, inode: u64) -> bool {
    let targets = info.lines().filter(|l| l.starts_with("tfd:"));
    let inodes = targets.filter_map(|l| {
        let (_, rest) = l.split_once(" ino:")?;
        u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()
    });
    inodes.into_iter().any(|i| i == inode)
}

/// Finds a socket in some process that we may look into, whoever it is.
pub(super) fn find(inode: u64, is_it: impl Fn(&OwnedFd) -> bool) -> Option<OwnedFd> {
    let own = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?;
    let numbers = processes.filter_map(|p| p.ok()?.file_name().to_str()?.parse::<i32>().ok());
    for process in numbers {
        let Ok(all) = fs::read_dir(format!("/proc/{process}/fd")) else {
            continue;
        };
        for entry in all.filter_map(Result::ok) {
            if fs::read_link(entry.path()).is_ok_and(|l| l.as_os_str() == own.as_str())
                && let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok())
                && let Ok(fd) = pidfd::open(process).and_then(|p| pidfd::take(&p, number))
                && is_it(&fd)
            {
                return Some(fd);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn our_own_descriptors_are_seen_for_what_they_are() {
        let own = Tracee::of(nix::unistd::gettid().as_raw()).unwrap();
        let secret = *b"what lies here";
        let at = secret.as_ptr().addr() as u64;
        assert_eq!(own.memory(at, secret.len()).unwrap(), secret);
        assert!(own.memory(1, 16).is_err());
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = socket.as_raw_fd();
        let held = own.socket(number).unwrap();
        assert!(own.is_cloexec(number).unwrap());
        // What we hold is a duplicate itself.
        assert!(own.is_shared(number, &held).unwrap());
        let inode = held.inode;
        drop(held);
        let alone = Held {
            fd: fs::File::open("/dev/null").unwrap().into(),
            inode,
        };
        assert!(!own.is_shared(number, &alone).unwrap());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 7))
            .unwrap();
        assert!(own.is_shared(number, &alone).unwrap());
        let number = vswitch_core::sys::twin::number(&socket).unwrap();
        let is_it = |fd: &OwnedFd| vswitch_core::sys::twin::number(fd).ok() == Some(number);
        assert!(find(inode, is_it).is_some());
        assert!(find(inode, |_| false).is_none());
        assert!(Tracee::of(0).is_err() && own.socket(-1).is_err());
    }

    #[test]
    fn epoll_sets_are_read() {
        let info = "pos:\t0\nflags:\t02000002\ntfd:       5 events:       19 data: ffff  pos:0 ino:2f sdev:8\n";
        assert!(has_inode(info, 0x2f) && !has_inode(info, 0x2));
        assert!(!has_inode("", 0));
    }
}
