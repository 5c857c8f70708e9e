//! Connections that go the fast path: their packets are noted in sums, and their windows found again.
//!
//! # Theory of operation
//!
//! A direction of a connection has a *place* there ([`Conn::fast`]), which counts its packets. What it has counted is credited to the
//! connection from time to time ([`Conntrack::credit`]), which keeps it alive and, without a handshake, moves its state as the packets
//! themselves would have.
//!
//! The programs don't judge windows, and ours are out of date when a segment comes this way: it is the first, or begins or ends the
//! connection, or doesn't fit the fast path. Then the windows begin anew from what the place has seen last. Nothing bounds the segment
//! but for a reset, which must be exactly where one of the ends is to end the connection; another is passed on, for its receiver to judge.

use super::config::TcpOptions;
use super::conn::{FAST, SLOW, State};
use super::segment::Transport;
use super::stats::Invalid;
use super::tcp_state::{Next, Side};
use super::tuple::{Dir, proto};
use super::{Conn, ConnId, Conntrack};
use std::sync::Arc;
use vswitch_core::accel::Accelerator;
use vswitch_core::clock::Nanos;

impl Conntrack {
    /// Gives a direction of a connection a place on the fast path, or takes it away; false if the connection is no more.
    pub fn set_fast(
        &mut self,
        id: ConnId,
        dir: Dir,
        place: Option<(u16, &Arc<Accelerator>)>,
    ) -> bool {
        if let Some((_, with)) = place
            && self.fast.is_none()
        {
            self.fast = Some(with.clone());
        }
        let Some(conn) = self.table.get_mut(id) else {
            return false;
        };
        // Windows go on from there.
        if let Some(with) = &self.fast {
            catch_up(with, conn);
        }
        conn.fast[dir as usize] = place.map_or(SLOW, |(place, _)| place);
        if conn.fast == [SLOW; 2] {
            conn.flags &= !FAST;
        } else {
            conn.flags |= FAST;
        }
        true
    }

    /// Notes packets of a direction that went the fast path.
    pub fn credit(&mut self, id: ConnId, dir: Dir, (packets, bytes): (u64, u64), now: Nanos) {
        let (now, options) = (now.secs(), self.config.tcp);
        let Some(conn) = self.table.get_mut(id) else {
            return;
        };
        conn.packets[dir as usize] += packets;
        conn.bytes[dir as usize] += bytes;
        conn.seen = conn.seen.max(now);
        if conn.original.proto == proto::TCP {
            return;
        }
        let answered = dir == Dir::Reply && !conn.replied();
        if let Ok(Next::To(state)) = super::step(conn, dir, &Transport::Other, options, now)
            && (state != conn.state || answered)
        {
            self.changed(id.index, state, answered, now);
        }
    }
}

/// What a packet of a connection that may be on the fast path does to its state.
pub(super) fn step(
    with: Option<&Accelerator>,
    conn: &mut Conn,
    dir: Dir,
    transport: &Transport,
    options: TcpOptions,
    now: u32,
) -> Result<Next, Invalid> {
    let on = conn.flags & FAST != 0 && conn.state == State::Established;
    let (Some(with), true, Transport::Tcp(_)) = (with, on, transport) else {
        return super::step(conn, dir, transport, options, now);
    };
    catch_up(with, conn);
    let (us, other) = (conn.sides[dir as usize], conn.sides[dir.flip() as usize]);
    let stepped = super::step(conn, dir, transport, options, now);
    match (stepped, transport) {
        (Err(Invalid::Reset), Transport::Tcp(reset)) => {
            let exact = reset.seq == us.end || reset.seq == other.max_ack;
            Ok(Next::To(if exact { State::Closed } else { conn.state }))
        }
        (stepped, _) => stepped,
    }
}

/// Begins the windows of a TCP connection anew.
fn catch_up(with: &Accelerator, conn: &mut Conn) {
    let on = conn.flags & FAST != 0 && conn.state == State::Established;
    if !on || conn.original.proto != proto::TCP {
        return;
    }
    for dir in [Dir::Original, Dir::Reply] {
        let position = conn.fast(dir).and_then(|place| with.tcp_position(place));
        let side = &mut conn.sides[dir as usize];
        if let Some((end, ack)) = position {
            *side = Side {
                end,
                max_end: end,
                max_win: 0,
                max_ack: ack,
            };
        }
        // Not heard, as far as the other's bounds go.
        side.max_win = 0;
    }
}
