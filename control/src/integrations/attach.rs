//! Containers of a user at that user's one switch, instead of a switch each.
//!
//! # Theory of operation
//!
//! `VSWITCH_ATTACH`, or the file `vswitch/attach.toml` of the user's configuration, names a network of a `vswitchd` that runs already
//! ([`Wish`]). A connection to that daemon ([`Session`]) asks for a place, hands over the queue of the container's TAP, and says what is
//! published; the daemon takes all of it away when the connection ends. This process forwards nothing then: it waits for the end of the
//! container, and if the daemon ends first, it hands the queue over to the next one, so that a restart is an outage and no more. It ends with a word of
//! why where somebody deletes the container's port.

use super::single::{Awaited, Ended, Ends, Other, SingleError, await_end};
use crate::config;
use crate::handover::{Line, Said, path_beside};
use crate::model::PublishedPort;
use crate::plane::{Begin, Given};
use crate::refusal::Refusal;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vswitch_core::sys::scm;

/// The variable.
const VARIABLE: &str = "VSWITCH_ATTACH";
/// The daemon answers within this time.
const ANSWER: Duration = Duration::from_secs(20);
/// A container of the same name may be about to end for so long.
const ENDING: Duration = Duration::from_secs(5);
/// How often a daemon that has ended is looked for, and the container's device looked at, in milliseconds: that it is gone wakes only who
/// would be woken by each of its frames.
const AGAIN: u16 = 1000;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The variable.
    #[error(
        "VSWITCH_ATTACH `{text}`: {reason}; write it like containers,name=web,label=frontend,socket=PATH,fallback, or none"
    )]
    Variable { text: String, reason: String },
    /// The file.
    #[error("reading {}: {reason}; it has network, and by choice socket, labels and fallback, or control alone", path.display())]
    File { path: PathBuf, reason: String },
    /// Nobody is there.
    #[error("attaching to vswitchd at {}: {source}; start it with `vswitchd run`, or name its socket in VSWITCH_ATTACH with socket=PATH, or add `fallback` for a switch of the container's own", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    /// The daemon's answer.
    #[error("{0}")]
    Refused(Refusal),
    /// The container's name is another's.
    #[error("{0}")]
    Taken(Refusal),
    /// The answer can't be read.
    #[error("attaching to vswitchd at {}: reading its answer: {reason}; is it of the same version?", path.display())]
    Broken { path: PathBuf, reason: String },
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Network of the daemon.
    network: String,
    /// Its control socket.
    socket: Option<PathBuf>,
    /// Name of the port, and in DNS.
    name: Option<String>,
    /// Labels of the port.
    labels: Vec<String>,
    /// Where there is no daemon, the container has a switch of its own.
    fallback: bool,
}

/// The user's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UsersFile {
    network: Option<String>,
    socket: Option<PathBuf>,
    labels: Vec<String>,
    fallback: bool,
    /// Where a switch of the container's own is controlled ([`super::control`]).
    pub(super) control: Option<String>,
}

impl UsersFile {
    /// What it asks for of the user's switch.
    fn wish(self) -> Result<Option<Wish>, String> {
        let about_it = self.socket.is_some() || self.fallback || !self.labels.is_empty();
        match self.network {
            Some(network) => Ok(Some(Wish {
                network,
                socket: self.socket,
                name: None,
                labels: self.labels,
                fallback: self.fallback,
            })),
            None if about_it || self.control.is_none() => Err("network is missing".into()),
            None => Ok(None),
        }
    }
}

/// Reads the user's file, if there is one.
pub(super) fn users_file() -> Result<Option<UsersFile>, AttachError> {
    let Some(path) = file() else {
        return Ok(None);
    };
    let fault = |reason: String| AttachError::File {
        path: path.clone(),
        reason,
    };
    match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fault(e.to_string())),
        Ok(text) => toml::from_str(&text)
            .map(Some)
            .map_err(|e| fault(e.to_string().trim().replace('\n', " "))),
    }
}

impl Wish {
    /// As the environment or the user's file have it.
    pub(crate) fn read() -> Result<Option<Wish>, AttachError> {
        if let Some(text) = std::env::var_os(VARIABLE).filter(|t| !t.is_empty()) {
            let text = text.to_string_lossy();
            return Wish::of_variable(&text).map_err(|reason| AttachError::Variable {
                text: text.into_owned(),
                reason,
            });
        }
        let wish = users_file()?.map(UsersFile::wish).transpose();
        wish.map(Option::flatten)
            .map_err(|reason| AttachError::File {
                path: file().unwrap_or_default(),
                reason,
            })
    }

    fn of_variable(text: &str) -> Result<Option<Wish>, String> {
        if text == "none" {
            return Ok(None);
        }
        let mut parts = text.split(',');
        let mut wish = Wish {
            network: parts.next().unwrap_or_default().to_owned(),
            ..Wish::default()
        };
        if wish.network.is_empty() || wish.network.contains('=') {
            return Err("it doesn't begin with the name of a network".into());
        }
        for part in parts {
            match part.split_once('=') {
                Some(("socket", path)) => wish.socket = Some(path.into()),
                Some(("name", name)) => wish.name = Some(name.to_owned()),
                Some(("label", label)) => wish.labels.push(label.to_owned()),
                None if part == "fallback" => wish.fallback = true,
                _ => {
                    return Err(format!(
                        "`{part}` isn't one of name=, label=, socket=, fallback"
                    ));
                }
            }
        }
        Ok(Some(wish))
    }

    /// The control socket. Within a user namespace a user looks like root, but has a runtime directory.
    fn socket(&self) -> PathBuf {
        let given = self.socket.clone();
        let given = given.or_else(|| std::env::var_os("VSWITCH_SOCKET").map(PathBuf::from));
        let socket = given.unwrap_or_else(|| {
            let run = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty());
            let own = run.map(|d| PathBuf::from(d).join("vswitch.sock"));
            own.filter(|p| p.exists())
                .unwrap_or_else(config::default_socket)
        });
        // It is looked for from another directory later.
        std::path::absolute(&socket).unwrap_or(socket)
    }

    /// What the port is called: as asked for, as who has started this names the container, or by its process.
    pub(crate) fn name(&self, pid: Option<i32>, path: Option<&str>) -> String {
        let tail = path.and_then(|p| p.rsplit('/').next()).map(str::to_owned);
        let by_process = || pid.map(|p| format!("pid{p}")).or(tail);
        let name = self.name.clone().or_else(named_by_parent);
        name.or_else(by_process)
            .unwrap_or_else(|| "container".to_owned())
    }

    pub(crate) fn begin(&self, program: &str, name: String, mtu: u32) -> Begin {
        let mut labels = vec![program.to_owned()];
        labels.extend(self.labels.iter().cloned());
        Begin {
            network: self.network.clone(),
            name,
            labels,
            mtu,
            netns: None,
            namespace: None,
            mac: None,
            addresses: Vec::new(),
            avoid: Vec::new(),
            families: (true, true),
        }
    }
}

/// The user's file.
fn file() -> Option<PathBuf> {
    let dir = std::env::var_os("XDG_CONFIG_HOME").filter(|d| !d.is_empty());
    let home = || std::env::var_os("HOME").map(|h| Path::new(&h).join(".config"));
    let dir = dir.map(PathBuf::from).or_else(home)?;
    Some(dir.join("vswitch/attach.toml"))
}

/// The container's name, if who has started this process tells it.
pub(super) fn named_by_parent() -> Option<String> {
    let parent = format!("/proc/{}/cmdline", nix::unistd::getppid());
    let parent = std::fs::read(parent).unwrap_or_default();
    let words: Vec<&[u8]> = parent.split(|b| *b == 0).collect();
    let words: Vec<_> = words.iter().map(|w| String::from_utf8_lossy(w)).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    named_by_podman(&words).map(str::to_owned)
}

/// The container's name in a command line of podman's, which tells it no other way.
fn named_by_podman<'a>(words: &[&'a str]) -> Option<&'a str> {
    let (program, rest) = words.split_first()?;
    if program.rsplit('/').next() != Some("podman") {
        return None;
    }
    let mut rest = rest.iter().copied().filter(|w| !w.is_empty());
    let mut last = None;
    let mut starts = false;
    while let Some(word) = rest.next() {
        if word == "--name" {
            return rest.next();
        }
        if let Some(name) = word.strip_prefix("--name=") {
            return Some(name);
        }
        // `podman start NAME`, and no other container.
        match (word, starts) {
            ("start" | "restart", false) => starts = true,
            (_, true) if !word.starts_with('-') => last = Some(word),
            _ => {}
        }
    }
    last
}

/// A container's place at the switch.
#[derive(Debug)]
pub(crate) struct Session {
    socket: PathBuf,
    begin: Begin,
    pub(crate) given: Given,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stream: Option<BufReader<UnixStream>>,
    publish: BTreeMap<String, PublishedPort>,
}

impl Session {
    /// Asks for a place; none where there is no daemon and that is agreed to.
    pub(crate) fn begin(wish: &Wish, mut begin: Begin) -> Result<Option<Session>, AttachError> {
        let socket = wish.socket();
        let end = Instant::now() + ENDING;
        loop {
            match place(&socket, &begin) {
                Ok((stream, given)) => {
                    // Those and no others, should the daemon be started anew.
                    begin.addresses = given.addresses.iter().map(|c| c.0.0).collect();
                    let inner = Inner {
                        stream: Some(stream),
                        ..Inner::default()
                    };
                    return Ok(Some(Session {
                        socket,
                        begin,
                        given,
                        inner: Mutex::new(inner),
                    }));
                }
                Err(e @ AttachError::Unreachable { .. }) if wish.fallback => {
                    tracing::warn!("{e}: the container has a switch of its own");
                    return Ok(None);
                }
                Err(AttachError::Taken(_)) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The daemon's control socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over the queue of the container's TAP.
    pub(crate) fn attach(&self, queue: &OwnedFd) -> Result<(), AttachError> {
        self.attach_with(&mut self.inner(), queue)
    }

    fn attach_with(&self, inner: &mut Inner, queue: &OwnedFd) -> Result<(), AttachError> {
        self.ask(inner, &Line::Queue(true), Some(queue))?;
        if inner.publish.is_empty() {
            return Ok(());
        }
        let publish = Line::Publish(inner.publish.clone());
        self.ask(inner, &publish, None)
    }

    /// Changes what is published, or leaves it.
    pub(crate) fn change(
        &self,
        f: impl FnOnce(&mut BTreeMap<String, PublishedPort>),
    ) -> Result<(), AttachError> {
        let mut inner = self.inner();
        let mut publish = inner.publish.clone();
        f(&mut publish);
        self.ask(&mut inner, &Line::Publish(publish.clone()), None)?;
        inner.publish = publish;
        Ok(())
    }

    fn ask(
        &self,
        inner: &mut Inner,
        line: &Line,
        queue: Option<&OwnedFd>,
    ) -> Result<(), AttachError> {
        let Some(stream) = &mut inner.stream else {
            return Err(AttachError::Unreachable {
                path: self.socket.clone(),
                source: io::ErrorKind::NotConnected.into(),
            });
        };
        match say(&self.socket, stream, line, queue)? {
            Said::Done(_) => Ok(()),
            Said::Error(refusal) | Said::Taken(refusal) => Err(AttachError::Refused(refusal)),
            Said::Given(_) => Err(AttachError::Broken {
                path: self.socket.clone(),
                reason: "it gives a place again".into(),
            }),
        }
    }

    /// Says if what the engine has the container ask for names isn't DNS there.
    pub(crate) fn mind_resolver(&self, resolver: IpAddr) {
        if !self.given.dns.contains(&resolver) {
            let network = &self.begin.network;
            tracing::warn!(
                "the container asks {resolver} for names, and the gateway of network `{network}` serves no DNS there: add it with \
                 `vswitchctl gateway set {network} --addresses ...,{resolver}/32 --dns on --dns-at {resolver}`"
            );
        }
    }

    /// Waits for the end of the container, and finds the daemon again meanwhile if it ends.
    pub(crate) fn wait(
        &self,
        ends: &Ends,
        other: Option<Other<'_>>,
        queue: &OwnedFd,
    ) -> Result<Ended, SingleError> {
        loop {
            let stream = self
                .inner()
                .stream
                .as_ref()
                .map(|s| s.get_ref().try_clone());
            let stream = stream.and_then(Result::ok);
            // An answer in between belongs to who has asked, under the lock.
            let watched = stream.as_ref().map(AsFd::as_fd);
            match await_end(ends, other, queue.as_fd(), watched, AGAIN)? {
                Awaited::Ended(ended) => return Ok(ended),
                Awaited::Nothing if stream.is_some() => continue,
                Awaited::Nothing | Awaited::PeerGone => {}
            }
            let mut inner = self.inner();
            // What a daemon says unasked is why it ends this; one that ends itself says nothing.
            if let Some(refusal) = inner.stream.as_mut().and_then(last_word) {
                return Err(refusal.into());
            }
            if inner.stream.is_some() {
                tracing::warn!("vswitchd has ended: the container waits for the next one");
                inner.stream = None;
            }
            match place(&self.socket, &self.begin) {
                Ok((stream, given)) if given.addresses == self.given.addresses => {
                    inner.stream = Some(stream);
                    match self.attach_with(&mut inner, queue) {
                        Ok(()) => tracing::warn!("the container is attached again"),
                        Err(e) => {
                            tracing::warn!("{e}");
                            inner.stream = None;
                        }
                    }
                }
                Ok(_) => tracing::warn!("the container's prefix isn't the gateway's any more"),
                Err(e) => tracing::debug!("{e}"),
            }
        }
    }
}

/// What publishes ports: a switch of the container's own, or the user's.
#[derive(Clone, Debug)]
pub(crate) enum Publisher {
    Own(crate::api::Shared),
    Users(Arc<Session>),
}

impl Publisher {
    /// The container's IPv4 address at the user's switch.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        let Publisher::Users(session) = self else {
            return None;
        };
        let mut addresses = session.given.addresses.iter();
        addresses.find_map(|c| match c.0.0 {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
    }

    /// Has other ports be published, or leaves all as it is; the fault is told in words.
    pub(crate) fn change(
        &self,
        f: impl FnOnce(&mut BTreeMap<String, PublishedPort>),
    ) -> Result<(), String> {
        match self {
            Publisher::Own(plane) => {
                let mut plane = crate::api::lock(plane);
                let mut wanted = plane.desired().clone();
                f(&mut wanted.publish);
                plane.apply(wanted).map(drop).map_err(|e| e.to_string())
            }
            Publisher::Users(session) => session.change(f).map_err(|e| e.to_string()),
        }
    }
}

/// Publishes a port under a name that tells which it is, and says that name.
pub(super) fn add_named(all: &mut BTreeMap<String, PublishedPort>, port: PublishedPort) -> String {
    let protocol = format!("{:?}", port.protocol).to_lowercase();
    let name = format!("{protocol}:{}", port.ports);
    // At several addresses it is published several times.
    let further = (2..).map(|n| format!("{name}-{n}"));
    let mut names = std::iter::once(name.clone()).chain(further);
    let name = names.find(|n| !all.contains_key(n)).unwrap_or(name);
    all.insert(name.clone(), port);
    name
}

/// Asks a daemon for a place.
fn place(socket: &Path, begin: &Begin) -> Result<(BufReader<UnixStream>, Given), AttachError> {
    let unreachable = |source| AttachError::Unreachable {
        path: socket.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path_beside(socket)).map_err(unreachable)?;
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&stream, Some(ANSWER)).map_err(unreachable)?;
    }
    let mut stream = BufReader::new(stream);
    match say(socket, &mut stream, &Line::Attach(begin.clone()), None)? {
        Said::Given(given) => Ok((stream, given)),
        Said::Error(refusal) => Err(AttachError::Refused(refusal)),
        Said::Taken(refusal) => Err(AttachError::Taken(refusal)),
        Said::Done(_) => Err(AttachError::Broken {
            path: socket.to_owned(),
            reason: "it gives no place".into(),
        }),
    }
}

/// What the daemon has said before it ended the connection.
fn last_word(stream: &mut BufReader<UnixStream>) -> Option<Refusal> {
    stream.get_ref().set_nonblocking(true).ok()?;
    let mut answer = String::new();
    stream.read_line(&mut answer).ok()?;
    match serde_json::from_str(&answer) {
        Ok(Said::Error(refusal)) => Some(refusal),
        _ => None,
    }
}

fn say(
    socket: &Path,
    stream: &mut BufReader<UnixStream>,
    line: &Line,
    queue: Option<&OwnedFd>,
) -> Result<Said, AttachError> {
    let broken = |reason: String| AttachError::Broken {
        path: socket.to_owned(),
        reason,
    };
    let mut text = serde_json::to_vec(line).map_err(|e| broken(e.to_string()))?;
    text.push(b'\n');
    let fds: Vec<_> = queue.iter().map(|q| q.as_fd()).collect();
    let sent = match fds.is_empty() {
        true => Ok(0),
        false => scm::send(stream.get_ref(), &text, &fds),
    };
    let sent = sent.map_err(|e| broken(e.to_string()))?;
    let rest = text.get(sent..).unwrap_or_default();
    stream
        .get_mut()
        .write_all(rest)
        .map_err(|e| broken(e.to_string()))?;
    let mut answer = String::new();
    stream
        .read_line(&mut answer)
        .map_err(|e| broken(e.to_string()))?;
    serde_json::from_str(&answer).map_err(|e| broken(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read() {
        let w = Wish::of_variable("lan,name=web,label=a,label=b,socket=/s,fallback").unwrap();
        let w = w.unwrap();
        assert_eq!(
            (w.network.as_str(), w.name.as_deref()),
            ("lan", Some("web"))
        );
        assert_eq!((w.labels.len(), w.fallback), (2, true));
        assert_eq!(w.socket(), Path::new("/s"));
        assert_eq!(Wish::of_variable("none"), Ok(None));
        assert!(
            Wish::of_variable("lan,nam=web")
                .unwrap_err()
                .contains("nam=web")
        );
        assert!(
            Wish::of_variable("name=web")
                .unwrap_err()
                .contains("network")
        );
        let file = |text| toml::from_str::<UsersFile>(text).map(UsersFile::wish);
        let w = file("network = \"lan\"\nlabels = [\"a\"]").unwrap();
        let w = w.unwrap().unwrap();
        assert_eq!((w.network.as_str(), w.fallback), ("lan", false));
        assert!(file("netwrk = \"lan\"").is_err());
        assert_eq!(file("control = \"auto\""), Ok(Ok(None)));
        for text in ["", "control = \"auto\"\nfallback = true"] {
            assert!(file(text).unwrap().unwrap_err().contains("network"));
        }
    }

    #[test]
    fn podman_s_command_line_names_the_container() {
        let of = |text: &'static str| named_by_podman(&text.split(' ').collect::<Vec<_>>());
        assert_eq!(of("/usr/bin/podman run -d --name web bb:1"), Some("web"));
        assert_eq!(
            of("podman --log-level debug run --name=web bb:1"),
            Some("web")
        );
        assert_eq!(of("podman start -a web"), Some("web"));
        assert_eq!(of("podman run bb:1 sh"), None);
        assert_eq!(of("sh --name web"), None);
    }
}
