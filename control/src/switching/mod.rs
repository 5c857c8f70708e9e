//! Sockets of containers that are the host's own: connections to the outside that cross no switch.
//!
//! # Theory of operation
//!
//! A container's process has a seccomp filter that makes connect(2), bind(2) and listen(2) wait until they are answered, and we hold its
//! listener: our launcher ([`crate::cli`], `vswitchctl run`) hands it over, or an OCI runtime does ([`oci`]). A thread ([`server`])
//! answers. Where a stream is to be connected to what the port's gateway would send out by its host uplink, and policy accepts
//! that (`Plane::judge_switched`), a socket of the host is connected in its place, with the options that the container has set
//! ([`vswitch_core::sys::twin`]), and takes the number of the container's ([`tracee`]). Everything else goes on with the container's own
//! socket, by the network: datagrams, listening sockets, what stays inside, what is translated, denied, or not understood. So nothing
//! is refused here, and nothing needs to be switched.
//!
//! The socket is handed over when it has begun to connect. A program whose descriptor doesn't block is told EINPROGRESS; one that waits goes on
//! with its call, by the socket that it has now, and waits for the connection in its own kernel context: signals and failures
//! are told as ever, and we have nobody waiting. (One with SO_SNDTIMEO would be told EALREADY at its end, and goes by the network.)
//!
//! What is registered with an epoll set belongs to the open file and the number it was registered by (epoll_ctl(2)), and would end with the
//! container's own socket. So the host's is registered in its place, with the same events and data, under the container's number, by a thread
//! with a table of descriptors of its own ([`vswitch_core::sys::registrar`]); who modifies or removes it later finds it. A socket that has duplicates
//! isn't replaced: they would stay with the old one; nor is one that is registered in a way that can't be repeated (disarmed by EPOLLONESHOT,
//! EPOLLEXCLUSIVE). Not seen are: polls of an io_uring, a duplicate in another process, an entry under a number that was closed since.
//!
//! What is under way is asked of the kernel once a second (sock_diag(7), [`diag`]), shown with the other connections, and judged again
//! when anything is configured: what may not be any more is reset.
//!
//! # What a hostile container can do
//!
//! It has its memory, its threads and its descriptors change while it is being answered, lies about nothing else, and keeps
//! sockets of the host for as long as it likes, or gives them to others over unix sockets.
//!
//! - Addresses are read once and judged; *we* connect to what was judged. A call of a socket that we know as the host's goes on by itself only
//!   where it has begun to connect, which the kernel then tells of without looking at the address; what would disconnect, bind or listen with
//!   it is refused.
//! - A call that goes on ("continue") reads its arguments again, and its descriptor may be a socket of the host by then, put there
//!   by another thread; a process without the filter may hold one too. So each has a locked filter of its own, which lets in nothing but what its one
//!   peer sends. Connected to somebody else, as to the host's loopback, it hears no answer, not even that of a handshake. What is left
//!   to a race or an accomplice: to take a port above 1023 of the host, where nobody is heard; to send somebody a SYN, past policy and
//!   without hearing the answer (but for an ICMP error); and where services take data with a SYN without a cookie (TCP_FASTOPEN_NO_COOKIE), that.
//! - Only sockets of the namespace that the listener was handed over for are switched (SO_NETNS_COOKIE), and only where the
//!   routes of that namespace, asked of its kernel, lead to the gateway: a sandbox within the container stays closed, and its own bridges its own.
//! - What it has us register is a socket that it gets, with an epoll set that it has: nothing it couldn't do itself.
//! - What it has us read is bounded: an address, its descriptors up to a number, an epoll set up to a size. The thread waits for nobody but the
//!   worker that judges; what that says without a policy to ask is kept for a moment ([`verdicts`]).
//!
//! # What goes by the network, and why
//!
//! - Datagrams. A connected one could be had as a stream is, with the same filter; but most programs use sendto(2) on sockets that have no peer (resolvers
//!   first of all), whose every call would have to be answered, message and control data read from their memory; one filter holds one peer;
//!   and a flow has no end that the kernel tells (conntrack's timers would have to be kept by reading counters of the socket, which
//!   sock_diag(7) hasn't for UDP).
//! - Listening sockets. accept(2) of a socket of the host gives what the kernel has accepted already: the handshake is done, and the port's policy for what
//!   comes in can only be asked after. The filter is inherited, but locks to one peer, so a listener has to have none, and nobody can take back
//!   one that is in the container's hands when its port is published no longer, but by finding it and shutting it down. Published ports
//!   with `--splice` reach the container without the switch's packets already, judged one by one.
//!
//! When the daemon ends, a launcher goes on answering that everything goes by the network, and hands the listener over to the next
//! one. A runtime doesn't: without a listener the kernel answers ENOSYS to the calls of such a container, until it is started again.

mod connections;
mod diag;
pub(crate) mod oci;
mod routes;
mod server;
mod tracee;
mod verdicts;

pub use connections::SwitchingView;
pub(crate) use connections::{Connection, Shared};
pub(crate) use routes::{Routes, hand_out as routes_of, open as open_routes};

use crate::api;
use crate::refusal::{Kind, Refusal};
use std::os::fd::OwnedFd;

/// System calls that a filter has to have wait.
pub(crate) const CALLS: [libc::c_long; 3] = [libc::SYS_connect, libc::SYS_bind, libc::SYS_listen];

/// A container whose calls are answered.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Its port.
    pub(crate) port: String,
    pub(crate) fd: OwnedFd,
    /// Its routes, and by them its namespace; none: all goes by the network.
    pub(crate) routes: Option<Routes>,
}

/// Takes up a listener, and starts the thread with the first.
pub(crate) fn take_up(plane: &api::Shared, listener: Listener) -> Result<(), Refusal> {
    let failed = |e: std::io::Error| {
        let thing = format!("of port `{}`", listener.port);
        let remedy = "raise the limits of processes and open files";
        Refusal::new(
            Kind::Failed,
            "switching sockets",
            thing,
            e.to_string(),
            remedy,
        )
    };
    let shared = api::lock(plane).switching();
    shared.start(plane).map_err(failed)?;
    shared.take_up(listener);
    Ok(())
}
