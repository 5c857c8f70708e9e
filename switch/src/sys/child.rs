//! Processes split in two (fork(2)), for what only a process of one thread may do: enter a user namespace, go to the background.

use nix::errno::Errno;
use nix::unistd::Pid;
use std::io;

/// Threads of this process.
fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Runs `f` in a child process, which ends with the code it returns; the child's number. Errors: EDEADLK when this process has more
/// than one thread, whose locks the child would inherit; as fork(2).
pub fn run(f: impl FnOnce() -> u8) -> io::Result<Pid> {
    if threads()? != 1 {
        return Err(Errno::EDEADLK.into());
    }
    // SAFETY: with a single thread no lock is held by another one, so the child may do whatever its parent may.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok(Pid::from_raw(pid));
    }
    // What the parent has buffered or registered to be done at exit isn't the child's to do, also when it panics.
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(101);
    // SAFETY: ends this process at once.
    unsafe { libc::_exit(code.into()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_of_several_threads_is_not_split() {
        // The test itself is a thread beside the main one.
        let refused = super::run(|| 0).map_err(|e| e.raw_os_error());
        assert_eq!(refused, Err(Some(libc::EDEADLK)));
    }
}
