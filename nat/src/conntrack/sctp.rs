//! SCTP as the middle sees it: handshake, established, over (RFC 9260).
//!
//! Only the first chunk of a packet is looked at. Verification tags keep blind senders out: each side announces in INIT or INIT ACK
//! the tag it expects, so the middle knows which one the other side's packets must bear. A peer that restarts announces a new one
//! over the old association; both are taken until its COOKIE ECHO.

use super::config::TcpOptions;
use super::conn::State;
use super::segment::SctpChunk;
use super::stats::Invalid;
use super::tcp_state::{Next, Side};
use super::tuple::Dir;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Flag of ABORT and SHUTDOWN COMPLETE: the tag is the sender's own (RFC 9260 section 8.5.1).
const REFLECTED: u8 = 1;

/// The first packet of an association.
pub(super) fn first(chunk: &SctpChunk, options: TcpOptions) -> Result<([Side; 2], State), Invalid> {
    let mut sides = [Side::default(); 2];
    match chunk.kind {
        INIT if chunk.vtag == 0 && chunk.tag != 0 => {
            announce(&mut sides[0], chunk.tag);
            Ok((sides, State::Opening))
        }
        INIT => Err(Invalid::Tag),
        INIT_ACK | ABORT | SHUTDOWN | SHUTDOWN_ACK | COOKIE_ACK | SHUTDOWN_COMPLETE => {
            Err(Invalid::NotInit)
        }
        _ if !options.pickup => Err(Invalid::NotInit),
        _ => {
            announce(&mut sides[1], chunk.vtag);
            Ok((sides, State::Established))
        }
    }
}

/// A packet of an association in `state`. An error leaves everything as it was.
pub(super) fn advance(
    sides: &mut [Side; 2],
    state: State,
    dir: Dir,
    chunk: &SctpChunk,
) -> Result<Next, Invalid> {
    let (us, other) = (dir as usize, dir.flip() as usize);
    if chunk.kind == INIT {
        if chunk.vtag != 0 || chunk.tag == 0 {
            return Err(Invalid::Tag);
        }
        if state == State::Shutdown {
            return Ok(Next::Reopen);
        }
        if state == State::Opening {
            announce(&mut sides[us], chunk.tag);
        } else {
            sides[us].max_ack = chunk.tag;
        }
        return Ok(Next::To(state));
    }
    let reflected = matches!(chunk.kind, ABORT | SHUTDOWN_COMPLETE) && chunk.flags & REFLECTED != 0;
    let bears = if reflected { us } else { other };
    if sides[bears].max_win == 0 {
        announce(&mut sides[bears], chunk.vtag);
    } else if !expects(sides[bears], chunk.vtag) {
        return Err(Invalid::Tag);
    }
    Ok(Next::To(match chunk.kind {
        INIT_ACK => {
            if state == State::Opening {
                announce(&mut sides[us], chunk.tag);
            } else {
                sides[us].max_ack = chunk.tag;
            }
            state
        }
        COOKIE_ECHO => {
            // The restarted association takes the place of the old one.
            if chunk.vtag == sides[other].max_ack {
                for side in sides.iter_mut().filter(|s| s.max_ack != 0) {
                    announce(side, side.max_ack);
                }
            }
            state
        }
        COOKIE_ACK if state == State::Opening => State::Established,
        ABORT | SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE => State::Shutdown,
        _ => state,
    }))
}

fn announce(side: &mut Side, tag: u32) {
    *side = Side {
        end: tag,
        max_win: 1,
        ..Side::default()
    };
}

fn expects(side: Side, tag: u32) -> bool {
    side.end == tag || (side.max_ack != 0 && side.max_ack == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: u8, vtag: u32, tag: u32) -> SctpChunk {
        SctpChunk {
            vtag,
            kind,
            flags: 0,
            tag,
        }
    }

    /// Plays packets of an association; the state after each.
    fn play(packets: &[(Dir, SctpChunk)]) -> Vec<Result<Next, Invalid>> {
        let (mut sides, mut state) = first(&packets[0].1, TcpOptions::default()).expect("opens");
        packets[1..]
            .iter()
            .map(|(dir, chunk)| {
                let next = advance(&mut sides, state, *dir, chunk);
                if let Ok(Next::To(s)) = next {
                    state = s;
                }
                next
            })
            .collect()
    }

    const HANDSHAKE: [(Dir, SctpChunk); 4] = [
        (
            Dir::Original,
            SctpChunk {
                vtag: 0,
                kind: INIT,
                flags: 0,
                tag: 10,
            },
        ),
        (
            Dir::Reply,
            SctpChunk {
                vtag: 10,
                kind: INIT_ACK,
                flags: 0,
                tag: 20,
            },
        ),
        (
            Dir::Original,
            SctpChunk {
                vtag: 20,
                kind: COOKIE_ECHO,
                flags: 0,
                tag: 0,
            },
        ),
        (
            Dir::Reply,
            SctpChunk {
                vtag: 10,
                kind: COOKIE_ACK,
                flags: 0,
                tag: 0,
            },
        ),
    ];

    #[test]
    fn association_up_down_and_up_again() {
        let mut all = HANDSHAKE.to_vec();
        all.extend([
            (Dir::Original, chunk(0, 20, 0)),
            (Dir::Original, chunk(SHUTDOWN, 20, 0)),
            (Dir::Reply, chunk(SHUTDOWN_ACK, 10, 0)),
            (Dir::Original, chunk(SHUTDOWN_COMPLETE, 20, 0)),
            (Dir::Original, chunk(INIT, 0, 11)),
        ]);
        use State::*;
        let to = |s| Ok(Next::To(s));
        assert_eq!(
            play(&all),
            [
                to(Opening),
                to(Opening),
                to(Established),
                to(Established),
                to(Shutdown),
                to(Shutdown),
                to(Shutdown),
                Ok(Next::Reopen)
            ]
        );
    }

    #[test]
    fn a_blind_abort_is_refused_a_reflected_one_taken() {
        let mut all = HANDSHAKE.to_vec();
        all.push((Dir::Reply, chunk(ABORT, 77, 0)));
        all.push((Dir::Original, chunk(ABORT, 10, 0)));
        all.push((
            Dir::Original,
            SctpChunk {
                flags: REFLECTED,
                ..chunk(ABORT, 10, 0)
            },
        ));
        let did = play(&all);
        assert_eq!(did[3..5], [Err(Invalid::Tag); 2]);
        assert_eq!(did[5], Ok(Next::To(State::Shutdown)));
    }

    #[test]
    fn a_peer_restarts() {
        let mut all = HANDSHAKE.to_vec();
        all.extend([
            (Dir::Reply, chunk(INIT, 0, 30)),
            (Dir::Original, chunk(0, 20, 0)),
            (Dir::Original, chunk(INIT_ACK, 30, 40)),
            (Dir::Reply, chunk(COOKIE_ECHO, 40, 0)),
            (Dir::Original, chunk(COOKIE_ACK, 30, 0)),
            (Dir::Reply, chunk(0, 40, 0)),
            (Dir::Original, chunk(0, 20, 0)),
        ]);
        let did = play(&all);
        assert!(
            did[3..9]
                .iter()
                .all(|n| *n == Ok(Next::To(State::Established)))
        );
        assert_eq!(did[9], Err(Invalid::Tag), "the old tag is over");
    }

    #[test]
    fn taken_up_in_the_middle_or_not() {
        let options = TcpOptions::default();
        assert!(first(&chunk(0, 5, 0), options).is_ok());
        let strict = TcpOptions {
            pickup: false,
            ..options
        };
        assert_eq!(first(&chunk(0, 5, 0), strict), Err(Invalid::NotInit));
        assert_eq!(first(&chunk(ABORT, 5, 0), options), Err(Invalid::NotInit));
        assert_eq!(first(&chunk(INIT, 5, 1), options), Err(Invalid::Tag));
        let mut sides = first(&chunk(0, 5, 0), options).expect("taken up").0;
        let mut say = |dir, vtag| advance(&mut sides, State::Established, dir, &chunk(0, vtag, 0));
        assert!(say(Dir::Original, 5).is_ok() && say(Dir::Reply, 6).is_ok());
        assert_eq!(say(Dir::Reply, 5), Err(Invalid::Tag));
    }
}
