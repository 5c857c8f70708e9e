//! Port mirroring: copies of frames to a target port.
//!
//! Every port knows the sessions that watch it, so that a port nobody watches costs nothing.

use super::{MirrorConfig, MirrorId, MirrorSource, NetworkId};
use crate::frame::{Frame, VnetHdr};
use crate::port::PortId;
use crate::worker::{Cx, Origin};

/// Where copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tap {
    target: PortId,
    truncate: Option<u16>,
}

impl Tap {
    /// Sends a copy of the frame to the target.
    pub(super) fn copy(self, cx: &mut Cx, frame: &Frame) {
        let mut copy = frame.duplicate();
        if let Some(len) = self.truncate
            && copy.len() > usize::from(len)
        {
            copy.truncate(usize::from(len).max(14));
            // What was left to be done can't be done on a part.
            copy.vnet = VnetHdr::default();
        }
        cx.emit(self.target, copy, Origin::Copy);
    }
}

/// Which side of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Mirrors(Vec<(MirrorId, MirrorConfig)>);

impl Mirrors {
    pub(super) fn set(&mut self, id: MirrorId, config: MirrorConfig) {
        self.remove(id);
        self.0.push((id, config));
    }

    pub(super) fn remove(&mut self, id: MirrorId) -> bool {
        let before = self.0.len();
        self.0.retain(|(i, _)| *i != id);
        self.0.len() < before
    }

    /// The sessions that watch a port; a target isn't watched by its own session.
    pub(super) fn of_port(&self, watched: PortId, side: Side) -> Vec<Tap> {
        self.taps(|c| {
            c.target != watched
                && c.sources.iter().any(|s| {
                    matches!(*s, MirrorSource::Port { port, ingress, egress }
                        if port == watched && if side == Side::Ingress { ingress } else { egress })
                })
        })
    }

    /// The sessions that watch VLANs of a network.
    pub(super) fn of_network(&self, watched: NetworkId) -> Vec<(u16, Tap)> {
        let mut all = Vec::new();
        for (_, c) in &self.0 {
            for s in &c.sources {
                if let MirrorSource::Vlan { network, vid } = *s
                    && network == watched
                {
                    let tap = Tap {
                        target: c.target,
                        truncate: c.truncate,
                    };
                    all.push((vid, tap));
                }
            }
        }
        all
    }

    fn taps(&self, watches: impl Fn(&MirrorConfig) -> bool) -> Vec<Tap> {
        let some = self.0.iter().filter(|(_, c)| watches(c));
        some.map(|(_, c)| Tap {
            target: c.target,
            truncate: c.truncate,
        })
        .collect()
    }

    /// Whether the port is kept out of flooding.
    pub(super) fn silences(&self, port: PortId) -> bool {
        self.0
            .iter()
            .any(|(_, c)| c.target == port && !c.target_floods)
    }
}
