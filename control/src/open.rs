//! Opening ports: from the model to the queues that workers own.

use crate::interface::{self, Veth};
use crate::model::{self, Port, PortKind};
use crate::netns::{self, NetnsError};
use crate::refusal::{Kind, Refusal};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use vswitch_core::accel::{Accelerator, FastPort};
use vswitch_core::frame::Offloads;
use vswitch_core::port::PortIo;
use vswitch_core::port::dgram::Dgram;
use vswitch_core::port::packet::{Fanout, PacketOptions, PacketPort, Receive};
use vswitch_core::port::seqpacket::Seqpacket;
use vswitch_core::port::stream::Stream;
use vswitch_core::port::tap::Tap;
use vswitch_core::port::unix::{Address, UnixError};
use vswitch_core::sys::packet::PacketError;
use vswitch_core::sys::{pidfd, ring, tun};
use vswitch_core::wire::MacAddr;

/// Who is to serve a port.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    pub(crate) count: usize,
    /// Whether the others get frames only when the first is at its limit and asks for it.
    pub(crate) shared: bool,
    /// The fast path, if there is one.
    pub(crate) accelerator: Option<Arc<Accelerator>>,
}

/// An open port, not yet in the switch.
#[derive(Debug)]
pub(crate) struct Opened {
    /// A queue per worker, or one of all.
    pub(crate) queues: Vec<Box<dyn PortIo>>,
    /// The device's name, as far as there is one.
    pub(crate) device: String,
    /// Readable once the container's process has ended.
    pub(crate) process: Option<(i32, OwnedFd)>,
    /// The pair we made for it.
    pub(crate) veth: Option<Veth>,
    /// Its part in the fast path.
    pub(crate) fast: Option<(FastPort, OwnedFd)>,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "errors and texts are handed over"
)]
fn refused(name: &str, reason: impl ToString, remedy: &str) -> Refusal {
    Refusal::new(
        Kind::Failed,
        "adding",
        format!("port `{name}`"),
        reason.to_string(),
        remedy,
    )
}

/// The same, where the system forbids it to this daemon.
fn forbidden(refusal: Refusal, is: bool) -> Refusal {
    match is {
        true => Refusal {
            kind: Kind::Denied,
            ..refusal
        },
        false => refusal,
    }
}

/// Whether the kernel has refused for want of a right.
fn is_forbidden(e: Errno) -> bool {
    matches!(e, Errno::EPERM | Errno::EACCES)
}

/// Opens a port for this many workers. `handed` is the queue that came with the request, for a port of kind fd.
pub(crate) fn open(
    name: &str,
    port: &Port,
    workers: &Workers,
    handed: Option<&OwnedFd>,
) -> Result<Opened, Refusal> {
    match port.kind {
        PortKind::Tap => open_tap(name, port, workers),
        PortKind::Fd => handed_tap(name, handed),
        PortKind::Packet => open_packet(name, port, workers),
        PortKind::Stream | PortKind::Dgram => open_socket(name, port),
        PortKind::Veth => open_veth(name, port, workers),
    }
}

fn handed_tap(name: &str, handed: Option<&OwnedFd>) -> Result<Opened, Refusal> {
    let Some(fd) = handed else {
        return Err(refused(
            name,
            "no file descriptor came with the request",
            "hand it over with `vswitchctl port add --tap-fd N`",
        ));
    };
    let fd = fd
        .try_clone()
        .map_err(|e| refused(name, e, "raise the limit of open files"))?;
    if Seqpacket::is(&fd) {
        return Ok(Opened {
            device: "seqpacket".to_owned(),
            queues: vec![Box::new(Seqpacket::new(fd))],
            process: None,
            veth: None,
            fast: None,
        });
    }
    let tap = Tap::new(fd, Offloads::ALL).map_err(|e| {
        let remedy = "hand over a queue of a TAP device";
        refused(name, e, remedy)
    })?;
    Ok(Opened {
        device: tap.info().name.clone(),
        queues: vec![Box::new(tap)],
        process: None,
        veth: None,
        fast: None,
    })
}

fn open_packet(name: &str, port: &Port, workers: &Workers) -> Result<Opened, Refusal> {
    open_queues(name, port, workers, None)
}

/// Packet sockets at an interface; on the fast path if the other end of its pair is in another namespace, with address `far`.
fn open_queues(
    name: &str,
    port: &Port,
    workers: &Workers,
    far: Option<MacAddr>,
) -> Result<Opened, Refusal> {
    let device = port.device_name(name);
    let index = nix::net::if_::if_nametoindex(device).map_err(|e| {
        let reason = format!("interface `{device}`: {}", e.desc());
        refused(
            name,
            reason,
            "name an interface of the daemon's namespace with --device",
        )
    })?;
    let (group, join): (_, fn(u16) -> Fanout) = if workers.shared {
        (Fanout::NewSteered, Fanout::JoinSteered)
    } else {
        (Fanout::New, Fanout::Join)
    };
    let mut options = PacketOptions {
        promiscuous: true,
        fanout: (workers.count > 1).then_some(group),
        receive: match port.receive {
            model::Receive::Socket => Receive::Socket,
            model::Receive::Ring => Receive::Ring {
                blocks: (port.ring_kib << 10).div_ceil(ring::BLOCK_SIZE),
            },
        },
    };
    let mut queues: Vec<PacketPort> = Vec::new();
    for _ in 0..workers.count {
        let queue = PacketPort::open_in_current_netns(device, options).map_err(|e| {
            let is = matches!(&e, PacketError::Open { source, .. } if is_forbidden(*source));
            forbidden(refused(name, e, "AF_PACKET needs CAP_NET_RAW"), is)
        })?;
        options.fanout = queue.fanout().map(join);
        queues.push(queue);
    }
    let part = FastPort {
        interface: index,
        mac: far.unwrap_or(MacAddr::ZERO),
        mtu: port.mtu,
    };
    let with = workers.accelerator.as_ref().filter(|_| far.is_some());
    let fast = with.and_then(|with| match join_fast(with, &queues, part) {
        Ok(link) => Some((part, link)),
        Err(reason) => {
            tracing::warn!(port = name, reason, "port not on the fast path");
            None
        }
    });
    Ok(Opened {
        queues: queues.into_iter().map(|q| Box::new(q) as _).collect(),
        fast,
        device: device.to_owned(),
        process: None,
        veth: None,
    })
}

/// First the sockets learn what to leave out, then the program begins to take it.
fn join_fast(with: &Accelerator, queues: &[PacketPort], part: FastPort) -> Result<OwnedFd, String> {
    for queue in queues {
        queue.set_filter(with.filter()).map_err(|e| e.to_string())?;
    }
    with.attach(part.interface).map_err(|e| e.to_string())
}

fn open_socket(name: &str, port: &Port) -> Result<Opened, Refusal> {
    let address = |path: &Option<PathBuf>| path.clone().map(Address::Path);
    let queue: Result<Box<dyn PortIo>, UnixError> =
        match (port.kind, address(&port.listen), address(&port.connect)) {
            (PortKind::Dgram, Some(local), Some(remote)) => {
                Dgram::new(&local, remote).map(|q| Box::new(q) as _)
            }
            (PortKind::Stream, Some(local), _) => {
                Stream::server(local, Vec::new()).map(|q| Box::new(q) as _)
            }
            (PortKind::Stream, None, Some(remote)) => {
                Stream::client(remote, Vec::new()).map(|q| Box::new(q) as _)
            }
            _ => Err(UnixError::Address(Address::Path(PathBuf::new()))),
        };
    let queue = queue.map_err(|e| refused(name, e, "correct --listen and --connect"))?;
    let path = port.listen.as_ref().or(port.connect.as_ref());
    Ok(Opened {
        queues: vec![queue],
        device: path.map(|p| p.display().to_string()).unwrap_or_default(),
        process: None,
        veth: None,
        fast: None,
    })
}

/// A process of the container, to watch, if the namespace is named by one.
fn process(name: &str, port: &Port) -> Result<Option<(i32, OwnedFd)>, Refusal> {
    let Some(pid) = port.netns.as_deref().and_then(netns::pid_of) else {
        return Ok(None);
    };
    let fd = pidfd::open(pid).map_err(|e| {
        refused(
            name,
            format!("process {pid}: {e}"),
            "start the container first, and name a process of it",
        )
    })?;
    Ok(Some((pid, fd)))
}

const NO_NETNS: &str = "name a namespace that exists (path, name under /run/netns, or pid:NUMBER)";

const NOT_OURS: &str = "run the daemon as who owns that namespace, in the user namespace of its processes, or with CAP_SYS_ADMIN";

const GIVEN_UP: &str = "have slirp4netns or pasta hand the container over (VSWITCH_ATTACH), or run vswitchd without --sandbox";

/// Runs `f` where the container's end of the port is.
fn inside<T: Send>(name: &str, port: &Port, f: impl FnOnce() -> T + Send) -> Result<T, Refusal> {
    match &port.netns {
        None => Ok(f()),
        Some(spec) => netns::within(spec, f).map_err(|e| no_namespace(name, &e)),
    }
}

/// What a person is told of a namespace that can't be entered.
fn no_namespace(name: &str, e: &NetnsError) -> Refusal {
    let forbidden_one = e.is_forbidden();
    let remedy = match e {
        NetnsError::GivenUp(_) => GIVEN_UP,
        _ if forbidden_one => NOT_OURS,
        _ => NO_NETNS,
    };
    forbidden(refused(name, e, remedy), forbidden_one)
}

/// Configures the container's interface; one in our own namespace without addresses is left to its user.
fn configure(name: &str, port: &Port) -> Result<(), Refusal> {
    let plain = port.addresses.is_empty() && port.gateways.is_empty() && port.mac.is_none();
    if port.netns.is_none() && plain {
        return Ok(());
    }
    let addresses: Vec<_> = port.addresses.iter().map(|c| c.0).collect();
    let setup = interface::Setup {
        name: port.device_name(name),
        mtu: port.mtu,
        mac: port.mac.as_ref().map(|m| m.0),
        addresses: &addresses,
        gateways: &port.gateways,
        onlink: false,
    };
    let whole = || {
        // A bare namespace begins with its loopback down, where its own addresses aren't reached either.
        if port.netns.is_some() && !addresses.is_empty() {
            interface::loopback_up()?;
        }
        interface::configure(&setup)
    };
    inside(name, port, whole)?.map_err(|e| {
        let remedy = "check the addresses and that a gateway is in one of their prefixes";
        refused(name, e, remedy)
    })
}

fn open_tap(name: &str, port: &Port, workers: &Workers) -> Result<Opened, Refusal> {
    let device = port.device_name(name);
    let process = process(name, port)?;
    let taps = inside(name, port, || {
        (0..workers.count)
            .map(|i| {
                let mut tap = Tap::open(device, workers.count > 1, Offloads::ALL)?;
                if workers.shared && i > 0 {
                    tap.set_attached(false);
                }
                Ok(tap)
            })
            .collect::<Result<Vec<Tap>, tun::TunError>>()
    })?;
    let taps = taps.map_err(|e| {
        let remedy = "is /dev/net/tun there and CAP_NET_ADMIN held, and is the device's name free?";
        let is = match &e {
            tun::TunError::Open(source) | tun::TunError::Create { source, .. } => {
                is_forbidden(*source)
            }
            _ => false,
        };
        forbidden(refused(name, e, remedy), is)
    })?;
    configure(name, port)?;
    Ok(Opened {
        device: device.to_owned(),
        queues: taps
            .into_iter()
            .map(|t| Box::new(t) as Box<dyn PortIo>)
            .collect(),
        process,
        veth: None,
        fast: None,
    })
}

/// Name of the near end: a prefix and the port's name, or where that is too long a number made of it (FNV-1a).
fn near_end(name: &str) -> String {
    let plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if plain && name.len() <= 12 {
        return format!("vs-{name}");
    }
    format!("vs-{:012x}", crate::fnv::hash(name.bytes()) >> 16)
}

/// Removes what a daemon that crashed left of a port that it is restoring: its veth pair. TAPs go with their fd.
pub(crate) fn clear_left_behind(name: &str, port: &Port) {
    if port.kind == PortKind::Veth {
        interface::remove(&near_end(name));
    }
}

fn open_veth(name: &str, port: &Port, workers: &Workers) -> Result<Opened, Refusal> {
    let process = process(name, port)?;
    let spec = port.netns.as_deref().unwrap_or("/proc/self/ns/net");
    let ns = netns::open(spec).map_err(|e| no_namespace(name, &e))?;
    let near = near_end(name);
    let far = port.device_name(name);
    let veth = Veth::new(&near, far, ns.as_fd(), port.mtu).map_err(|e| {
        let remedy = "making veth pairs needs CAP_NET_ADMIN, and the device's name must be free";
        refused(name, e, remedy)
    })?;
    configure(name, port)?;
    let near_port = Port {
        device: Some(near.clone()),
        ..port.clone()
    };
    // The address of the container's end as it is now, from where no frame of ours must come back to our own namespace.
    let mac = match &workers.accelerator {
        Some(_) => inside(name, port, || interface::address_abroad(far))?,
        None => None,
    };
    let mut opened = open_queues(name, &near_port, workers, mac)?;
    opened.device = near;
    opened.process = process;
    opened.veth = Some(veth);
    Ok(opened)
}
