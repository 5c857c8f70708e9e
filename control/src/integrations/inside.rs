//! What happens inside a container's namespaces: a TAP device is made and configured there, and its queue comes back.
//!
//! # Theory of operation
//!
//! Only a process of one thread may enter a user namespace, so a child does it, before this process has started any thread.
//! The queue of a TAP holds on to the network namespace that it was opened in. Where nothing else tells that the container has ended, it is
//! opened in a namespace of the child's own, and the device is moved to the container's: when that ends, the device goes, and the queue tells.
//! Moving takes the kernel 10 to 20 ms. Sockets that listen in the namespace keep it; then its process is watched, or the child stays and
//! watches the name ([`super::opener`]).

use super::opener::{self, Listen, Named, Opener};
use crate::interface::{self, Setup};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use vswitch_core::sys::{child, pidfd, scm, tun};
use vswitch_core::wire::MacAddr;

/// Longest text of a fault that comes from the child.
const TEXT: usize = 1024;

/// Where a container's network is.
#[derive(Debug)]
pub(crate) struct Place {
    /// User namespace to enter first; none where that isn't needed.
    user: Option<(File, PathBuf)>,
    net: (File, PathBuf),
    /// The process it was named by: readable once that has ended.
    process: Option<OwnedFd>,
}

/// The container's interface.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inside {
    pub(crate) name: String,
    /// Its queue doesn't keep the container's namespace.
    pub(crate) apart: bool,
    /// Loopback is brought up in any case.
    pub(crate) loopback: bool,
    /// Sockets that listen there, those of IPv6 only if there is that.
    pub(crate) listen: Vec<Listen>,
    /// The child stays, and others are opened later.
    pub(crate) stays: bool,
    /// How it is set up; where not at all the container does that.
    pub(crate) setup: Option<Configured>,
}

/// How an interface is set up, loopback too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configured {
    pub(crate) mtu: u32,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    pub(crate) gateways: Vec<IpAddr>,
    /// Gateways needn't be in a prefix of the addresses.
    pub(crate) onlink: bool,
    /// What the container's engine takes for its address, where that is another: one of the container's loopback.
    pub(crate) alias: Option<IpAddr>,
}

/// The queue of a device in a container.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) queue: OwnedFd,
    /// Sockets that listen there, and where.
    pub(crate) listeners: Vec<(OwnedFd, Listen)>,
    /// Where the child stays: it opens others.
    pub(crate) opener: Option<Opener>,
    /// Where the device doesn't go with the container: readable once the process has ended that the container was named by.
    pub(crate) process: Option<OwnedFd>,
}

/// What a child has made: the queue, whether that doesn't keep the namespace, the listeners that there are.
type Made = (OwnedFd, bool, Vec<Option<OwnedFd>>);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InsideError {
    /// There is no such process.
    #[error(
        "process {0} doesn't exist (any more): start the container first, and name a process of it"
    )]
    NoProcess(i32),
    /// A namespace can't be opened.
    #[error("opening namespace {}: {source}; {remedy}", path.display())]
    Open {
        path: PathBuf,
        source: io::Error,
        remedy: &'static str,
    },
    /// The child can't be made or heard.
    #[error("starting a process for the container's namespaces: {0}; raise the limit of processes")]
    Child(io::Error),
    /// What the child says.
    #[error("{0}")]
    There(String),
}

fn opened(path: PathBuf) -> Result<(File, PathBuf), InsideError> {
    match File::open(&path) {
        Ok(file) => Ok((file, path)),
        Err(source) => Err(InsideError::Open {
            remedy: match source.kind() {
                io::ErrorKind::NotFound => "name a namespace that exists",
                io::ErrorKind::PermissionDenied => "it has to be the user's own",
                _ => "check the path",
            },
            path,
            source,
        }),
    }
}

/// Whether it is the namespace that this process is in.
fn is_ours(file: &File, kind: &str) -> bool {
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    let own = std::fs::metadata(Path::new("/proc/self/ns").join(kind));
    let own = own.map(id).ok();
    own.is_some() && file.metadata().map(id).ok() == own
}

impl Place {
    /// That of a process, its user namespace included unless another is named.
    pub(crate) fn of_process(pid: i32, user: Option<PathBuf>) -> Result<Place, InsideError> {
        let ns = |kind: &str| PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        let process = pidfd::open(pid).map_err(|_| InsideError::NoProcess(pid))?;
        let place = Place::at(ns("net"), Some(user.unwrap_or_else(|| ns("user"))))?;
        Ok(Place {
            process: Some(process),
            ..place
        })
    }

    /// A network namespace by its path, and a user namespace to enter before.
    pub(crate) fn at(net: PathBuf, user: Option<PathBuf>) -> Result<Place, InsideError> {
        let user = user.map(opened).transpose()?;
        Ok(Place {
            user: user.filter(|(file, _)| !is_ours(file, "user")),
            net: opened(net)?,
            process: None,
        })
    }

    /// Makes a TAP device there. To be called before there are threads.
    pub(crate) fn tap(self, inside: &Inside) -> Result<Tap, InsideError> {
        let (ours, mut theirs) = UnixStream::pair().map_err(InsideError::Child)?;
        let mut ours = Some(ours);
        let pid = child::run(|| {
            // Who waits for the end of a stream mustn't hold it open.
            drop(ours.take());
            let told = match self.make(inside) {
                Ok((queue, apart, listeners)) => {
                    let first = scm::send(&theirs, &[u8::from(apart)], &[queue.as_fd()]);
                    let one = |l: &Option<OwnedFd>| {
                        let fds: Vec<_> = l.iter().map(AsFd::as_fd).collect();
                        scm::send(&theirs, &[0], &fds).map(drop)
                    };
                    let sent = first.and_then(|_| listeners.iter().try_for_each(one));
                    drop((queue, listeners));
                    match inside.stays {
                        true => sent.and_then(|()| opener::stay(theirs, self.named().as_ref())),
                        false => sent,
                    }
                }
                Err(text) => theirs.write_all(text.as_bytes()),
            };
            u8::from(told.is_err())
        });
        let pid = pid.map_err(InsideError::Child)?;
        let ours = ours.ok_or_else(|| InsideError::Child(io::ErrorKind::BrokenPipe.into()))?;
        let mut text = [0; TEXT];
        let heard = scm::recv(&ours, &mut text);
        let mut listeners = Vec::new();
        for at in &inside.listen {
            if let Ok((_, mut fds)) = scm::recv(&ours, &mut [0])
                && let Some(fd) = fds.pop()
            {
                listeners.push((fd, *at));
            }
        }
        let (n, mut fds) = heard.map_err(InsideError::Child)?;
        let queue = fds.pop();
        let stays = inside.stays && queue.is_some();
        if !stays {
            // It is done by now, whatever it did.
            let _ = waitpid(pid, None);
        }
        match queue {
            Some(queue) => Ok(Tap {
                queue,
                listeners,
                opener: match stays {
                    true => Some(Opener::new(ours).map_err(InsideError::Child)?),
                    false => None,
                },
                process: self.process.filter(|_| stays || text.first() != Some(&1)),
            }),
            None if n > 0 => Err(InsideError::There(
                String::from_utf8_lossy(text.get(..n).unwrap_or_default()).into_owned(),
            )),
            None => Err(InsideError::Child(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The name that the namespace is known by, where it isn't known by a process.
    fn named(&self) -> Option<Named> {
        let (file, path) = &self.net;
        let m = file.metadata().ok().filter(|_| self.process.is_none())?;
        Some((std::path::absolute(path).ok()?, (m.dev(), m.ino())))
    }

    /// In the child: enters, makes, configures.
    fn make(&self, inside: &Inside) -> Result<Made, String> {
        tun::check_name(&inside.name).map_err(|e| e.to_string())?;
        let enter = |(file, path): &(File, PathBuf), kind: CloneFlags| {
            let remedy = "run it as the user whose container this is";
            setns(file, kind).map_err(|e| {
                format!(
                    "entering namespace {}: {}; {remedy}",
                    path.display(),
                    e.desc()
                )
            })
        };
        if let Some(user) = &self.user {
            enter(user, CloneFlags::CLONE_NEWUSER)?;
        }
        enter(&self.net, CloneFlags::CLONE_NEWNET)?;
        // The container, or who has started it, may have made the device: then it is taken up.
        let is_there = nix::net::if_::if_nametoindex(inside.name.as_str()).is_ok();
        let apart = inside.apart && !is_there;
        let apart = apart && unshare(CloneFlags::CLONE_NEWNET).is_ok();
        let queue = if apart {
            let queue = tun::open_tap("", false).map_err(|e| e.to_string())?;
            let made = tun::tap_info(&queue).map_err(|e| e.to_string())?.name;
            let target = self.net.0.as_fd();
            interface::hand_over(&made, target, &inside.name)
                .map_err(|e| format!("{e}; choose another name"))?;
            enter(&self.net, CloneFlags::CLONE_NEWNET)?;
            queue
        } else {
            tun::open_tap(&inside.name, false).map_err(|e| e.to_string())?
        };
        if inside.loopback || inside.setup.is_some() {
            interface::loopback_up().map_err(|e| e.to_string())?;
        }
        if let Some(c) = &inside.setup {
            let setup = Setup {
                name: &inside.name,
                mtu: c.mtu,
                mac: c.mac,
                addresses: &c.addresses,
                gateways: &c.gateways,
                onlink: c.onlink,
            };
            interface::configure(&setup).map_err(|e| format!("{e}; check addresses and MTU"))?;
            if let Some(alias) = c.alias {
                interface::loopback_alias(alias).map_err(|e| e.to_string())?;
            }
        }
        let open = |wanted: &Listen| match wanted.open() {
            Ok(fd) => Ok(Some(fd)),
            Err(_) if wanted.at.is_ipv6() => Ok(None),
            Err(e) => Err(format!(
                "listening on {} in the container: {e}; name another port, or end who has it there",
                wanted.at
            )),
        };
        let listeners = inside.listen.iter().map(open).collect::<Result<_, _>>()?;
        Ok((queue, apart, listeners))
    }
}
