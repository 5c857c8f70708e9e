//! Policy for containers whose sockets are the host's own: no packet of theirs comes by here.
//!
//! A container's connection to the outside may be made by a socket of the host from the beginning (see `switching` of the control plane).
//! Whether it may is asked here, of the worker that judges packets, and what is asked is what the connection's first packet would be
//! asked: does it lead out by the host's sockets, untranslated, and does policy accept it. Anything else is no refusal but an answer why
//! not; the connection then begins as a packet, and is refused, translated or routed as that. A rule's rate is charged for those that
//! are accepted. When anything changes, connections under way are asked about again.

use super::Gateway;
use super::dry::charge;
use super::flows::ZONE;
use super::host::HOST;
use super::judge;
use super::prefix::Mapped;
use crate::Endpoint;
use crate::conntrack::{Tuple, proto};
use crate::policy::{Action, Key, State};
use std::net::{IpAddr, SocketAddr};
use vswitch_core::bridge::Bridge;
use vswitch_core::port::PortId;
use vswitch_core::sys::source::Source;
use vswitch_core::worker::Cx;

/// A connection: from the container's address, and port if it has chosen one (0 if not), to the other end, by way of the router that the
/// container's own routes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The container's.
    pub from: SocketAddr,
    /// The other.
    pub to: SocketAddr,
    /// The container's router towards it.
    pub via: IpAddr,
}

/// That it may be made by a socket of the host.
#[derive(Clone, Debug)]
pub struct Permit {
    /// Where that is to leave from.
    pub source: Source,
    /// Any further one between the same ends may, until something is configured: there was no policy to ask.
    pub lasts: bool,
}

/// Why it isn't made by a socket of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unswitched {
    /// The port's network has no way out by the host.
    NoUplink,
    /// It doesn't go by the gateway, or no further.
    Inside,
    /// The address is translated, or is nobody's outside.
    Address,
    /// Policy denies it, or has to see its first packet for that.
    Policy,
}

impl Gateway {
    /// Whether a connection that begins at a port, or is under way, may be made by a socket of the host.
    pub fn judge_switched(
        &mut self,
        cx: &mut Cx,
        bridge: &Bridge,
        port: PortId,
        ends: Ends,
        begins: bool,
    ) -> Result<Permit, Unswitched> {
        let network = bridge.network_of(port).ok_or(Unswitched::NoUplink)?;
        let own = self.interface(network).ok_or(Unswitched::NoUplink)?;
        let host = own.config.host.as_ref().ok_or(Unswitched::NoUplink)?;
        let source = host.source.clone();
        let uplink = self.host.uplink.as_deref().ok_or(Unswitched::NoUplink)?;
        let Ends { from, to, via } = ends;
        if !own.speaks_for(via, false) || !own.on_link(from.ip()) {
            return Err(Unswitched::Inside);
        }
        if !uplink.slirp.may_switch(to.ip())
            || self.check(network, from.ip(), to.ip()).is_err()
            || self.is_own(to.ip())
            || self.is_external(Endpoint::new(to.ip(), to.port()))
            || self.stands_for_host(network, to.ip())
            || self.inside_of(to.ip()) != Mapped::Not
        {
            return Err(Unswitched::Address);
        }
        let found = self.routes.find(to.ip());
        if found.is_none_or(|(route, _)| route.network != HOST) {
            return Err(Unswitched::Inside);
        }
        let Some(policy) = self.policy.clone() else {
            let lasts = true;
            return Ok(Permit { source, lasts });
        };
        if from.port() == 0 && policy.asks_source_ports() {
            return Err(Unswitched::Policy);
        }
        let state = match begins {
            true => State::New,
            false => State::Established,
        };
        let key = Key {
            from_port: Some(port),
            from_network: Some(network),
            to_network: Some(HOST),
            ..judge::key(&Tuple::new(ZONE, proto::TCP, from, to), (0, 0), state)
        };
        let mut decision = policy.judge(&key, &self.names, cx.now);
        if begins && decision.action == Action::Accept {
            decision = charge(cx, &policy, decision, &key);
        } else if !begins && decision.action != Action::Accept {
            judge::tell(cx, &policy, decision, &key);
        }
        match decision.action {
            Action::Accept => Ok(Permit {
                source,
                lasts: false,
            }),
            Action::Drop | Action::Reject => Err(Unswitched::Policy),
        }
    }
}
