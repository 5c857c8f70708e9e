//! Moving bytes from one stream to another within the kernel (splice(2)).

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Bytes that a pipe may hold; what an ordinary user may have (`fs.pipe-max-size`).
const SIZE: i32 = 1 << 20;

/// What bytes go through.
#[derive(Debug)]
pub struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty one. Errors: EMFILE, ENFILE.
    pub fn new() -> io::Result<Pipe> {
        let (from, to) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        // A smaller one serves, in more calls.
        let _ = fcntl(&to, FcntlArg::F_SETPIPE_SZ(SIZE));
        Ok(Pipe { from, to, held: 0 })
    }

    /// Bytes that are in it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes what a stream has; 0: it has ended. The pipe has to be empty, or EAGAIN may be its own. Errors: as splice(2).
    pub fn fill(&mut self, stream: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let n = splice(stream, None, &self.to, None, SIZE as usize, flags)?;
        self.held += n;
        Ok(n)
    }

    /// Gives a stream what it takes. Errors: as splice(2).
    pub fn drain(&mut self, stream: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let n = splice(&self.from, None, stream, None, self.held, flags)?;
        self.held -= n.min(self.held);
        Ok(n)
    }
}

/// Says that a stream's last was sent.
pub fn shut(stream: impl AsFd) {
    // It fails only if the connection is gone, which shows.
    let _ = shutdown(stream.as_fd().as_raw_fd(), Shutdown::Write);
}

/// Has closing reset the connection.
pub fn abort(stream: impl AsFd) {
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(&stream.as_fd(), Linger, &now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_go_from_stream_to_stream() {
        let ((mut a, near), (far, mut b)) = (pair(), pair());
        near.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new().unwrap();
        let none = pipe.fill(&near).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        a.write_all(b"hello").unwrap();
        drop(a);
        while pipe.held() < 5 {
            let _ = pipe.fill(&near);
        }
        assert_eq!(pipe.drain(&far).unwrap(), 5);
        assert_eq!(pipe.held(), 0);
        let end = loop {
            match pipe.fill(&near) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                r => break r,
            }
        };
        assert_eq!(end.unwrap(), 0);
        shut(&far);
        let mut all = Vec::new();
        b.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"hello");
        abort(&far);
        drop(far);
    }
}
