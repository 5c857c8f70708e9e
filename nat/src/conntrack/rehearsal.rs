//! What tracking would tell of a packet that is only asked about: the same judgement, and nothing is noted.

use super::tcp_state::Next;
use super::{ConfirmError, Conntrack, Packet, Pending, Track, Tuple, fast, hit};
use vswitch_core::clock::Nanos;

impl Conntrack {
    /// What [`Conntrack::track`] would tell. Changes nothing.
    #[must_use]
    pub fn rehearse(&self, packet: &Packet, now: Nanos) -> Track {
        let (now, hash) = (now.secs(), self.table.hash(&packet.tuple));
        if let Some((at, dir)) = self.table.find(hash, &packet.tuple)
            && let Some(mut conn) = self.table.conns.get(at as usize).copied()
        {
            let (with, tcp) = (self.fast.as_deref(), self.config.tcp);
            match fast::step(with, &mut conn, dir, &packet.transport, tcp, now) {
                Ok(Next::To(state)) => return Track::Hit(hit(&conn, at, dir, state)),
                Ok(Next::Reopen) => {}
                Err(reason) => return Track::Invalid(reason),
            }
        }
        match self.begin(packet, hash, now) {
            Ok(pending) => Track::New(pending),
            Err(reason) => Track::Invalid(reason),
        }
    }

    /// Whether [`Conntrack::confirm`] would enter a connection, another giving way if need be. Changes nothing.
    pub fn would_confirm(&self, pending: &Pending, reply: &Tuple) -> Result<(), ConfirmError> {
        // One with the same first tuple is over, or the packet were no new connection's.
        let over = self.table.find(pending.hash, pending.tuple());
        let taken = self.table.find(self.table.hash(reply), reply);
        if taken.is_some_and(|(at, _)| over.is_none_or(|(old, _)| old != at)) {
            return Err(ConfirmError::Clash);
        }
        if self.is_source_full(pending.tuple()) {
            return Err(ConfirmError::SourceLimit);
        }
        if self.table.is_full() && over.is_none() && !self.can_evict() {
            return Err(ConfirmError::Full);
        }
        Ok(())
    }
}
