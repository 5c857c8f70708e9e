//! A switch for one container, by choice with a control socket: a topology, the TAP queue that goes with it, and the wait for the end.
//!
//! It ends by SIGTERM or SIGINT, when the other end of a descriptor is closed, or when the device is gone with its container.

use super::control::Control;
use super::sandbox::SandboxError;
use crate::api::{Shared, lock};
use crate::events::{Bus, Intake};
use crate::model::Topology;
use crate::plane::{Plane, lacking};
use crate::refusal::Refusal;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use vswitch_core::bridge::Bridge;
use vswitch_core::sys::mem;
use vswitch_core::worker::{self, Event, EventSink, WorkerConfig};
use vswitch_nat::Pipeline;

/// How long the worker looks for more work before it sleeps; see `worker::pace` of the data path for when.
const SPIN: Duration = Duration::from_micros(60);
/// Stack of the thread that follows the host.
const STACK: usize = 256 << 10;
/// The same where it serves a control socket.
const STACK_OF_API: usize = 512 << 10;
/// How often is looked which ports the host listens at, where those are published, in milliseconds.
const TEND: u16 = 1000;
/// How often is looked after what nothing tells of.
const LOOK: u16 = 5000;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SingleError {
    /// Descriptors, threads, signals.
    #[error("{act}: {source}; raise the limits of open files and processes")]
    System {
        act: &'static str,
        source: io::Error,
    },
    /// The topology.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What is given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

fn system<E: Into<io::Error>>(act: &'static str) -> impl FnOnce(E) -> SingleError {
    move |source| SingleError::System {
        act,
        source: source.into(),
    }
}

/// The signals that end the process, as a descriptor; to be made before there are threads.
#[derive(Debug)]
pub(crate) struct Ends(SignalFd);

impl Ends {
    /// From now on they wait until they are read, also by a child.
    pub(crate) fn hold() -> Result<SigSet, SingleError> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block().map_err(system("blocking signals"))?;
        Ok(set)
    }

    pub(crate) fn new() -> Result<Ends, SingleError> {
        let set = Ends::hold()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let fd = SignalFd::with_flags(&set, flags).map_err(system("opening a signalfd"))?;
        Ok(Ends(fd))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The signal that has come, if one has.
    pub(super) fn come(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo.cast_signed()).ok()
    }
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Signal,
    /// What else there was to be watched.
    Other,
    /// The container's device is gone.
    Gone,
}

/// What ends it besides.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Other<'a> {
    /// The other end of this is closed.
    HangUp(BorrowedFd<'a>),
    /// The process of this has ended.
    Process(BorrowedFd<'a>),
}

impl<'a> Other<'a> {
    fn watched(self) -> PollFd<'a> {
        match self {
            // That it hangs up is told unasked.
            Other::HangUp(fd) => PollFd::new(fd, PollFlags::empty()),
            Other::Process(fd) => PollFd::new(fd, PollFlags::POLLIN),
        }
    }
}

/// What has come to pass with a container that is attached elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) enum Awaited {
    Ended(Ended),
    /// Who it is attached to has gone.
    PeerGone,
    Nothing,
}

/// Waits for the end of a container that is attached elsewhere, of its device by `queue`, or of the peer at `stream`; at most `timeout`
/// milliseconds.
pub(super) fn await_end(
    ends: &Ends,
    other: Option<Other<'_>>,
    queue: BorrowedFd<'_>,
    stream: Option<BorrowedFd<'_>>,
    timeout: u16,
) -> Result<Awaited, SingleError> {
    let mut whys = vec![Awaited::Ended(Ended::Signal), Awaited::Ended(Ended::Gone)];
    let mut fds = vec![
        PollFd::new(ends.0.as_fd(), PollFlags::POLLIN),
        // A device that is gone is an error, which is told unasked.
        PollFd::new(queue, PollFlags::empty()),
    ];
    if let Some(other) = other {
        whys.push(Awaited::Ended(Ended::Other));
        fds.push(other.watched());
    }
    if let Some(stream) = stream {
        whys.push(Awaited::PeerGone);
        fds.push(PollFd::new(stream, PollFlags::empty()));
    }
    match poll(&mut fds, PollTimeout::from(timeout)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(system("waiting for the end")(e)),
    }
    let told = |(fd, why): (&PollFd<'_>, Awaited)| fd.any().unwrap_or(true).then_some(why);
    let found = fds.iter().zip(whys).find_map(told);
    Ok(found.unwrap_or(Awaited::Nothing))
}

/// The running switch; its worker and devices go when it is dropped.
#[derive(Debug)]
pub(crate) struct Single {
    plane: Shared,
    gone: Arc<EventFd>,
    leases: Arc<EventFd>,
    control: Option<Control>,
    intake: Option<Intake>,
}

impl Single {
    /// Starts; `taps` are the queues of the ports of kind fd. A control socket is served once the host is followed.
    pub(crate) fn start(
        topology: Topology,
        taps: &BTreeMap<String, OwnedFd>,
        control: Option<Control>,
    ) -> Result<Single, SingleError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let open = || EventFd::from_value_and_flags(0, flags).map_err(system("opening an eventfd"));
        let (gone, leases) = (Arc::new(open()?), Arc::new(open()?));
        let (tell, tell_of_leases) = (gone.clone(), leases.clone());
        let (intake, told) = control.is_some().then(Intake::new).unzip();
        let events: EventSink = Arc::new(move |event| {
            match &event {
                Event::PortDown { is_final: true, .. } => {
                    let _ = tell.write(1);
                }
                Event::PortDown { reason, .. } => {
                    tracing::warn!(reason, "the container's port is down");
                }
                Event::NatExhausted { reason, .. } => {
                    tracing::warn!(reason, "connections are refused");
                }
                Event::LeasesChanged => {
                    let _ = tell_of_leases.write(1);
                }
                _ => {}
            }
            if let Some(told) = &told {
                told(event);
            }
        });
        let config = WorkerConfig {
            workers: 1,
            shared: false,
            spin: SPIN,
            events,
        };
        let bridge = Bridge::new();
        let workers = worker::spawn(&config, |_| Pipeline {
            bridge: bridge.sibling(),
            ..Pipeline::default()
        });
        let workers = workers.map_err(system("starting the worker"))?;
        // No process is watched: nobody listens.
        let (watch, _) = mpsc::unbounded_channel();
        let uplinks = topology.networks.values();
        let uplinks = uplinks.filter_map(|n| n.gateway.as_ref()?.host_uplink.as_ref());
        for warning in uplinks.flat_map(lacking) {
            tracing::warn!("{warning}");
        }
        let mut plane = Plane::new(workers, false, None, Bus::new(), watch);
        if let Err(refusal) = plane.apply_with(topology, taps) {
            plane.stop();
            return Err(refusal.into());
        }
        Ok(Single {
            plane: Arc::new(Mutex::new(plane)),
            gone,
            leases,
            control,
            intake,
        })
    }

    /// The switch itself.
    pub(crate) fn plane(&self) -> &Shared {
        &self.plane
    }

    /// Has the host's network and resolvers followed from now on, by a thread of their own, which serves the control socket too.
    pub(crate) fn follow_host(&mut self) -> Result<(), SingleError> {
        let act = "starting the thread that follows the host";
        let serve = |c: &Control| Ok((c.serve, c.socket.door()?));
        let control = self.control.as_ref().map(serve).transpose();
        let control = control.map_err(system::<io::Error>("serving the control socket"))?;
        let (served, stack) = match control.zip(self.intake.take()) {
            Some(served) => (Some(served), STACK_OF_API),
            None => (None, STACK),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system(act))?;
        let plane = self.plane.clone();
        let follow = move || {
            runtime.block_on(async {
                let resolvers = crate::follow::resolvers(plane.clone());
                let serving = plane.clone();
                let control = async move {
                    if let Some(((serve, door), intake)) = served {
                        serve(door, intake, serving).await;
                    }
                };
                tokio::join!(crate::follow::network(plane), resolvers, control);
            });
        };
        let thread = std::thread::Builder::new().name("follow".into());
        let thread = thread.stack_size(stack).spawn(follow);
        thread.map(drop).map_err(system(act))
    }

    /// Waits for the end.
    pub(crate) fn wait(&self, ends: &Ends, other: Option<Other<'_>>) -> Result<Ended, SingleError> {
        mem::forget_start();
        let mut fds = vec![
            PollFd::new(ends.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.gone.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(other.map(Other::watched));
        let reasons = [Ended::Signal, Ended::Gone, Ended::Other];
        let ends = fds.len();
        fds.push(PollFd::new(self.leases.as_fd(), PollFlags::POLLIN));
        let mut timeout = TEND;
        loop {
            match poll(&mut fds, PollTimeout::from(timeout)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(system("waiting for the end")(e)),
            }
            let told = |(fd, why): (&PollFd<'_>, Ended)| fd.any().unwrap_or(true).then_some(why);
            if let Some(why) = fds.iter().take(ends).zip(reasons).find_map(told) {
                return Ok(why);
            }
            let mut plane = lock(&self.plane);
            if self.leases.read().is_ok() {
                plane.leases_changed();
            }
            plane.tend_services();
            // By the control socket that may be asked for any time.
            let listens = plane.follow_listening().is_none() || self.control.is_some();
            timeout = if listens { TEND } else { LOOK };
        }
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        lock(&self.plane).stop();
    }
}
