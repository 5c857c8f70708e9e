//! How long a connection may be idle, by what is known of it.
//!
//! The defaults keep the requirements on NATs: RFC 4787 (UDP), RFC 5382 (TCP), RFC 5508 (ICMP), and RFC 7857, which updates all
//! three. Each can be set, at run time as well; [`Timeout::floor`] tells below what a value breaks a requirement, which is
//! the operator's choice to make.

use super::conn::State;
use super::tuple::{Tuple, proto};

/// How readily a connection is given up when the table is full, most readily first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Nothing has come back, or a handshake isn't finished: what floods are made of.
    Embryonic,
    /// Both ends have closed, or one has reset.
    Closing,
    /// Answered, but no lasting exchange: a DNS query, a ping.
    Replied,
    /// Established, or a stream of datagrams both ways.
    Assured,
}

/// Number of classes.
pub const CLASSES: usize = 4;

impl Class {
    /// All, in the order of eviction.
    pub const ALL: [Class; CLASSES] = [
        Class::Embryonic,
        Class::Closing,
        Class::Replied,
        Class::Assured,
    ];
}

macro_rules! timeouts {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $class:ident, $default:literal, $floor:literal;)*) => {
        /// What a timeout is for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Timeout { $($(#[$doc])* $name,)* }

        impl Timeout {
            /// All of them.
            pub const ALL: &'static [Timeout] = &[$(Timeout::$name,)*];

            /// Its name in configuration.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Timeout::$name => $text,)* }
            }

            /// How readily connections with this timeout are evicted.
            #[must_use]
            pub fn class(self) -> Class {
                match self { $(Timeout::$name => Class::$class,)* }
            }

            /// The default, seconds.
            #[must_use]
            pub fn default_secs(self) -> u32 {
                match self { $(Timeout::$name => $default,)* }
            }

            /// Least number of seconds that the RFCs allow; 1 where they ask for nothing.
            #[must_use]
            pub fn floor(self) -> u32 {
                match self { $(Timeout::$name => $floor,)* }
            }
        }
    };
}

timeouts! {
    /// TCP, handshake not finished. RFC 5382 REQ-5: transitory, not less than 4 minutes.
    TcpPartial = "tcp-partial", Embryonic, 240, 240;
    /// TCP, seen one way only: taken up in the middle, or routed asymmetrically. Transitory.
    TcpOneWay = "tcp-one-way", Embryonic, 240, 240;
    /// TCP, established. RFC 5382 REQ-5: not less than 2 hours 4 minutes.
    TcpEstablished = "tcp-established", Assured, 7440, 7440;
    /// TCP, one side has closed and the other may go on sending: not yet the closing phase of RFC 5382, so as established.
    TcpHalfClosed = "tcp-half-closed", Assured, 7440, 7440;
    /// TCP, both sides have closed, not all acknowledged. Transitory.
    TcpClosing = "tcp-closing", Closing, 240, 240;
    /// TCP, both sides have closed and acknowledged. Transitory.
    TcpTimeWait = "tcp-time-wait", Closing, 240, 240;
    /// TCP, reset. RFC 7857 section 2.2: wait 4 minutes before forgetting.
    TcpReset = "tcp-reset", Closing, 240, 240;
    /// UDP, no answer yet, to a port below 1024. RFC 4787 REQ-5a: may be shorter there.
    UdpWellKnown = "udp-well-known", Embryonic, 30, 1;
    /// UDP, no answer yet. RFC 4787 REQ-5: not less than 2 minutes.
    UdpUnreplied = "udp-unreplied", Embryonic, 120, 120;
    /// UDP, answered. RFC 4787 REQ-5.
    UdpReplied = "udp-replied", Replied, 120, 120;
    /// UDP, both ways for longer than a query takes. RFC 4787 REQ-5c: 5 minutes or more recommended.
    UdpStream = "udp-stream", Assured, 300, 120;
    /// ICMP query, no answer yet. RFC 5508 REQ-2: not less than 60 seconds.
    IcmpUnreplied = "icmp-unreplied", Embryonic, 60, 60;
    /// ICMP query, answered. RFC 5508 REQ-2.
    IcmpReplied = "icmp-replied", Replied, 60, 60;
    /// SCTP, association not established. As TCP.
    SctpOpening = "sctp-opening", Embryonic, 240, 1;
    /// SCTP, established. As TCP.
    SctpEstablished = "sctp-established", Assured, 7440, 1;
    /// SCTP, shut down or aborted. As TCP.
    SctpClosing = "sctp-closing", Closing, 240, 1;
    /// Other protocols, no answer yet.
    OtherUnreplied = "other-unreplied", Embryonic, 120, 1;
    /// Other protocols, answered.
    OtherReplied = "other-replied", Replied, 120, 1;
    /// Other protocols, a lasting exchange.
    OtherStream = "other-stream", Assured, 600, 1;
}

/// Number of timeouts.
pub(super) const TIMEOUTS: usize = Timeout::ALL.len();

/// All timeouts, in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts([u32; TIMEOUTS]);

impl Default for Timeouts {
    fn default() -> Self {
        let mut all = [0; TIMEOUTS];
        for &t in Timeout::ALL {
            all[t as usize] = t.default_secs();
        }
        Timeouts(all)
    }
}

impl Timeouts {
    /// Seconds.
    #[must_use]
    pub fn get(&self, which: Timeout) -> u32 {
        self.0[which as usize]
    }

    /// Sets one; a timeout is a second at least.
    pub fn set(&mut self, which: Timeout, secs: u32) {
        self.0[which as usize] = secs.max(1);
    }

    /// With one set.
    #[must_use]
    pub fn with(mut self, which: Timeout, secs: u32) -> Timeouts {
        self.set(which, secs);
        self
    }
}

/// The timeout of a connection by its original tuple, its state, and whether anything has come back.
pub(super) fn timeout_of(original: &Tuple, state: State, replied: bool) -> Timeout {
    use State as S;
    match (original.proto, state) {
        (proto::TCP, S::SynSent | S::SynSent2 | S::SynRecv) => Timeout::TcpPartial,
        (proto::TCP, S::Established | S::FinWait | S::CloseWait) if !replied => Timeout::TcpOneWay,
        (proto::TCP, S::FinWait | S::CloseWait) => Timeout::TcpHalfClosed,
        (proto::TCP, S::LastAck) => Timeout::TcpClosing,
        (proto::TCP, S::TimeWait) => Timeout::TcpTimeWait,
        (proto::TCP, S::Closed) => Timeout::TcpReset,
        (proto::TCP, _) => Timeout::TcpEstablished,
        (proto::SCTP, S::Shutdown) => Timeout::SctpClosing,
        (proto::SCTP, S::Established) if replied => Timeout::SctpEstablished,
        (proto::SCTP, _) => Timeout::SctpOpening,
        (proto::UDP, S::Stream) => Timeout::UdpStream,
        (proto::UDP, S::Replied) => Timeout::UdpReplied,
        (proto::UDP, _) if original.dst_port < 1024 => Timeout::UdpWellKnown,
        (proto::UDP, _) => Timeout::UdpUnreplied,
        (proto::ICMP | proto::ICMP6, S::Unreplied) => Timeout::IcmpUnreplied,
        (proto::ICMP | proto::ICMP6, _) => Timeout::IcmpReplied,
        (_, S::Stream) => Timeout::OtherStream,
        (_, S::Replied) => Timeout::OtherReplied,
        _ => Timeout::OtherUnreplied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_keep_the_requirements() {
        let mut names = std::collections::HashSet::new();
        for (i, &t) in Timeout::ALL.iter().enumerate() {
            assert_eq!(t as usize, i);
            assert!(Timeouts::default().get(t) >= t.floor(), "{}", t.name());
            assert!(names.insert(t.name()));
        }
        let t = Timeouts::default();
        // RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-2.
        assert!(t.get(Timeout::TcpEstablished) >= 2 * 3600 + 240);
        assert!(t.get(Timeout::TcpPartial) >= 240 && t.get(Timeout::TcpTimeWait) >= 240);
        assert!(t.get(Timeout::UdpUnreplied) >= 120 && t.get(Timeout::UdpReplied) >= 120);
        assert!(t.get(Timeout::IcmpUnreplied) >= 60 && t.get(Timeout::IcmpReplied) >= 60);
        assert_eq!(t.with(Timeout::UdpStream, 0).get(Timeout::UdpStream), 1);
    }
}
