//! Opening ports: from the model to the queues that workers own.

use crate::model::{Port, PortKind};
use crate::netns;
use crate::refusal::{Kind, Refusal};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use vswitch_core::frame::Offloads;
use vswitch_core::port::PortIo;
use vswitch_core::port::dgram::Dgram;
use vswitch_core::port::packet::{PacketOptions, PacketPort};
use vswitch_core::port::stream::Stream;
use vswitch_core::port::tap::Tap;
use vswitch_core::port::unix::{Address, UnixError};
use vswitch_core::sys::{pidfd, tun};

/// An open port, not yet in the switch.
#[derive(Debug)]
pub(crate) struct Opened {
    /// A queue per worker, or one of all.
    pub(crate) queues: Vec<Box<dyn PortIo>>,
    /// The device's name, as far as there is one.
    pub(crate) device: String,
    /// Readable once the container's process has ended.
    pub(crate) process: Option<(i32, OwnedFd)>,
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

/// Opens a port for this many workers. `handed` is the queue that came with the request, for a port of kind fd.
pub(crate) fn open(
    name: &str,
    port: &Port,
    workers: usize,
    handed: Option<&OwnedFd>,
) -> Result<Opened, Refusal> {
    match port.kind {
        PortKind::Tap => open_tap(name, port, workers),
        PortKind::Fd => handed_tap(name, handed),
        PortKind::Packet => open_packet(name, port, workers),
        PortKind::Stream | PortKind::Dgram => open_socket(name, port),
        PortKind::Veth => Err(refused(
            name,
            "veth pairs can't be made by this version",
            "make the pair with `ip link` and use kind packet on its near end, or use kind tap",
        )),
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
    let tap = Tap::new(fd, Offloads::ALL).map_err(|e| {
        let remedy = "open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
        refused(name, e, remedy)
    })?;
    Ok(Opened {
        device: tap.info().name.clone(),
        queues: vec![Box::new(tap)],
        process: None,
    })
}

fn open_packet(name: &str, port: &Port, workers: usize) -> Result<Opened, Refusal> {
    let device = port.device_name(name);
    // The kernel wants one number per group and namespace; that of the interface is one.
    let index = nix::net::if_::if_nametoindex(device).map_err(|e| {
        let reason = format!("interface `{device}`: {}", e.desc());
        refused(
            name,
            reason,
            "name an interface of the daemon's namespace with --device",
        )
    })?;
    let options = PacketOptions {
        promiscuous: true,
        fanout: (workers > 1).then_some(index as u16),
    };
    let mut queues: Vec<Box<dyn PortIo>> = Vec::new();
    for _ in 0..workers {
        let queue = PacketPort::open_in_current_netns(device, options)
            .map_err(|e| refused(name, e, "AF_PACKET needs CAP_NET_RAW"))?;
        queues.push(Box::new(queue));
    }
    Ok(Opened {
        queues,
        device: device.to_owned(),
        process: None,
    })
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
    })
}

fn open_tap(name: &str, port: &Port, workers: usize) -> Result<Opened, Refusal> {
    if !port.addresses.is_empty() || !port.gateways.is_empty() || port.mac.is_some() {
        return Err(refused(
            name,
            "interfaces can't be configured by this version",
            "leave out mac, addresses and gateways, and set them with `ip`",
        ));
    }
    let device = port.device_name(name);
    let process = match port.netns.as_deref().and_then(netns::pid_of) {
        None => None,
        Some(pid) => {
            let fd = pidfd::open(pid).map_err(|e| {
                refused(
                    name,
                    format!("process {pid}: {e}"),
                    "start the container first, and name a process of it",
                )
            })?;
            Some((pid, fd))
        }
    };
    let queues = || -> Result<Vec<Tap>, tun::TunError> {
        (0..workers)
            .map(|_| Tap::open(device, workers > 1, Offloads::ALL))
            .collect()
    };
    let taps = match &port.netns {
        None => queues(),
        Some(spec) => netns::within(spec, queues).map_err(|e| {
            refused(
                name,
                e,
                "name a namespace that exists (path, name under /run/netns, or pid:NUMBER)",
            )
        })?,
    };
    let taps = taps.map_err(|e| {
        let remedy = "is /dev/net/tun there and CAP_NET_ADMIN held, and is the device's name free?";
        refused(name, e, remedy)
    })?;
    Ok(Opened {
        device: device.to_owned(),
        queues: taps
            .into_iter()
            .map(|t| Box::new(t) as Box<dyn PortIo>)
            .collect(),
        process,
    })
}
