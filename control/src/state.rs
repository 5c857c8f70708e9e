//! The saved state: what was configured, as JSON, so that a restart restores it.
//!
//! Written beside and renamed, with both the file and its directory synced, so that a crash leaves the old or the new, never
//! half. Mode 0600: it tells who may talk to whom.

use crate::lockfile::{LockError, LockFile};
use crate::model::Topology;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It can't be read.
    #[error("reading state {}: {source}; correct it, or move it away to begin anew", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It isn't a state of ours.
    #[error("reading state {}: {reason}; correct it, or move it away to begin anew", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another daemon's.
    #[error("opening state {}: another vswitchd keeps its state there; stop it, or choose another file with --state", .0.display())]
    Taken(PathBuf),
    /// It can't be written.
    #[error("writing state {}: {source}; make its directory writable, or run with --no-state", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Version of the file's format.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: u32,
    topology: Topology,
}

/// Keeps other daemons out of a state file as long as it lives.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: LockFile,
}

/// Where state is kept.
#[derive(Clone, Debug)]
pub(crate) struct StateFile(pub(crate) PathBuf);

impl StateFile {
    /// Takes the file for this daemon: two would make each other's ports and overwrite each other's changes. A directory that
    /// can't be written is told when there is something to save.
    pub(crate) fn claim(&self) -> Result<Option<StateLock>, StateError> {
        if make_directory(&self.0).is_err() {
            return Ok(None);
        }
        match LockFile::take(&self.0) {
            Ok(file) => Ok(Some(StateLock { _file: file })),
            Err(LockError::Taken) => Err(StateError::Taken(self.0.clone())),
            Err(LockError::Open(_)) => Ok(None),
        }
    }

    /// What was saved; nothing if there is no file yet.
    pub(crate) fn load(&self) -> Result<Topology, StateError> {
        let path = self.0.clone();
        let text = match fs::read(&self.0) {
            Ok(t) => t,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Topology::default()),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        let bad = |reason: String| StateError::Parse {
            path: path.clone(),
            reason,
        };
        let saved: Saved = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if saved.format != FORMAT {
            return Err(bad(format!("format {} instead of {FORMAT}", saved.format)));
        }
        saved
            .topology
            .check()
            .map_err(|p| bad(format!("`{}`: {}", p.path.join("."), p.reason)))?;
        Ok(saved.topology)
    }

    /// Saves.
    pub(crate) fn save(&self, topology: &Topology) -> Result<(), StateError> {
        self.write(topology).map_err(|source| StateError::Write {
            path: self.0.clone(),
            source,
        })
    }

    fn write(&self, topology: &Topology) -> io::Result<()> {
        let saved = Saved {
            format: FORMAT,
            topology: topology.clone(),
        };
        write_private(&self.0, &saved)
    }
}

/// The directory of a file, made if it isn't there.
fn make_directory(path: &Path) -> io::Result<&Path> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
    }
    Ok(dir)
}

/// Writes a file of JSON beside and renames it; see the module's head.
pub(crate) fn write_private(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let dir = make_directory(path)?;
    let mut beside = path.to_owned().into_os_string();
    beside.push(".new");
    // One that a crash left behind may have another mode.
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn saved_and_loaded_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile(dir.path().join("sub/state.json"));
        assert_eq!(file.load().unwrap(), Topology::default());
        let mut t = Topology::default();
        t.networks
            .insert("lan".into(), crate::model::Network::default());
        t.ports.insert("a".into(), crate::model::Port::new("lan"));
        file.save(&t).unwrap();
        assert_eq!(file.load().unwrap(), t);
        let mode = fs::metadata(&file.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let lock = file.claim().unwrap();
        assert!(lock.is_some());
        assert!(matches!(file.claim(), Err(StateError::Taken(_))));
        drop(lock);
        assert!(file.claim().unwrap().is_some());
        fs::write(&file.0, "{\"format\":9").unwrap();
        assert!(matches!(file.load(), Err(StateError::Parse { .. })));
    }
}
