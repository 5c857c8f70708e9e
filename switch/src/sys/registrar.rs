//! Registers descriptors with other processes' epoll sets as those processes know them.
//!
//! An epoll set keeps what is registered by the open file *and* the number it has in the registering process: who is to modify or remove it
//! later names both (epoll_ctl(2)). So what we register for somebody else has to have his number while we do. A thread with a table
//! of descriptors of its own (close_range(2), Linux 5.9) does it, where any number is free to be taken.

use super::pidfd;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Stack of the thread.
const STACK: usize = 128 << 10;

/// How something is registered (epoll_ctl(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// EPOLLIN and the like.
    pub events: u32,
    /// What the set tells its owner.
    pub data: u64,
}

/// What is to be done; the numbers are those of our process, which waits meanwhile.
enum Act {
    Add(Entry),
    Remove,
}

struct Order {
    act: Act,
    set: RawFd,
    file: RawFd,
    number: i32,
    done: Sender<io::Result<()>>,
}

/// The thread.
#[derive(Debug)]
pub struct Registrar {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Registrar {
    /// Starts it. Errors: no thread.
    pub fn start() -> io::Result<Registrar> {
        let (orders, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("registrar".into())
            .stack_size(STACK)
            .spawn(move || serve(&queue))?;
        Ok(Registrar {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Registers a file of ours under this number. Errors: as epoll_ctl(2); EBADF where the number is above what we may have.
    pub fn add(
        &self,
        set: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        number: i32,
        entry: Entry,
    ) -> io::Result<()> {
        self.order(Act::Add(entry), set, file, number)
    }

    /// Removes what is registered under this number. Errors: as epoll_ctl(2).
    pub fn remove(&self, set: BorrowedFd<'_>, file: BorrowedFd<'_>, number: i32) -> io::Result<()> {
        self.order(Act::Remove, set, file, number)
    }

    fn order(
        &self,
        act: Act,
        set: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        number: i32,
    ) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (done, answer) = channel();
        let order = Order {
            act,
            set: set.as_raw_fd(),
            file: file.as_raw_fd(),
            number,
            done,
        };
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(order).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(queue: &Receiver<Order>) {
    let mut own = match alone() {
        Ok(own) => own,
        Err(e) => return refuse(queue, &e),
    };
    while let Ok(order) = queue.recv() {
        let done = carry_out(&mut own, &order);
        let _ = order.done.send(done);
    }
}

fn refuse(queue: &Receiver<Order>, why: &io::Error) {
    while let Ok(order) = queue.recv() {
        let same = io::Error::from_raw_os_error(why.raw_os_error().unwrap_or(libc::ENOSYS));
        let _ = order.done.send(Err(same));
    }
}

/// Leaves the process's table of descriptors for an empty one, and opens the process there.
fn alone() -> io::Result<OwnedFd> {
    /// include/uapi/linux/close_range.h
    const UNSHARE: libc::c_uint = 2;
    // SAFETY: takes three integers. With UNSHARE it touches no table but the new one of this thread, which has nothing of its own yet.
    let r = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, UNSHARE) };
    Errno::result(r)?;
    pidfd::open(std::process::id().cast_signed())
}

/// Another number for a descriptor that is in the way.
fn aside(fd: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() != number {
        return Ok(fd);
    }
    let other = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(0))?;
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(other) })
}

fn carry_out(own: &mut OwnedFd, order: &Order) -> io::Result<()> {
    let number = order.number;
    if number < 0 {
        return Err(Errno::EBADF.into());
    }
    if own.as_raw_fd() == number {
        let other = aside(own.try_clone()?, number)?;
        *own = other;
    }
    let set = Epoll(aside(pidfd::take(&*own, order.set)?, number)?);
    let taken = pidfd::take(&*own, order.file)?;
    let file = if taken.as_raw_fd() == number {
        taken
    } else {
        // SAFETY: nothing of this thread has the number: its own pidfd and the set have been put aside, and `taken` has another.
        let r = unsafe { libc::dup3(taken.as_raw_fd(), number, libc::O_CLOEXEC) };
        Errno::result(r)?;
        // SAFETY: as above, it is new.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    match order.act {
        Act::Add(entry) => {
            let flags = EpollFlags::from_bits_retain(entry.events.cast_signed());
            set.add(file.as_fd(), EpollEvent::new(flags, entry.data))?;
        }
        Act::Remove => set.delete(file.as_fd())?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_is_registered_for_another_number_is_known_by_that() {
        let registrar = Registrar::start().unwrap();
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let entry = Entry {
            events: libc::EPOLLIN.cast_unsigned(),
            data: u64::MAX - 5,
        };
        // Small numbers are those that the thread has something of its own at.
        for number in [0, 1, 2, 3, 4, 200] {
            let add = || registrar.add(set.0.as_fd(), file.as_fd(), number, entry);
            add().unwrap();
            assert_eq!(add().unwrap_err().raw_os_error(), Some(libc::EEXIST));
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", set.0.as_raw_fd()));
            assert!(info.unwrap().contains(&format!("tfd: {number:8} ")));
            far.write_all(b"x").unwrap();
            let mut said = [EpollEvent::empty()];
            assert_eq!(set.wait(&mut said, EpollTimeout::from(5000u16)).unwrap(), 1);
            assert_eq!(said[0].data(), entry.data);
            let remove = || registrar.remove(set.0.as_fd(), file.as_fd(), number);
            remove().unwrap();
            assert!(remove().is_err());
        }
        assert!(registrar.add(file.as_fd(), file.as_fd(), 9, entry).is_err());
        assert!(
            registrar
                .add(set.0.as_fd(), file.as_fd(), -1, entry)
                .is_err()
        );
    }
}
