//! Network-namespace lab: real kernel stacks around a real `vswitchd`, nothing of the machine touched.
//!
//! # Theory of operation
//! A [`Lab`] hands out [`Node`]s. A node is a process of ours that sleeps in a network namespace of
//! its own and so keeps it alive: a *container* also has its own mount, UTS, IPC and PID namespaces,
//! so that killing it kills everything inside, as with a real container; a *host* shares the
//! machine's PID namespace and serves as an outside machine or as the place where the daemon runs.
//! [`Lab::link`] joins two nodes by a veth pair. No namespace has a route to the machine's own
//! interfaces.
//!
//! As root the namespaces are made directly. As an ordinary user the lab first makes one user
//! namespace and all nodes live in it. Where neither works, [`Lab::new`] says why.
//!
//! Every process is started by one thread that lives as long as the test binary, with
//! `PR_SET_PDEATHSIG`, so a killed test leaves nothing behind. Of one test binary there are as
//! many labs at once as there are processors. A set-up step that fails is a failed test, so it panics with the
//! command and what it printed.
//!
//! # Example
//! ```no_run
//! use vswitch_tests::{Lab, Mtu};
//!
//! # fn main() {
//! let lab = Lab::new("two").unwrap();         // in a test: `let lab = vswitch_tests::lab!("two");`
//! let (a, b) = (lab.container("a"), lab.container("b"));
//! lab.link(&a, "eth0", &b, "eth0", Mtu(1500));
//! a.addr("eth0", "192.0.2.1/24");
//! b.addr("eth0", "192.0.2.2/24");
//! a.assert_ping("192.0.2.2");
//! let uname = a.ok(&["hostname"]);            // stdout; panics if the command fails
//! let mut sleep = b.spawn(&["sleep", "9"]);   // killed and reaped when dropped
//! assert!(sleep.is_running());
//! let server = b.iperf3_server();
//! assert!(a.iperf3("192.0.2.2", &["-t", "1"]).received_bytes > 0);
//! # }
//! ```
//! With the daemon (`tap_lab!` skips, with the reason, where `/dev/net/tun` can't be opened):
//! ```no_run
//! # use vswitch_tests::Lab;
//! # fn main() {
//! # let lab = Lab::new("daemon").unwrap();
//! let daemon = lab.daemon();                  // ready; SIGTERM and reaped on drop; log shown on panic
//! let a = lab.container("a");
//! let ports = daemon.ctl_json(&["port", "show"]);
//! daemon.assert_ledger();
//! # }
//! ```

mod capture;
mod daemon;
mod http;
mod iperf;
mod lab;
mod ledger;
mod node;
mod process;
mod site;
mod skip;
mod traffic;
mod user;

pub use capture::{Capture, tshark_fields};
pub use daemon::{Daemon, DaemonBuilder, program};
pub use http::Response;
pub use iperf::Iperf;
pub use lab::{Lab, Mtu, Unavailable, one_lab_at_a_time};
pub use ledger::Ledger;
pub use node::{Node, wait_until};
pub use process::{Background, Output};
pub use site::{FAR, HOST, attached, ground};
pub use skip::{record as record_skip, scenario_name};
