//! Lock files: who holds one has what stands beside it alone, and the file goes with its holder.
//!
//! The lock is flock(2)'s, so it ends with the process however that ends. A holder that ends in order removes the file before it lets go.
//! Who had opened it before has the lock of a file that nobody else will find then: so a lock counts only if the file is still
//! the one of that name, else it is tried anew. Files are removed by their directory's descriptor: a process that has given
//! up its file system since can do that too, if it may remove files there.

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Tries, each of which another holder has ended.
const TRIES: usize = 100;

/// Why there is no lock.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another has it.
    Taken,
    /// It can't be opened.
    Open(io::Error),
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct LockFile {
    directory: OwnedFd,
    name: OsString,
    _lock: Flock<File>,
}

impl Drop for LockFile {
    fn drop(&mut self) {
        self.remove_beside(&self.name);
    }
}

/// The lock file of a file: its name with `.lock` behind it.
pub(crate) fn path_of(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

impl LockFile {
    /// Takes the lock of a file.
    pub(crate) fn take(file: &Path) -> Result<LockFile, LockError> {
        let path = path_of(file);
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let directory = File::open(directory).map_err(LockError::Open)?.into();
        for _ in 0..TRIES {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let opened = options.open(&path).map_err(LockError::Open)?;
            let Ok(lock) = Flock::lock(opened, FlockArg::LockExclusiveNonblock) else {
                return Err(LockError::Taken);
            };
            let id = |m: fs::Metadata| (m.dev(), m.ino());
            let ours = lock.metadata().map(id).map_err(LockError::Open)?;
            if fs::symlink_metadata(&path).map(id).ok() == Some(ours) {
                let name = path.file_name().unwrap_or_default().to_owned();
                return Ok(LockFile {
                    directory,
                    name,
                    _lock: lock,
                });
            }
        }
        Err(LockError::Taken)
    }

    /// Removes a file of the lock's directory.
    pub(crate) fn remove_beside(&self, name: &OsStr) {
        let _ = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn one_holds_it_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("it");
        let lock = LockFile::take(&file).unwrap();
        assert!(matches!(LockFile::take(&file), Err(LockError::Taken)));
        drop(lock);
        assert!(!path_of(&file).exists());
        // Of many who take and let go never two have it.
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    while taken.load(SeqCst) < 500 {
                        if let Ok(lock) = LockFile::take(&file) {
                            assert_eq!(inside.fetch_add(1, SeqCst), 0);
                            taken.fetch_add(1, SeqCst);
                            inside.fetch_sub(1, SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(!path_of(&file).exists());
        let nowhere = dir.path().join("no/it");
        assert!(matches!(LockFile::take(&nowhere), Err(LockError::Open(_))));
    }
}
