//! Policy for connections that go from the host's loopback straight into a container's namespace, past network and conntrack.
//!
//! Each is judged once, as it begins, as the same connection by the network would be: from the host's sockets and the client's
//! own address to the container's, the port there included. Only what policy accepts goes straight, and a rule's rate and count are
//! charged with it. All else takes the way by the network, where it is judged, told of and refused as usual; that is also the way
//! of the first connections to a container that isn't known yet, if a rule asks for its port. When policy changes, those under way are
//! judged again, and the ones that may not be any more are reset.

use super::Gateway;
use super::dry::charge;
use super::flows::{Way, ZONE};
use super::host::HOST;
use super::judge::{self, To};
use crate::conntrack::{Tuple, proto};
use crate::policy::{Action, Key, State};
use crate::slirp::{Fit, Straight};
use std::net::SocketAddr;
use std::time::Duration;
use vswitch_core::bridge::Bridge;
use vswitch_core::port::PortId;
use vswitch_core::worker::Cx;

/// How soon a container that doesn't say which port it is at is asked again.
const AGAIN: Duration = Duration::from_secs(1);

impl Gateway {
    /// What policy is asked; the port of the container may not be known yet, or it may be nowhere.
    fn straight_key(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        (from, to): (SocketAddr, SocketAddr),
        state: State,
    ) -> Result<Key, To> {
        let found = self.routes.find(to.ip());
        let way = found.map(|(route, hop)| Way {
            network: route.network,
            hop,
        });
        let way = way.ok_or(To::Nowhere)?;
        let needs = self.policy.as_ref().is_some_and(|p| p.needs_to_port());
        let to_port = match needs.then(|| self.port_of(cx, bridge, way)) {
            None => None,
            Some(To::Known(port)) => port,
            Some(unknown) => return Err(unknown),
        };
        let tuple = Tuple::new(ZONE, proto::TCP, from, to);
        Ok(Key {
            from_port: Some(PortId::GATEWAY),
            from_network: Some(HOST),
            to_port,
            to_network: Some(way.network),
            ..judge::key(&tuple, (0, 0), state)
        })
    }

    /// How a connection that begins may go.
    fn fit(&mut self, cx: &mut Cx, bridge: &mut Bridge, ends: (SocketAddr, SocketAddr)) -> Fit {
        let Some(policy) = self.policy.clone() else {
            return Fit::Straight;
        };
        let Ok(key) = self.straight_key(cx, bridge, ends, State::New) else {
            return Fit::Network;
        };
        let decision = policy.judge(&key, &self.names, cx.now);
        if decision.action != Action::Accept {
            return Fit::Network;
        }
        match charge(cx, &policy, decision, &key).action {
            Action::Accept => Fit::Straight,
            Action::Drop | Action::Reject => Fit::Nowhere,
        }
    }

    /// Connections that were accepted, and may go straight.
    pub(super) fn judge_straight(&mut self, cx: &mut Cx, bridge: &mut Bridge, all: Vec<Straight>) {
        for s in all {
            let how = self.fit(cx, bridge, s.ends());
            if let Some(uplink) = self.host.uplink.as_deref_mut()
                && uplink.slirp.go(cx.now, s, how)
            {
                self.host.given = true;
                cx.again();
            }
        }
    }

    /// Policy has changed: what has gone straight is judged again.
    pub fn judge_spliced(&mut self, cx: &mut Cx, bridge: &mut Bridge) {
        self.host.judges = false;
        let uplink = self.host.uplink.as_deref();
        let Some(spliced) = uplink.and_then(|u| u.slirp.spliced()) else {
            return;
        };
        let Some(policy) = self.policy.clone() else {
            return;
        };
        for (id, from, to) in spliced.all() {
            match self.straight_key(cx, bridge, (from, to), State::Established) {
                Ok(key) => {
                    let decision = policy.judge(&key, &self.names, cx.now);
                    if decision.action != Action::Accept {
                        judge::tell(cx, &policy, decision, &key);
                        spliced.end(id);
                    }
                }
                // Not condemned by that.
                Err(To::Asked) => {
                    self.host.judges = true;
                    cx.tick_by(cx.now.after(AGAIN));
                }
                Err(_) => spliced.end(id),
            }
        }
    }
}
