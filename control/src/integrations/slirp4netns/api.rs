//! The API socket: forwards from ports of the host, added, listed and removed while it runs.
//!
//! One request per connection, a JSON object like `{"execute": "add_hostfwd", "arguments": {..}}`; answers and faults are those of
//! slirp4netns 1.2, word by word, as callers may look at them. What exactly went wrong is logged besides. A thread of its own serves them
//! one by one, each within a time limit.

use super::super::attach::{Publisher, add_named};
use super::network::CONTAINER;
use super::options::Options;
use crate::model::{Protocol, PublishedPort};
use crate::units::Ports;
use serde::Serialize;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest request; that of slirp4netns.
const LONGEST: usize = 4096;
/// A request has to be there, and its answer taken, within this time.
const LIMIT: Duration = Duration::from_secs(2);
/// Most forwards.
const FORWARDS: usize = 65_536;
const STACK: usize = 256 << 10;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("--api-socket {}: {source}; name a path in a directory that exists and may be written to", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("starting the thread of the API socket: {0}; raise the limit of processes")]
    Thread(io::Error),
}

/// Binds the socket; requests wait until it is served. Its file is to be removed in the end.
pub(super) fn bind(path: &Path) -> Result<UnixListener, ApiError> {
    // One left behind, as by a process that was killed.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|source| ApiError::Bind {
        path: path.to_owned(),
        source,
    })
}

/// Serves the socket until the process ends.
pub(super) fn serve(
    listener: UnixListener,
    publisher: Publisher,
    options: &Options,
) -> Result<(), ApiError> {
    let mut forwards = Forwards {
        container: options.cidr.host(CONTAINER),
        inside: publisher.address().unwrap_or(options.cidr.host(CONTAINER)),
        publisher,
        list: Vec::new(),
        last: 0,
    };
    let thread = std::thread::Builder::new().name("api".into());
    let thread = thread.stack_size(STACK).spawn(move || {
        for stream in listener.incoming() {
            match stream.and_then(|s| converse(s, &mut forwards)) {
                Ok(()) => {}
                Err(e) => {
                    tracing::debug!("a request on the API socket: {e}");
                    // Out of descriptors, accept(2) fails at once, again and again.
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    });
    thread.map(drop).map_err(ApiError::Thread)
}

fn converse(mut stream: UnixStream, forwards: &mut Forwards) -> io::Result<()> {
    let end = Instant::now() + LIMIT;
    let mut request = Vec::new();
    let mut piece = [0; LONGEST];
    while request.len() < LONGEST {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let n = stream.read(&mut piece)?;
        request.extend(piece.iter().take(n));
        // It ends with its line, its object, or the connection.
        if n == 0 || request.last() == Some(&b'\n') || object(&request).is_some() {
            break;
        }
    }
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(forwards.answer(&request).as_bytes())
}

/// The first JSON value of a request; what follows it is passed over.
fn object(request: &[u8]) -> Option<Value> {
    let mut values = serde_json::Deserializer::from_slice(request).into_iter();
    values.next()?.ok()
}

#[derive(Debug)]
struct Forwards {
    publisher: Publisher,
    list: Vec<Forward>,
    last: u32,
    /// The container's address, as callers know it, and as it is.
    container: Ipv4Addr,
    inside: Ipv4Addr,
}

/// A forward, in the order of the fields as it is listed.
#[derive(Clone, Debug, Serialize)]
struct Forward {
    id: u32,
    proto: Protocol,
    host_addr: Ipv4Addr,
    host_port: u16,
    guest_addr: Ipv4Addr,
    guest_port: u16,
    /// What it is called among published ports.
    #[serde(skip)]
    name: String,
}

#[derive(Serialize)]
struct Entries<'a> {
    entries: &'a [Forward],
}

/// A fault, in the words of slirp4netns.
#[derive(Debug)]
struct Fault(&'static str);

impl Forwards {
    fn answer(&mut self, request: &[u8]) -> String {
        match self.execute(request) {
            Ok(answer) => answer,
            Err(Fault(desc)) => {
                format!(r#"{{"error":{{"desc":"bad request: {desc}"}}}}"#)
            }
        }
    }

    fn execute(&mut self, request: &[u8]) -> Result<String, Fault> {
        let value = object(request).ok_or(Fault("cannot parse JSON"))?;
        let Value::Object(request) = value else {
            return Err(Fault("json_object() failed"));
        };
        let execute = request.get("execute").and_then(Value::as_str);
        let arguments = request.get("arguments").unwrap_or(&Value::Null);
        match execute.ok_or(Fault("no execute found"))? {
            "add_hostfwd" => self.add(arguments),
            "list_hostfwd" => {
                let entries = Entries {
                    entries: &self.list,
                };
                serde_json::to_string(&entries).map_err(|_| Fault("list_hostfwd failed"))
            }
            "remove_hostfwd" => self.remove(arguments),
            _ => Err(Fault("unknown execute")),
        }
    }

    fn add(&mut self, arguments: &Value) -> Result<String, Fault> {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str).unwrap_or("");
        let port = |key: &str| {
            let number = arguments.get(key).and_then(Value::as_u64);
            number
                .and_then(|n| u16::try_from(n).ok())
                .filter(|n| *n != 0)
        };
        let address = |key: &str, default: Ipv4Addr| match text(key) {
            "" => Some(default),
            given => given.parse().ok(),
        };
        let proto = match text("proto") {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(Fault("add_hostfwd: bad arguments.proto")),
        };
        let host_addr = address("host_addr", Ipv4Addr::UNSPECIFIED);
        let host_addr = host_addr.ok_or(Fault("add_hostfwd: bad arguments.host_addr"))?;
        let host_port = port("host_port").ok_or(Fault("add_hostfwd: bad arguments.host_port"))?;
        let guest_addr = address("guest_addr", self.container);
        let guest_addr = guest_addr.ok_or(Fault("add_hostfwd: bad arguments.guest_addr"))?;
        let guest_port =
            port("guest_port").ok_or(Fault("add_hostfwd: bad arguments.guest_port"))?;
        let mut forward = Forward {
            id: self.last.wrapping_add(1),
            proto,
            host_addr,
            host_port,
            guest_addr,
            guest_port,
            name: String::new(),
        };
        let published = self.published(&forward);
        let done = match published {
            Some(p) if self.list.len() < FORWARDS => self.publisher.change(|all| {
                forward.name = add_named(all, p);
            }),
            _ => return Err(Fault("add_hostfwd: slirp_add_hostfwd failed")),
        };
        done.map_err(|e| {
            tracing::warn!("{e}");
            Fault("add_hostfwd: slirp_add_hostfwd failed")
        })?;
        self.last = forward.id;
        let answer = format!(r#"{{"return":{{"id":{}}}}}"#, forward.id);
        self.list.push(forward);
        Ok(answer)
    }

    fn remove(&mut self, arguments: &Value) -> Result<String, Fault> {
        let id = arguments.get("id").and_then(Value::as_u64);
        let at = self.list.iter().position(|f| Some(u64::from(f.id)) == id);
        let at = at.ok_or(Fault("remove_hostfwd: bad arguments.id"))?;
        let forward = self.list.remove(at);
        let done = self.publisher.change(|all| {
            all.remove(&forward.name);
        });
        done.map_err(|e| {
            tracing::warn!("{e}");
            Fault("remove_hostfwd: slirp_remove_hostfwd failed")
        })?;
        Ok(r#"{"return":{}}"#.to_owned())
    }

    fn published(&self, f: &Forward) -> Option<PublishedPort> {
        let guest = match f.guest_addr == self.container {
            true => self.inside,
            false => f.guest_addr,
        };
        let to = format!("{guest}:{}", f.guest_port).parse().ok()?;
        Some(PublishedPort {
            protocol: f.proto,
            address: (!f.host_addr.is_unspecified()).then_some(f.host_addr.into()),
            ..PublishedPort::new(Ports((f.host_port, f.host_port)), vec![to])
        })
    }
}
