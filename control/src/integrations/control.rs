//! A control socket for the switch of one container, where the user asks for it.
//!
//! # Theory of operation
//!
//! Engines start a drop-in with arguments of their own, so it is asked for by the variable `VSWITCH_CONTROL`, or by `control` in the
//! user's `attach.toml`: `auto`, a directory, or the path of a socket ([`wished`]). In a directory each process has a name of its own,
//! `pasta-NAME-PID.sock`; those that killed ones have left are removed by the next one. The socket is bound before files are given up, and served
//! by the thread that follows the host: the API of `vswitchd`, for the same users ([`crate::server`]). What takes rights that the
//! process has given up is refused by the kernel. A container at the user's `vswitchd` has that one's socket.
//!
//! The API is large, and a process per container shouldn't be. So the drop-ins don't have it in their programs: where it is asked for,
//! they become the `vswitchd` that stands beside them ([`become_server`]), which is the same program under their name ([`Serve`]).

use super::attach::{AttachError, users_file};
use crate::api::Shared;
use crate::events::Intake;
use crate::lockfile::{self, LockFile};
use crate::server::{self, Door, ServerError, Socket};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;

/// The variable.
const VARIABLE: &str = "VSWITCH_CONTROL";
/// The program that has the API.
const SERVER: &str = "vswitchd";
/// Longest part of a socket's name that is the container's: paths of sockets have 107 bytes.
const NAME: usize = 32;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Where it is asked for.
    #[error(transparent)]
    File(#[from] AttachError),
    /// What is asked for.
    #[error(
        "{VARIABLE} `{0}`: it isn't the path of a socket or a directory from the root on; write it like /run/user/1000/vswitch/, or auto or none"
    )]
    Variable(String),
    /// There is no place by itself.
    #[error(
        "{VARIABLE} `auto`: XDG_RUNTIME_DIR isn't set; name a directory that is yours alone instead"
    )]
    NoPlace,
    /// Another has it.
    #[error("listening on {}: another switch has it; have {VARIABLE} name a directory, in which each has a socket of its own", .0.display())]
    Taken(PathBuf),
    /// The socket.
    #[error(transparent)]
    Socket(ServerError),
    /// The program that has the API.
    #[error("starting `vswitchd`, which serves the control socket that {VARIABLE} or attach.toml asks for: {source}; put it beside {}, or into PATH", own.display())]
    Server { own: PathBuf, source: io::Error },
}

/// Serves the API.
pub(crate) type Serve = fn(Door, Intake, Shared) -> Pin<Box<dyn Future<Output = ()>>>;

/// A socket that is bound, and what serves it.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) socket: Socket,
    pub(super) serve: Serve,
}

/// A socket that is asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    serve: Serve,
    path: PathBuf,
    /// What its name begins with, if that is a directory.
    stem: Option<String>,
}

/// The directory of those that are asked for by `auto`.
pub(crate) fn directory() -> Option<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
    match own {
        Some(dir) => Some(PathBuf::from(dir).join("vswitch")),
        None if nix::unistd::geteuid().is_root() => Some("/run/vswitch".into()),
        None => None,
    }
}

/// What is asked for, as it is written.
fn asked() -> Result<Option<OsString>, ControlError> {
    let variable = std::env::var_os(VARIABLE).filter(|v| !v.is_empty());
    let text = match variable {
        Some(text) => Some(text),
        None => users_file()?.and_then(|f| f.control).map(OsString::from),
    };
    Ok(text.filter(|t| t != "none"))
}

/// Becomes the program that has the API, where that is asked for and this one hasn't.
pub(super) fn become_server(program: &str, serve: Option<Serve>) -> Result<(), ControlError> {
    if serve.is_some() || asked()?.is_none() {
        return Ok(());
    }
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.with_file_name(SERVER);
    let server = match beside.exists() {
        true => beside,
        false => SERVER.into(),
    };
    let arguments = std::env::args_os().skip(1);
    let source = Command::new(&server).arg0(program).args(arguments).exec();
    Err(ControlError::Server { own, source })
}

/// What is asked for; `container` is the name that the engine has given.
pub(super) fn wished(
    program: &str,
    container: Option<&str>,
    serve: Option<Serve>,
) -> Result<Option<Wanted>, ControlError> {
    let (Some(text), Some(serve)) = (asked()?, serve) else {
        return Ok(None);
    };
    if text == "auto" {
        let path = directory().ok_or(ControlError::NoPlace)?;
        let stem = Some(stem(program, container));
        return Ok(Some(Wanted { serve, path, stem }));
    }
    let path = PathBuf::from(&text);
    if !path.is_absolute() {
        let text = text.to_string_lossy().into_owned();
        return Err(ControlError::Variable(text));
    }
    let many = text.to_string_lossy().ends_with('/') || path.is_dir();
    Ok(Some(Wanted {
        serve,
        path,
        stem: many.then(|| stem(program, container)),
    }))
}

fn stem(program: &str, container: Option<&str>) -> String {
    let sound = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let name = container.filter(|n| !n.is_empty() && n.len() <= NAME && n.chars().all(sound));
    name.map_or(program.to_owned(), |n| format!("{program}-{n}"))
}

impl Wanted {
    /// Binds it, for this process.
    pub(crate) fn bind(&self) -> Result<Control, ControlError> {
        let path = match &self.stem {
            None => self.path.clone(),
            Some(stem) => {
                // The user's own; that it can't be made is told by binding.
                let _ = std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.path);
                sweep(&self.path);
                let name = format!("{stem}-{}.sock", std::process::id());
                self.path.join(name)
            }
        };
        let bound = Socket::bind(&path, None).map_err(|e| match e {
            ServerError::Taken(path) => ControlError::Taken(path),
            ServerError::Listen {
                thing, act, source, ..
            } => ControlError::Socket(ServerError::Listen {
                thing,
                act,
                source,
                option: VARIABLE,
            }),
            e => ControlError::Socket(e),
        });
        Ok(Control {
            socket: bound?,
            serve: self.serve,
        })
    }
}

/// Whether it is the name of a socket of ours with a process's number.
fn is_numbered(name: &str) -> bool {
    let stem = name.strip_suffix(".sock");
    let ours = |s: &&str| s.starts_with("pasta-") || s.starts_with("slirp4netns-");
    let number = stem.filter(ours).and_then(|s| s.rsplit('-').next());
    number.is_some_and(|n| n.parse::<u32>().is_ok())
}

/// Removes what processes have left that were killed: their locks are free.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        // A lock that was never there would be made.
        if is_numbered(&name.to_string_lossy())
            && lockfile::path_of(&entry.path()).exists()
            && let Ok(lock) = LockFile::take(&entry.path())
        {
            lock.remove_beside(&name);
        }
    }
}

/// Serves the API until the future is dropped.
pub(super) fn serve(
    door: Door,
    intake: Intake,
    plane: Shared,
) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(serve_all(door, intake, plane))
}

async fn serve_all(door: Door, mut intake: Intake, plane: Shared) {
    let noticing = plane.clone();
    let notice = async move {
        while let Some((event, lost)) = intake.next().await {
            crate::api::lock(&noticing).notice(&event, lost);
        }
    };
    let served = async move {
        let served: io::Result<()> = server::serve(door, plane).await;
        if let Err(e) = served {
            tracing::error!("serving the control socket: {e}");
        }
    };
    tokio::join!(notice, served);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers_are_part_of_a_socket_s() {
        assert_eq!(stem("pasta", Some("web-1")), "pasta-web-1");
        assert_eq!(stem("pasta", Some("../web")), "pasta");
        assert_eq!(stem("pasta", None), "pasta");
        assert!(is_numbered("pasta-web-1-42.sock") && is_numbered("slirp4netns-7.sock"));
        assert!(!is_numbered("vswitch.sock") && !is_numbered("pasta-web.sock"));
    }

    #[test]
    fn what_was_left_behind_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            serve,
            path: dir.path().to_owned(),
            stem: Some("pasta".into()),
        };
        let left = dir.path().join("pasta-1.sock");
        drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
        std::fs::write(lockfile::path_of(&left), "").unwrap();
        let socket = wanted.bind().unwrap();
        assert!(!left.exists() && !lockfile::path_of(&left).exists());
        assert!(matches!(wanted.bind(), Err(ControlError::Taken(_))));
        drop(socket);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
