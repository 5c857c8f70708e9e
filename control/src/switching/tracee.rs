//! A thread that waits in a system call: what it points to, and its descriptors.
//!
//! It is another's, and hostile: all that is read may have changed before it is used, and its number may be somebody else's by then. Who
//! reads asks the listener afterwards whether the call still waits.

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use vswitch_core::sys::pidfd;
use vswitch_core::sys::registrar::Entry;

/// Descriptors that are looked at, to find duplicates and epoll sets.
const MOST: i32 = 1024;
/// Most bytes of what an epoll set has, and most sets that a socket is in.
const SET: u64 = 1 << 20;
const SETS: usize = 8;
/// How often descriptors are looked at that come and go.
const TRIES: usize = 4;
/// What /proc calls an epoll set.
const EPOLL: &str = "anon_inode:[eventpoll]";
/// What an entry has to ask for, if it is to be registered anew: nothing is left of one that was disarmed (EPOLLONESHOT), and
/// EPOLLEXCLUSIVE doesn't go with all others.
const ASKED: u32 =
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP).cast_unsigned();
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE.cast_unsigned();

/// The thread. What it is known by here is good as long as it lives, and fails after.
#[derive(Debug)]
pub(super) struct Tracee {
    thread: i32,
    /// It, or its process.
    pid: OwnedFd,
    is_process: bool,
    /// Its directory in /proc.
    dir: OwnedFd,
}

/// A socket of its process.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) fd: OwnedFd,
}

/// An epoll set that has the socket.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) set: OwnedFd,
    pub(super) entry: Entry,
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
        let path = format!("/proc/{thread}");
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path.as_str(), flags, Mode::empty())?;
        let (pid, is_process) = match pidfd::open_thread(thread) {
            // Before Linux 6.9.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                (pidfd::open(process_of(thread)?)?, true)
            }
            opened => (opened?, false),
        };
        Ok(Tracee {
            thread,
            pid,
            is_process,
            dir,
        })
    }

    /// Some of its memory.
    pub(super) fn memory(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        pidfd::read_memory(self.thread, at, into)
    }

    fn link(&self, number: i32) -> io::Result<String> {
        let link = readlinkat(&self.dir, format!("fd/{number}").as_str())?;
        Ok(link.to_string_lossy().into_owned())
    }

    fn info(&self, number: i32, most: u64) -> io::Result<String> {
        let path = format!("fdinfo/{number}");
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, path.as_str(), flags, Mode::empty())?;
        let mut text = String::new();
        let n = fs::File::from(file).take(most).read_to_string(&mut text)?;
        // What is cut off isn't known.
        if n as u64 >= most {
            return Err(odd());
        }
        Ok(text)
    }

    /// A duplicate of its socket. Errors: also if the thread's descriptors aren't its process's, where they can't be told apart.
    pub(super) fn socket(&self, number: i32) -> io::Result<Held> {
        let fd = pidfd::take(&self.pid, number)?;
        if self.is_process {
            let inode = nix::sys::stat::fstat(fd.as_fd())?.st_ino;
            if self.link(number)? != format!("socket:[{inode}]") {
                return Err(odd());
            }
        }
        Ok(Held { fd })
    }

    /// Whether its descriptor is closed by execve(2).
    pub(super) fn is_cloexec(&self, number: i32) -> io::Result<bool> {
        // The flags stand at the beginning, and a socket has little more.
        let info = self.info(number, 4096)?;
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
        let flags = flags.and_then(|f| i32::from_str_radix(f.trim(), 8).ok());
        Ok(flags.ok_or_else(odd)? & libc::O_CLOEXEC != 0)
    }

    /// The epoll sets of the process that have the socket by its number. `None` where something would stay with the old one if it
    /// were replaced: a duplicate, or what can't be registered anew; also if there are too many descriptors to tell.
    pub(super) fn sets(&self, number: i32, socket: &Held) -> io::Result<Option<Vec<Registered>>> {
        for _ in 0..TRIES {
            let before = self.count()?;
            if before <= 0 {
                return self.sets_by_name(number, socket);
            }
            // They have the smallest numbers, mostly; trying is faster than reading the directory.
            let few: Vec<i32> = (0..before.saturating_mul(2).saturating_add(8).min(MOST)).collect();
            let few = self.sets_of(number, socket, &few, before - 1);
            let found = match few.as_ref().map_err(|e| (e.kind(), e.raw_os_error())) {
                Err((ErrorKind::WouldBlock, _)) => {
                    let all = self.sets_of(number, socket, &self.numbers()?, before - 1);
                    match all {
                        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
                        all => all?,
                    }
                }
                Err((_, Some(libc::ENOSYS))) => return self.sets_by_name(number, socket),
                _ => few?,
            };
            // If as many are there still, all have been seen: other threads open and close some meanwhile.
            if found.is_none() || self.count()? == before {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// How many descriptors the process has (Linux 6.2; 0 before).
    fn count(&self) -> io::Result<i32> {
        let many = fstatat(&self.dir, "fd", AtFlags::empty())?.st_size;
        i32::try_from(many).map_err(|_| odd())
    }

    /// The numbers of its descriptors, as many as are looked at.
    fn numbers(&self) -> io::Result<Vec<i32>> {
        let all = fs::read_dir(format!("/proc/{}/fd", self.thread))?;
        let numbers = all.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        Ok(numbers.take(MOST as usize).collect())
    }

    /// Looks at so many descriptors, which have some of these numbers. Errors: WouldBlock if they aren't all among them.
    fn sets_of(
        &self,
        number: i32,
        socket: &Held,
        numbers: &[i32],
        mut left: i32,
    ) -> io::Result<Option<Vec<Registered>>> {
        let mut sets = Vec::new();
        for n in numbers.iter().copied().filter(|n| *n != number) {
            if left <= 0 {
                return Ok(Some(sets));
            }
            match pidfd::is_duplicate(&socket.fd, self.thread, n) {
                Ok(true) => return Ok(None),
                Ok(false) => left -= 1,
                Err(e) if e.raw_os_error() == Some(libc::EBADF) => continue,
                Err(e) => return Err(e),
            }
            if pidfd::is_registered(&socket.fd, self.thread, n, number).unwrap_or(false) {
                let Some(registered) = self.registered(n, number, socket)? else {
                    return Ok(None);
                };
                if sets.len() >= SETS {
                    return Ok(None);
                }
                sets.push(registered);
            }
        }
        match left {
            ..=0 => Ok(Some(sets)),
            _ => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// The same on a kernel that doesn't compare.
    fn sets_by_name(&self, number: i32, socket: &Held) -> io::Result<Option<Vec<Registered>>> {
        let inode = nix::sys::stat::fstat(socket.fd.as_fd())?.st_ino;
        let own = format!("socket:[{inode}]");
        let all = fs::read_dir(format!("/proc/{}/fd", self.thread))?;
        for (i, entry) in (0..).zip(all) {
            if i >= MOST {
                return Ok(None);
            }
            let name = entry?.file_name();
            let Some(n) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else {
                continue;
            };
            // One that was closed meanwhile is no duplicate.
            let Ok(link) = self.link(n) else { continue };
            let in_set = || Ok::<_, io::Error>(!entries(&self.info(n, SET)?, inode).is_empty());
            if n != number && link == own || link == EPOLL && in_set()? {
                return Ok(None);
            }
        }
        Ok(Some(Vec::new()))
    }

    /// An epoll set that has the socket, if it is to be had in full.
    fn registered(&self, set: i32, number: i32, socket: &Held) -> io::Result<Option<Registered>> {
        let Ok(info) = self.info(set, SET) else {
            return Ok(None);
        };
        let inode = nix::sys::stat::fstat(socket.fd.as_fd())?.st_ino;
        let [(n, entry)] = entries(&info, inode)[..] else {
            return Ok(None);
        };
        if n != number || entry.events & ASKED == 0 || entry.events & EXCLUSIVE != 0 {
            return Ok(None);
        }
        let set = pidfd::take(&self.pid, set)?;
        Ok(Some(Registered { set, entry }))
    }
}

/// The process of a thread.
fn process_of(thread: i32) -> io::Result<i32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    let mut lines = status.lines();
    let process = lines.find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok());
    process.ok_or_else(odd)
}

/// What an epoll set has for the inode, and by which numbers (proc(5), `fdinfo`).
fn entries(info: &str, inode: u64) -> Vec<(i32, Entry)> {
    let one = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let (mut events, mut data, mut of) = (None, None, None);
        while let Some(word) = words.next() {
            let hex = |text: &str| u64::from_str_radix(text, 16).ok();
            match word {
                "events:" => events = words.next().and_then(hex),
                "data:" => data = words.next().and_then(hex),
                _ => of = word.strip_prefix("ino:").and_then(hex).or(of),
            }
        }
        let events = u32::try_from(events?).ok()?;
        let data = data?;
        (of? == inode).then_some((number, Entry { events, data }))
    };
    info.lines().filter_map(one).collect()
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

    fn own() -> Tracee {
        Tracee::of(nix::unistd::gettid().as_raw()).unwrap()
    }

    #[test]
    fn our_own_descriptors_are_seen_for_what_they_are() {
        let own = own();
        let secret = *b"what lies here";
        let (at, mut read) = (secret.as_ptr().addr() as u64, [0; 14]);
        own.memory(at, &mut read).unwrap();
        assert_eq!(read, secret);
        assert!(own.memory(1, &mut read).is_err());
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = socket.as_raw_fd();
        let held = own.socket(number).unwrap();
        assert!(own.is_cloexec(number).unwrap());
        // What we hold is a duplicate itself.
        assert!(own.sets(number, &held).unwrap().is_none());
        assert!(own.sets_by_name(number, &held).unwrap().is_none());
        let inode = nix::sys::stat::fstat(&socket).unwrap().st_ino;
        drop(held);
        let id = vswitch_core::sys::twin::number(&socket).unwrap();
        let is_it = |fd: &OwnedFd| vswitch_core::sys::twin::number(fd).ok() == Some(id);
        assert!(find(inode, is_it).is_some());
        assert!(find(inode, |_| false).is_none());
        assert!(Tracee::of(0).is_err() && own.socket(-1).is_err());
        assert_eq!(
            process_of(nix::unistd::gettid().as_raw()).unwrap(),
            std::process::id().cast_signed()
        );
    }

    #[test]
    fn the_sets_of_a_socket_are_found() {
        let own = own();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = socket.as_raw_fd();
        let held = Held { fd: socket.into() };
        let none = own.sets_of(number, &held, &[0, 1], 0).unwrap();
        assert_eq!(none.map(|s| s.len()), Some(0));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let asked = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&held.fd, EpollEvent::new(asked, 7)).unwrap();
        let at = epoll.0.as_raw_fd();
        assert!(own.numbers().unwrap().contains(&at));
        let found = own.sets_of(number, &held, &[at], 1).unwrap();
        assert_eq!(found.map(|s| s.len()), Some(1));
        let more = own.sets_of(number, &held, &[at], 2).unwrap_err();
        assert_eq!(more.kind(), ErrorKind::WouldBlock);
        let one = own.registered(at, number, &held).unwrap().unwrap();
        assert_eq!((one.entry.events & ASKED, one.entry.data), (1, 7));
        assert!(one.entry.events & libc::EPOLLET.cast_unsigned() != 0);
        // Disarmed, there is nothing to be had.
        let mut none = EpollEvent::new(EpollFlags::EPOLLONESHOT, 7);
        epoll.modify(&held.fd, &mut none).unwrap();
        assert!(own.registered(at, number, &held).unwrap().is_none());
        assert!(own.sets_by_name(number, &held).unwrap().is_none());
    }

    #[test]
    fn epoll_sets_are_read() {
        let info = "pos:\t0\nflags:\t02000002\ntfd:       5 events: 80000019 data: ffff000000000001  pos:0 ino:2f sdev:8\n";
        let entry = Entry {
            events: 0x8000_0019,
            data: 0xffff_0000_0000_0001,
        };
        assert_eq!(entries(info, 0x2f), [(5, entry)]);
        assert_eq!(entries(info, 0x2), []);
        assert_eq!(entries("tfd: x\ntfd:\n", 0), []);
    }
}
