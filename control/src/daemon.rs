//! The daemon: where everything is composed.
//!
//! [`Daemon::start`] starts the workers, restores the state, binds the socket and serves the API on one thread of its own;
//! [`Daemon::shutdown`] ends it all: devices made by us go with their fds. It can be used inside another program.

use crate::api::Shared;
use crate::events::{Bus, Intake};
use crate::handover;
use crate::integrations::sandbox;
use crate::model::Topology;
use crate::plane::{Plane, Watch};
use crate::server::{self, ServerError, Socket};
use crate::state::{StateError, StateFile, StateLock};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};
use vswitch_core::accel::Accelerator;
use vswitch_core::bridge::Bridge;
use vswitch_core::worker::{self, WorkerConfig};
use vswitch_nat::Pipeline;

/// Stack of the control thread.
const STACK: usize = 512 << 10;
/// How often the gateways' services are looked after, and containers are looked into.
const TEND: Duration = Duration::from_secs(1);
/// How often is looked after what nothing tells of.
const LOOK: Duration = Duration::from_secs(5);

/// How to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Control socket; none serves no API.
    pub socket: Option<PathBuf>,
    /// Group that may use it.
    pub group: Option<String>,
    /// Workers, 1 to 64.
    pub workers: u16,
    /// Whether the first works alone until it is at its limit.
    pub shared: bool,
    /// Whether the kernel is to carry what the switch has approved.
    pub accelerate: bool,
    /// Whether what it needn't have is given up: privileges, files, system calls, and with them containers' namespaces.
    pub sandbox: bool,
    /// How long a worker looks for more work before it sleeps.
    pub spin: Duration,
    /// Where state is kept; none keeps none.
    pub state: Option<PathBuf>,
    /// Applied at start instead of the saved state.
    pub topology: Option<Topology>,
    /// Loopback address for `/metrics`.
    pub metrics: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            socket: None,
            group: None,
            workers: 1,
            shared: false,
            accelerate: false,
            sandbox: false,
            spin: Duration::ZERO,
            state: None,
            topology: None,
            metrics: None,
        }
    }
}

/// Why it doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// What isn't needed can't be given up.
    #[error("--sandbox: {0}; run it without")]
    Sandbox(String),
    /// The topology.
    #[error(transparent)]
    Refused(#[from] crate::refusal::Refusal),
    /// Threads, epoll.
    #[error("starting {act}: {source}; raise the limits of processes and open files")]
    System {
        /// What.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The directory that a file is in.
fn directory(file: &Path) -> PathBuf {
    let dir = file.parent().filter(|d| !d.as_os_str().is_empty());
    dir.unwrap_or(Path::new(".")).to_owned()
}

/// A running switch.
#[derive(Debug)]
pub struct Daemon {
    plane: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _state: Option<StateLock>,
}

impl Daemon {
    /// Starts; when it returns the API answers.
    pub fn start(options: Options) -> Result<Daemon, StartError> {
        let socket = match &options.socket {
            Some(path) => Some(Socket::bind(path, options.group.as_deref())?),
            None => None,
        };
        let handover = match &options.socket {
            Some(path) => {
                let path = handover::path_beside(path);
                Some(Socket::bind(&path, options.group.as_deref())?)
            }
            None => None,
        };
        let runtimes = match &options.socket {
            Some(path) => {
                let path = crate::switching::oci::path_beside(path);
                Some(Socket::bind(&path, options.group.as_deref())?)
            }
            None => None,
        };
        let metrics = options.metrics.map(server::bind_metrics).transpose()?;
        let written = [options.socket.as_deref(), options.state.as_deref()];
        let written: Vec<_> = written.into_iter().flatten().map(directory).collect();
        let state = options.state.map(StateFile);
        let lock = state.as_ref().map(StateFile::claim).transpose()?.flatten();
        let (saved, fresh) = match (options.topology, &state) {
            (Some(t), _) => (t, true),
            (None, Some(file)) => (file.load()?, false),
            (None, None) => (Topology::default(), true),
        };
        if options.sandbox {
            // Before there are threads, which inherit it.
            sandbox::enter_daemon(&written).map_err(|e| StartError::Sandbox(e.to_string()))?;
        }
        let (intake, sink) = Intake::new();
        let config = WorkerConfig {
            workers: options.workers,
            shared: options.shared,
            spin: options.spin,
            events: sink,
        };
        let first = Bridge::new();
        let workers = worker::spawn(&config, |_| Pipeline {
            bridge: first.sibling(),
            ..Pipeline::default()
        })
        .map_err(|source| StartError::System {
            act: "workers",
            source,
        })?;
        let (watch, watches) = mpsc::unbounded_channel();
        let mut plane = Plane::new(workers, options.shared, state, Bus::new(), watch);
        let wake = Arc::new(Notify::new());
        if options.accelerate {
            plane.set_accelerator(accelerator(wake.clone()));
        }
        let applied = if fresh {
            plane.apply(saved)
        } else {
            plane.restore(saved)
        };
        if let Err(e) = applied {
            plane.stop();
            return Err(e.into());
        }
        plane.restore_leases();
        let plane: Shared = Arc::new(Mutex::new(plane));
        let (stop, stopped) = oneshot::channel();
        let control = Control {
            plane: plane.clone(),
            socket,
            handover,
            runtimes,
            metrics,
            intake,
            watches,
            wake,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let thread = runtime.and_then(|runtime| {
            std::thread::Builder::new()
                .name("control".into())
                .stack_size(STACK)
                .spawn(move || runtime.block_on(control.run(stopped)))
        });
        let thread = thread.map_err(|source| StartError::System {
            act: "the control thread",
            source,
        })?;
        if options.sandbox {
            sandbox::confine_daemon().map_err(|e| StartError::Sandbox(e.to_string()))?;
        }
        Ok(Daemon {
            plane,
            stop: Some(stop),
            thread: Some(thread),
            _state: lock,
        })
    }

    /// The switch, for use within the program.
    #[must_use]
    pub fn plane(&self) -> &Shared {
        &self.plane
    }

    /// Ends the API, then the workers. Devices made by us go.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Before who handed listeners over takes them back: each has one reader at a time.
        let switching = crate::api::lock(&self.plane).switching();
        switching.end();
        drop(self.stop.take());
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
        crate::api::lock(&self.plane).stop();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the control thread owns.
#[derive(Debug)]
struct Control {
    plane: Shared,
    socket: Option<Socket>,
    handover: Option<Socket>,
    runtimes: Option<Socket>,
    metrics: Option<std::net::TcpListener>,
    intake: Intake,
    watches: mpsc::UnboundedReceiver<Watch>,
    /// There is something on the fast path.
    wake: Arc<Notify>,
}

impl Control {
    async fn run(self, stopped: oneshot::Receiver<()>) {
        let Control {
            plane,
            socket,
            handover,
            runtimes,
            metrics,
            mut intake,
            mut watches,
            wake,
        } = self;
        // The sockets themselves stay here until the end.
        if let Some(door) = open("the API", socket.as_ref()) {
            tokio::spawn(report("the API", server::serve(door, plane.clone())));
        }
        if let Some(door) = open("the hand-over socket", handover.as_ref()) {
            let served = server::serve_handover(door, plane.clone());
            tokio::spawn(report("the hand-over socket", served));
        }
        if let Some(door) = open("the socket for runtimes", runtimes.as_ref()) {
            let served = server::serve_runtimes(door, plane.clone());
            tokio::spawn(report("the socket for runtimes", served));
        }
        if let Some(listener) = metrics {
            let served = server::serve_metrics(listener, plane.clone());
            tokio::spawn(report("metrics", served));
        }
        let tended = plane.clone();
        tokio::spawn(async move {
            loop {
                let (changed, besides) = crate::api::lock(&tended).tend_services();
                let soonest = tokio::time::Instant::now() + TEND;
                // Who serves nothing isn't woken for nothing, and who asks for leases all the time doesn't have each one saved.
                if besides {
                    let _ = tokio::time::timeout(LOOK, changed.notified()).await;
                } else {
                    changed.notified().await;
                }
                tokio::time::sleep_until(soonest).await;
            }
        });
        let followed = plane.clone();
        tokio::spawn(async move {
            let mut each = tokio::time::interval(TEND);
            each.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                each.tick().await;
                let idle = crate::api::lock(&followed).follow_listening();
                if let Some(changed) = idle {
                    changed.notified().await;
                }
            }
        });
        let swept = plane.clone();
        tokio::spawn(async move {
            loop {
                wake.notified().await;
                loop {
                    tokio::time::sleep(TEND).await;
                    if !crate::api::lock(&swept).sweep_fast() {
                        break;
                    }
                }
            }
        });
        tokio::spawn(crate::follow::network(plane.clone()));
        tokio::spawn(crate::follow::resolvers(plane.clone()));
        let noticing = plane.clone();
        tokio::spawn(async move {
            while let Some((event, lost)) = intake.next().await {
                crate::api::lock(&noticing).notice(&event, lost);
            }
        });
        tokio::spawn(async move {
            while let Some(watch) = watches.recv().await {
                tokio::spawn(watch_process(plane.clone(), watch));
            }
        });
        let _ = stopped.await;
    }
}

/// The fast path, or why there is none.
fn accelerator(wake: Arc<Notify>) -> Result<Arc<Accelerator>, String> {
    match Accelerator::new(Box::new(move || wake.notify_one())) {
        Ok(a) => Ok(Arc::new(a)),
        Err(e) => {
            let reason = e.to_string();
            tracing::warn!(reason, "no fast path: the workers carry everything");
            Err(reason)
        }
    }
}

fn open(what: &str, socket: Option<&Socket>) -> Option<server::Door> {
    let door = socket?.door();
    door.map_err(|e| tracing::error!("serving {what}: {e}"))
        .ok()
}

async fn report(what: &str, served: impl Future<Output = io::Result<()>>) {
    if let Err(e) = served.await {
        tracing::error!("serving {what}: {e}");
    }
}

/// Waits for the end of a container's process or of its port.
async fn watch_process(plane: Shared, mut watch: Watch) {
    let (_, never) = oneshot::channel();
    let port_gone = std::mem::replace(&mut watch.ended, never);
    {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the fd is ours and outlives this"
        )]
        let fd = AsyncFd::with_interest(watch.fd.as_fd(), tokio::io::Interest::READABLE);
        let Ok(fd) = fd else {
            tracing::warn!(port = watch.port, "its process can't be watched");
            return;
        };
        tokio::select! {
            _ = fd.readable() => {}
            _ = port_gone => return,
        }
    }
    crate::api::lock(&plane).process_ended(&watch);
}
