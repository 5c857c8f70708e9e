//! Every transition of TCP, and the bounds, segment by segment.

use super::*;

const A: u32 = 1000;
const B: u32 = u32::MAX - 100; // Wraps.

const ANY: TcpOptions = TcpOptions {
    pickup: true,
    liberal: false,
};

/// A segment by flags (S, F, R, A) and numbers; the window is 1000.
fn seg(flags: &str, seq: u32, ack: u32, len: u32) -> TcpSegment {
    let bit = |c| match c {
        'S' => flag::SYN,
        'F' => flag::FIN,
        'R' => flag::RST,
        'A' => flag::ACK,
        _ => panic!("no flag {c}"),
    };
    TcpSegment {
        flags: flags.chars().map(bit).sum(),
        seq,
        ack,
        window: 1000,
        len,
        scale: None,
    }
}

/// A connection as the middle sees it.
struct Middle {
    tcp: Tcp,
    state: State,
    options: TcpOptions,
}

impl Middle {
    fn new(first: TcpSegment, options: TcpOptions) -> Middle {
        let (tcp, state) = Tcp::first(&first, options).expect("opens");
        Middle {
            tcp,
            state,
            options,
        }
    }

    fn say(&mut self, dir: Dir, seg: TcpSegment) -> Result<State, Invalid> {
        let before = self.tcp;
        let next = self.tcp.advance(self.state, dir, &seg, self.options);
        match next {
            Ok(Next::To(state)) => self.state = state,
            Ok(Next::Reopen) => return Ok(State::SynSent),
            Err(_) => assert_eq!(self.tcp, before, "what is refused leaves no trace"),
        }
        next.map(|_| self.state)
    }

    /// From the original side, numbers relative to A and B.
    fn a(&mut self, flags: &str, seq: u32, ack: u32, len: u32) -> Result<State, Invalid> {
        let (seq, ack) = (A.wrapping_add(seq), B.wrapping_add(ack));
        self.say(Dir::Original, self::seg(flags, seq, ack, len))
    }

    /// From the reply side.
    fn b(&mut self, flags: &str, seq: u32, ack: u32, len: u32) -> Result<State, Invalid> {
        let (seq, ack) = (B.wrapping_add(seq), A.wrapping_add(ack));
        self.say(Dir::Reply, self::seg(flags, seq, ack, len))
    }
}

fn syn_sent() -> Middle {
    Middle::new(seg("S", A, 0, 0), ANY)
}

/// Both have sent 100 bytes and acknowledged them.
fn established() -> Middle {
    let mut m = syn_sent();
    assert_eq!(m.b("SA", 0, 1, 0), Ok(State::SynRecv));
    assert_eq!(m.a("A", 1, 1, 0), Ok(State::Established));
    assert_eq!(m.a("A", 1, 1, 100), Ok(State::Established));
    assert_eq!(m.b("A", 1, 101, 100), Ok(State::Established));
    assert_eq!(m.a("A", 101, 101, 0), Ok(State::Established));
    m
}

#[test]
fn a_whole_life() {
    let mut m = established();
    assert_eq!(m.a("FA", 101, 101, 0), Ok(State::FinWait));
    assert_eq!(m.b("A", 101, 102, 0), Ok(State::CloseWait));
    assert_eq!(m.b("FA", 101, 102, 0), Ok(State::LastAck));
    assert_eq!(m.a("A", 102, 102, 0), Ok(State::TimeWait));
    assert_eq!(m.b("FA", 101, 102, 0), Ok(State::TimeWait), "sent again");
    assert_eq!(
        m.tcp
            .advance(m.state, Dir::Original, &seg("S", 5, 0, 0), ANY),
        Ok(Next::Reopen)
    );
}

#[test]
fn half_closed_the_other_side_goes_on() {
    let mut m = established();
    assert_eq!(m.b("FA", 101, 101, 0), Ok(State::FinWait));
    assert_eq!(m.a("A", 101, 102, 0), Ok(State::CloseWait));
    for n in 0..20 {
        assert_eq!(m.a("A", 101 + n * 500, 102, 500), Ok(State::CloseWait));
        assert_eq!(m.b("A", 102, 601 + n * 500, 0), Ok(State::CloseWait));
    }
    assert_eq!(m.a("FA", 10_101, 102, 0), Ok(State::LastAck));
    assert_eq!(m.b("A", 102, 10_102, 0), Ok(State::TimeWait));
}

#[test]
fn both_close_at_once() {
    let mut m = established();
    assert_eq!(m.a("FA", 101, 101, 10), Ok(State::FinWait));
    assert_eq!(m.b("FA", 101, 101, 10), Ok(State::LastAck));
    assert_eq!(m.a("A", 112, 112, 0), Ok(State::LastAck));
    assert_eq!(m.b("A", 112, 112, 0), Ok(State::TimeWait));
}

#[test]
fn a_fin_with_acknowledgement_of_the_other() {
    let mut m = established();
    assert_eq!(m.a("FA", 101, 101, 0), Ok(State::FinWait));
    assert_eq!(m.b("FA", 101, 102, 0), Ok(State::LastAck));
    assert_eq!(m.a("A", 102, 102, 0), Ok(State::TimeWait));
}

#[test]
fn simultaneous_open() {
    // RFC 9293 figure 8.
    let mut m = syn_sent();
    assert_eq!(m.b("S", 0, 0, 0), Ok(State::SynSent2));
    assert_eq!(m.b("S", 0, 0, 0), Ok(State::SynSent2), "sent again");
    assert_eq!(m.a("SA", 0, 1, 0), Ok(State::SynRecv));
    assert_eq!(m.b("SA", 0, 1, 0), Ok(State::Established));
    assert_eq!(m.a("A", 1, 1, 100), Ok(State::Established));
    // The other order, with plain acknowledgements.
    let mut m = syn_sent();
    assert_eq!(m.b("S", 0, 0, 0), Ok(State::SynSent2));
    assert_eq!(m.b("SA", 0, 2, 0), Err(Invalid::Window), "not sent");
    assert_eq!(m.b("SA", 0, 1, 0), Ok(State::SynRecv));
    assert_eq!(m.a("A", 1, 1, 0), Ok(State::Established));
}

#[test]
fn opening_takes_exact_acknowledgements() {
    let mut m = syn_sent();
    assert_eq!(m.b("SA", 0, 0, 0), Err(Invalid::Window));
    assert_eq!(m.b("SA", 0, 2, 0), Err(Invalid::Window));
    assert_eq!(m.b("A", 0, 77, 0), Ok(State::SynSent), "a challenge passes");
    assert_eq!(m.a("R", 77, 0, 0), Ok(State::SynSent), "and its answer");
    assert_eq!(m.b("A", 1, 1, 5), Err(Invalid::State));
    assert_eq!(m.a("SA", 0, 0, 0), Err(Invalid::State));
    assert_eq!(m.b("SA", 0, 1, 0), Ok(State::SynRecv));
    // A spoofed source doesn't know B.
    assert_eq!(m.a("A", 1, 0, 0), Err(Invalid::Window));
    assert_eq!(m.a("A", 1, 2, 0), Err(Invalid::Window));
    assert_eq!(m.b("SA", 0, 1, 0), Ok(State::SynRecv), "sent again");
    assert_eq!(m.a("S", 0, 0, 0), Ok(State::SynRecv), "sent again");
    // A SYN cookie of the next minute.
    assert_eq!(m.b("SA", 50, 1, 0), Ok(State::SynRecv));
    assert_eq!(m.a("A", 1, 1, 0), Err(Invalid::Window));
    assert_eq!(m.a("FA", 1, 51, 9), Ok(State::FinWait), "all at once");
    assert_eq!(m.b("SA", 50, 1, 0), Ok(State::FinWait), "passes late");
}

#[test]
fn a_new_attempt_with_the_same_tuple() {
    let mut m = syn_sent();
    assert_eq!(m.a("S", 5000, 0, 0), Ok(State::SynSent));
    assert_eq!(m.b("SA", 0, 1, 0), Err(Invalid::Window));
    assert_eq!(m.b("SA", 0, 5001, 0), Ok(State::SynRecv));
}

#[test]
fn fast_open_data_may_be_acknowledged_or_not() {
    for (ack, len) in [(1, 0), (51, 0), (51, 500)] {
        let mut m = Middle::new(seg("S", A, 0, 50), ANY);
        assert_eq!(m.b("SA", 0, ack, len), Ok(State::SynRecv));
        // The server sends on before the handshake is finished.
        assert_eq!(m.b("A", 1 + len, ack, 400), Ok(State::SynRecv));
        assert_eq!(m.a("A", ack, 1 + len + 400, 0), Ok(State::Established));
    }
}

#[test]
fn a_refused_connection() {
    let mut m = syn_sent();
    assert_eq!(m.b("R", 0, 0, 0), Err(Invalid::Reset), "blind");
    assert_eq!(m.b("RA", 0, 5, 0), Err(Invalid::Reset), "blind");
    assert_eq!(m.b("RA", 0, 1, 0), Ok(State::Closed));
    assert_eq!(m.b("SA", 0, 1, 0), Err(Invalid::State));
    assert_eq!(m.a("S", 9, 0, 0), Ok(State::SynSent), "reopens");
}

#[test]
fn a_reset_counts_where_it_is_expected() {
    // B expects 101 next, and has room for 1000.
    for (seq, want) in [
        (101, Ok(State::Closed)),
        (102, Ok(State::Established)),
        (1101, Ok(State::Established)),
        (1102, Err(Invalid::Reset)),
        (200_000, Err(Invalid::Reset)),
        (u32::MAX - 5000, Err(Invalid::Reset)),
    ] {
        let mut m = established();
        assert_eq!(m.a("R", seq, 0, 0), want, "{seq}");
        let mut m = established();
        assert_eq!(m.b("RA", seq, 77, 0), want, "{seq}");
    }
    // After data that isn't acknowledged yet it is at the end of it.
    let mut m = established();
    assert_eq!(m.a("A", 101, 101, 300), Ok(State::Established));
    assert_eq!(m.a("RA", 401, 101, 0), Ok(State::Closed));
    assert_eq!(
        m.b("A", 101, 401, 0),
        Ok(State::Closed),
        "on its way already"
    );
    // Also where windows don't matter.
    let mut m = established();
    m.options.liberal = true;
    assert_eq!(m.a("R", 5000, 0, 0), Err(Invalid::Reset));
    let mut m = syn_sent();
    assert_eq!(m.b("SA", 0, 1, 0), Ok(State::SynRecv));
    assert_eq!(m.a("R", 1, 0, 0), Ok(State::Closed), "gave up");
}

#[test]
fn who_has_restarted_is_challenged() {
    let mut m = established();
    assert_eq!(m.a("S", 777_777, 0, 0), Ok(State::Established));
    assert_eq!(
        m.b("A", 101, 101, 0),
        Ok(State::Established),
        "the challenge"
    );
    assert_eq!(m.a("R", 101, 0, 0), Ok(State::Closed), "what it asked for");
    assert_eq!(m.a("S", 777_777, 0, 0), Ok(State::SynSent));
}

#[test]
fn data_out_of_the_window_is_refused() {
    // A has sent and B acknowledged up to 101, both offer 1000.
    for (seq, len, fits) in [
        (1101i32, 0, true), // Bound 1.
        (1102, 0, false),
        (-899, 0, true), // Bound 2.
        (-900, 0, false),
        (-999, 100, true),
        (-1000, 100, false),
    ] {
        let mut m = established();
        let want = if fits {
            Ok(State::Established)
        } else {
            Err(Invalid::Window)
        };
        assert_eq!(m.a("A", seq as u32, 101, len), want, "{seq}");
    }
    for (ack, want) in [
        (101, Ok(State::Established)),
        (102, Err(Invalid::Window)), // Bound 3.
        (101u32.wrapping_sub(66_000), Ok(State::Established)),
        (101u32.wrapping_sub(66_001), Err(Invalid::Window)), // Bound 4.
    ] {
        let mut m = established();
        assert_eq!(m.a("A", 101, ack, 0), want, "{ack}");
    }
    let mut m = established();
    m.options.liberal = true;
    let before = m.tcp;
    assert_eq!(m.a("A", 900_000, 101, 10), Ok(State::Established));
    assert_eq!(m.tcp, before, "passes unnoted");
}

#[test]
fn keep_alives_and_probes_of_a_closed_window() {
    let mut m = established();
    assert_eq!(m.a("A", 100, 101, 0), Ok(State::Established), "keep-alive");
    assert_eq!(m.a("A", 100, 101, 1), Ok(State::Established));
    assert_eq!(m.b("A", 101, 101, 0), Ok(State::Established));
    let mut closed = seg("A", B.wrapping_add(101), A + 1101, 0);
    closed.window = 0;
    assert_eq!(m.a("A", 101, 101, 1000), Ok(State::Established));
    assert_eq!(m.say(Dir::Reply, closed), Ok(State::Established));
    assert_eq!(m.a("A", 1101, 101, 1), Ok(State::Established), "probe");
    assert_eq!(m.say(Dir::Reply, closed), Ok(State::Established));
}

#[test]
fn windows_are_scaled_if_both_offer_it() {
    for (a, b, scaled) in [
        (Some(3), Some(7), true),
        (Some(3), None, false),
        (None, Some(7), false),
    ] {
        let mut syn = seg("S", A, 0, 0);
        syn.scale = a;
        let mut m = Middle::new(syn, ANY);
        let mut syn_ack = seg("SA", B, A + 1, 0);
        syn_ack.scale = b;
        assert_eq!(m.say(Dir::Reply, syn_ack), Ok(State::SynRecv));
        assert_eq!(m.a("A", 1, 1, 0), Ok(State::Established));
        // The window of a SYN never is; this one is.
        assert_eq!(m.b("A", 1, 1, 0), Ok(State::Established));
        let far = m.a("A", 1 + 1000 * 128, 1, 10);
        assert_eq!(far.is_ok(), scaled, "{a:?} {b:?}");
        let too_far = m.a("A", 2 + 1010 * 128, 1, 10);
        assert_eq!(too_far, Err(Invalid::Window));
        let back = m.b("A", 1 + 1000 * 8, 1, 10);
        assert_eq!(back.is_ok(), scaled);
    }
}

#[test]
fn taken_up_in_the_middle() {
    let mut m = Middle::new(seg("A", A + 5000, B.wrapping_add(700), 100), ANY);
    assert_eq!(m.state, State::Established);
    // One side alone, as on asymmetric routes.
    assert_eq!(m.a("A", 5100, 9000, 64_000), Ok(State::Established));
    // The other: its scale is unknown.
    assert_eq!(m.b("A", 9000, 5100, 60_000), Ok(State::Established));
    assert_eq!(m.a("A", 69_100, 69_000, 0), Ok(State::Established));
    assert_eq!(m.b("R", 1 << 29, 0, 0), Err(Invalid::Reset));
    assert_eq!(m.b("FA", 69_000, 69_100, 0), Ok(State::FinWait));
    assert_eq!(m.a("RA", 69_100, 69_001, 0), Ok(State::Closed));
    let strict = TcpOptions {
        pickup: false,
        ..ANY
    };
    let first = |flags, options| Tcp::first(&seg(flags, A, B, 0), options).err();
    assert_eq!(first("A", strict), Some(Invalid::NotSyn));
    for flags in ["SA", "FA", "R", "RA"] {
        assert_eq!(first(flags, ANY), Some(Invalid::NotSyn), "{flags}");
    }
}

#[test]
fn seen_one_way_from_the_start() {
    let mut m = syn_sent();
    assert_eq!(m.a("A", 1, 1, 0), Ok(State::Established));
    assert_eq!(m.a("A", 1, 1, 500), Ok(State::Established));
    assert_eq!(m.a("A", 501, 40_000, 500), Ok(State::Established));
    assert_eq!(m.a("FA", 1001, 40_000, 0), Ok(State::FinWait));
    // The other way after all.
    assert_eq!(m.b("A", 40_000, 1002, 0), Ok(State::CloseWait));
    let mut m = syn_sent();
    m.options.pickup = false;
    assert_eq!(m.a("A", 1, 1, 0), Err(Invalid::State));
}

#[test]
fn flags_without_sense() {
    for flags in ["", "F", "SF", "SFA", "SR", "FR", "SFRA", "RFA"] {
        let mut m = established();
        assert_eq!(m.a(flags, 101, 101, 0), Err(Invalid::Flags), "{flags}");
        let first = Tcp::first(&seg(flags, A, 0, 0), ANY);
        assert_eq!(first.err(), Some(Invalid::Flags), "{flags}");
    }
}

#[test]
fn a_quoted_segment_is_under_way_or_not() {
    let mut m = established();
    assert_eq!(m.a("A", 101, 101, 300), Ok(State::Established));
    let quoted = |seq: u32| m.tcp.in_flight(Dir::Original, A.wrapping_add(seq));
    assert!(!quoted(100) && quoted(101) && quoted(400) && !quoted(402));
}

#[test]
fn a_long_transfer_in_frames_of_64_kib_with_losses() {
    let mut syn = seg("S", A, 0, 0);
    syn.scale = Some(7);
    let mut m = Middle::new(syn, ANY);
    let mut syn_ack = seg("SA", B, A + 1, 0);
    syn_ack.scale = Some(7);
    assert_eq!(m.say(Dir::Reply, syn_ack), Ok(State::SynRecv));
    assert_eq!(m.a("A", 1, 1, 0), Ok(State::Established));
    let (mut una, mut next) = (1u32, 1u32);
    // Wraps: 6 GB.
    for round in 0..120_000u64 {
        let room = una.wrapping_add(1000 << 7).wrapping_sub(next);
        if room >= 50_000 {
            assert_eq!(m.a("A", next, 1, 50_000), Ok(State::Established), "{round}");
            next = next.wrapping_add(50_000);
        }
        if round % 7 == 0 {
            // Sent again from the first that isn't acknowledged.
            assert_eq!(m.a("A", una, 1, 1448), Ok(State::Established), "{round}");
        }
        if round % 3 == 0 {
            assert_eq!(m.b("A", 1, una, 0), Ok(State::Established), "{round}");
            una = next;
        }
        assert_eq!(m.b("A", 1, una, 0), Ok(State::Established), "{round}");
    }
}
