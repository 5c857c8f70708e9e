//! From text to a filter.
//!
//! ```text
//! expr  = term { ("and" | "or") term }
//! term  = "not" term | "(" expr ")" | test
//! test  = word | [proto] [dir] [type] value | value          a lone value takes the qualifiers of the test before it
//! ```

use super::{Carrier, Dir, Expr, Op, Test};
use crate::wire::{EtherType, L4, MacAddr};
use std::net::IpAddr;

/// Most bytes of a filter.
const MAX_TEXT: usize = 4096;
/// Deepest nesting of parentheses and negations.
const MAX_DEPTH: u32 = 64;

/// All words of the language, to propose the one that was meant.
pub const WORDS: &[&str] = &[
    "and",
    "arp",
    "broadcast",
    "dst",
    "ether",
    "greater",
    "host",
    "icmp",
    "icmp6",
    "ip",
    "ip6",
    "less",
    "multicast",
    "net",
    "not",
    "or",
    "port",
    "portrange",
    "proto",
    "sctp",
    "src",
    "tcp",
    "udp",
    "vlan",
];

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {}: {problem}", .at + 1)]
pub struct FilterError {
    /// Character where the trouble begins, from 0.
    pub at: usize,
    /// What is wrong.
    pub problem: String,
    /// The word that isn't one, if that is the trouble.
    pub unknown: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    /// Byte where it begins.
    at: usize,
    text: &'a str,
}

/// What stands before a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Qualifiers {
    proto: Option<Proto>,
    dir: Option<Dir>,
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proto {
    Ether,
    Ip,
    Ip6,
    Arp,
    L4(L4),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
    Proto,
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    next: usize,
    /// Qualifiers of the test before, for lone values.
    last: Qualifiers,
}

type Parsed<T> = Result<T, FilterError>;

pub(super) fn parse(text: &str) -> Parsed<Expr> {
    let mut p = Parser {
        text,
        tokens: Vec::new(),
        next: 0,
        last: Qualifiers::default(),
    };
    if text.len() > MAX_TEXT {
        return Err(p.fail(0, format!("it is longer than {MAX_TEXT} bytes")));
    }
    p.tokens = tokens(text);
    let e = p.expr(0)?;
    match p.peek() {
        None => Ok(e),
        Some(t) if t.text == ")" => Err(p.fail(t.at, "this `)` closes nothing")),
        Some(t) => Err(p.unexpected(t, "`and` or `or`")),
    }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        let Some(c) = rest.chars().next() else { break };
        let len = if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        } else if rest.starts_with("&&") || rest.starts_with("||") {
            2
        } else if "()!".contains(c) {
            1
        } else {
            let ends = |c: char| c.is_whitespace() || "()!&|".contains(c);
            // A lone `&` or `|` is a word that nobody knows.
            let tail = &rest[c.len_utf8()..];
            c.len_utf8() + tail.find(ends).unwrap_or(tail.len())
        };
        all.push(Token {
            at,
            text: &rest[..len],
        });
        at += len;
    }
    all
}

impl<'a> Parser<'a> {
    /// An error at a byte of the text.
    fn fail(&self, at: usize, problem: impl Into<String>) -> FilterError {
        let before = self.text.get(..at).unwrap_or(self.text);
        FilterError {
            at: before.chars().count(),
            problem: problem.into(),
            unknown: None,
        }
    }

    fn unexpected(&self, t: Token<'_>, wanted: &str) -> FilterError {
        let is_word = WORDS.contains(&t.text) || ["(", ")", "!", "&&", "||"].contains(&t.text);
        let problem = if is_word {
            format!("`{}` can't stand here: {wanted} is wanted", t.text)
        } else {
            format!("`{}` isn't known: {wanted} is wanted", t.text)
        };
        FilterError {
            unknown: (!is_word).then(|| t.text.to_owned()),
            ..self.fail(t.at, problem)
        }
    }

    fn ended(&self, wanted: &str) -> FilterError {
        self.fail(self.text.len(), format!("it ends where {wanted} is wanted"))
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).copied()
    }

    fn peek_text(&self) -> &'a str {
        self.peek().map_or("", |t| t.text)
    }

    fn take(&mut self, wanted: &str) -> Parsed<Token<'a>> {
        let t = self.peek().ok_or_else(|| self.ended(wanted))?;
        self.next += 1;
        Ok(t)
    }

    /// Takes the next token if it is this one.
    fn accept(&mut self, text: &str) -> bool {
        let is = self.peek_text() == text;
        self.next += usize::from(is);
        is
    }

    fn expr(&mut self, depth: u32) -> Parsed<Expr> {
        let first = self.term(depth)?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek_text() {
                "and" | "&&" => Op::And,
                "or" | "||" => Op::Or,
                _ => break,
            };
            self.next += 1;
            rest.push((op, self.term(depth)?));
        }
        Ok(if rest.is_empty() {
            first
        } else {
            Expr::Chain(Box::new(first), rest)
        })
    }

    fn term(&mut self, depth: u32) -> Parsed<Expr> {
        let t = self.peek().ok_or_else(|| self.ended("a test"))?;
        if depth > MAX_DEPTH {
            return Err(self.fail(t.at, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        if self.accept("not") || self.accept("!") {
            return Ok(Expr::Not(Box::new(self.term(depth + 1)?)));
        }
        if !self.accept("(") {
            return self.test().map(Expr::Test);
        }
        let e = self.expr(depth + 1)?;
        if self.accept(")") {
            return Ok(e);
        }
        Err(match self.peek() {
            Some(other) => self.unexpected(other, "`and`, `or` or `)`"),
            None => self.fail(t.at, "this `(` is never closed"),
        })
    }

    fn test(&mut self) -> Parsed<Test> {
        let start = self.take("a test")?;
        match start.text {
            "broadcast" => return Ok(Test::Broadcast),
            "multicast" => return Ok(Test::Multicast),
            "less" => return self.number("a length", 0, u32::MAX).map(Test::Less),
            "greater" => return self.number("a length", 0, u32::MAX).map(Test::Greater),
            "vlan" => return self.vlan(),
            "icmp" => {
                return Ok(Test::Proto {
                    proto: 1,
                    v4: true,
                    v6: false,
                });
            }
            "icmp6" => {
                return Ok(Test::Proto {
                    proto: 58,
                    v4: false,
                    v6: true,
                });
            }
            _ => {}
        }
        self.next -= 1;
        let q = self.qualifiers()?;
        if let Some(proto) = q.proto
            && q.dir.is_none()
            && q.kind.is_none()
            && let Some(test) = self.alone(proto)?
        {
            return Ok(test);
        }
        let lone = q == Qualifiers::default();
        let q = if lone { self.last } else { q };
        let value = self.take("a value")?;
        if lone && q == Qualifiers::default() && value.text.parse::<IpAddr>().is_err() {
            return Err(self.unexpected(value, "a test such as `tcp` or `host ADDRESS`"));
        }
        let bare = !lone && q.dir.is_none() && q.kind.is_none();
        let is_address = value.text.parse::<IpAddr>().is_ok() || q.proto == Some(Proto::Ether);
        if (bare && !is_address) || (WORDS.contains(&value.text) && q.kind != Some(Kind::Proto)) {
            let wanted = if bare { "`and` or `or`" } else { "a value" };
            return Err(self.unexpected(value, wanted));
        }
        self.last = q;
        self.value(q, start, value)
    }

    fn qualifiers(&mut self) -> Parsed<Qualifiers> {
        let mut q = Qualifiers {
            proto: match self.peek_text() {
                "ether" => Some(Proto::Ether),
                "ip" => Some(Proto::Ip),
                "ip6" => Some(Proto::Ip6),
                "arp" => Some(Proto::Arp),
                "tcp" => Some(Proto::L4(L4::Tcp)),
                "udp" => Some(Proto::L4(L4::Udp)),
                "sctp" => Some(Proto::L4(L4::Sctp)),
                _ => None,
            },
            ..Qualifiers::default()
        };
        self.next += usize::from(q.proto.is_some());
        q.dir = self.direction()?;
        q.kind = match self.peek_text() {
            "host" => Some(Kind::Host),
            "net" => Some(Kind::Net),
            "port" => Some(Kind::Port),
            "portrange" => Some(Kind::PortRange),
            "proto" => Some(Kind::Proto),
            _ => None,
        };
        self.next += usize::from(q.kind.is_some());
        Ok(q)
    }

    /// `src`, `dst`, `src or dst`, `src and dst`.
    fn direction(&mut self) -> Parsed<Option<Dir>> {
        let first = match self.peek_text() {
            "src" => Dir::Src,
            "dst" => Dir::Dst,
            _ => return Ok(None),
        };
        self.next += 1;
        let other = self.tokens.get(self.next + 1).map_or("", |t| t.text);
        if !matches!(other, "src" | "dst") {
            return Ok(Some(first));
        }
        let both = match self.peek_text() {
            "or" | "||" => Dir::Either,
            "and" | "&&" => Dir::Both,
            _ => return Ok(Some(first)),
        };
        self.next += 2;
        Ok(Some(if (first == Dir::Src) == (other == "src") {
            first
        } else {
            both
        }))
    }

    /// A protocol without qualifiers behind it: the test of its own that it is, or `None` if a value follows.
    fn alone(&mut self, proto: Proto) -> Parsed<Option<Test>> {
        let group = match (proto, self.peek_text()) {
            (Proto::Ether, "broadcast") => Some(Test::Broadcast),
            (Proto::Ether, "multicast") => Some(Test::Multicast),
            (Proto::Ip, "multicast") => Some(Test::IpMulticast),
            (Proto::Ip6, "multicast") => Some(Test::Ip6Multicast),
            _ => None,
        };
        if group.is_some() {
            self.next += 1;
            return Ok(group);
        }
        let follows = !matches!(self.peek_text(), "" | ")" | "and" | "&&" | "or" | "||");
        if follows {
            return Ok(None);
        }
        let v4_v6 = |proto| Test::Proto {
            proto,
            v4: true,
            v6: true,
        };
        Ok(Some(match proto {
            Proto::Ether => return Err(self.ended_or_next("`host`, `src`, `dst` or `proto`")),
            Proto::Ip => Test::EtherType(EtherType::IPV4),
            Proto::Ip6 => Test::EtherType(EtherType::IPV6),
            Proto::Arp => Test::EtherType(EtherType::ARP),
            Proto::L4(L4::Tcp) => v4_v6(6),
            Proto::L4(L4::Udp) => v4_v6(17),
            Proto::L4(_) => v4_v6(132),
        }))
    }

    fn ended_or_next(&self, wanted: &str) -> FilterError {
        match self.peek() {
            Some(t) => self.unexpected(t, wanted),
            None => self.ended(wanted),
        }
    }

    /// The test of a value with its qualifiers.
    fn value(&self, q: Qualifiers, start: Token<'_>, value: Token<'_>) -> Parsed<Test> {
        let dir = q.dir.unwrap_or_default();
        let kind = q.kind.unwrap_or(Kind::Host);
        match (kind, q.proto) {
            (Kind::Host, Some(Proto::Ether)) => {
                let mac = value.text.parse::<MacAddr>();
                let mac = mac.map_err(|e| self.fail(value.at, e.to_string()))?;
                Ok(Test::Ether(dir, mac))
            }
            (Kind::Host | Kind::Net, Some(Proto::L4(_))) => {
                let problem = "a transport protocol has ports, no addresses: write `port N`, or join with `and`";
                Err(self.fail(start.at, problem))
            }
            (Kind::Host | Kind::Net, proto) => self.address(kind, proto, dir, value),
            (Kind::Port | Kind::PortRange, None | Some(Proto::Ip | Proto::Ip6 | Proto::L4(_))) => {
                if matches!(q.proto, Some(Proto::Ip | Proto::Ip6)) {
                    let problem = "write `ip and port N`: `port` goes with `tcp`, `udp` or `sctp`";
                    return Err(self.fail(start.at, problem));
                }
                let l4 = match q.proto {
                    Some(Proto::L4(l4)) => Some(l4),
                    _ => None,
                };
                let (a, b) = self.port_range(kind, value)?;
                Ok(Test::Port(l4, dir, a, b))
            }
            (Kind::Port | Kind::PortRange, _) => {
                Err(self.fail(start.at, "`port` goes with `tcp`, `udp` or `sctp`"))
            }
            (Kind::Proto, proto) => {
                if q.dir.is_some() {
                    return Err(self.fail(start.at, "a protocol has no direction"));
                }
                self.protocol(proto, start, value)
            }
        }
    }

    fn address(
        &self,
        kind: Kind,
        proto: Option<Proto>,
        dir: Dir,
        value: Token<'_>,
    ) -> Parsed<Test> {
        let (text, prefix) = match value.text.split_once('/') {
            Some((a, p)) if kind == Kind::Net => (a, Some(p)),
            _ => (value.text, None),
        };
        let Ok(address) = text.parse::<IpAddr>() else {
            if kind == Kind::Net {
                return Err(self.unexpected(value, "a prefix like 192.0.2.0/24"));
            }
            return Err(self.unexpected(value, "an address like 192.0.2.1 or 2001:db8::1"));
        };
        let width = if address.is_ipv4() { 32u32 } else { 128 };
        let prefix = match prefix {
            None => width,
            Some(p) => p.parse().ok().filter(|n| *n <= width).ok_or_else(|| {
                let problem = format!("`{p}` isn't a prefix length from 0 to {width}");
                self.fail(value.at, problem)
            })?,
        };
        let v6_mask = u128::MAX
            .checked_shl(width - prefix)
            .filter(|_| prefix > 0)
            .unwrap_or(0);
        let v4_mask = u32::MAX
            .checked_shl(width.min(32).saturating_sub(prefix))
            .filter(|_| prefix > 0)
            .unwrap_or(0);
        let strays = |net: IpAddr| {
            let problem = format!(
                "`{}` has bits beyond its prefix: write {net}/{prefix}",
                value.text
            );
            self.fail(value.at, problem)
        };
        match (address, proto) {
            (IpAddr::V4(a), None | Some(Proto::Ip | Proto::Arp)) => {
                let net = u32::from(a) & v4_mask;
                if net != u32::from(a) {
                    return Err(strays(IpAddr::V4(net.into())));
                }
                let carrier = match proto {
                    Some(Proto::Ip) => Carrier::Ip,
                    Some(_) => Carrier::Arp,
                    None => Carrier::Any,
                };
                Ok(Test::V4(carrier, dir, net, v4_mask))
            }
            (IpAddr::V6(a), None | Some(Proto::Ip6)) => {
                let net = u128::from(a) & v6_mask;
                if net != u128::from(a) {
                    return Err(strays(IpAddr::V6(net.into())));
                }
                Ok(Test::V6(dir, net, v6_mask))
            }
            (_, Some(Proto::Ether)) => {
                let problem = "`ether` goes with MAC addresses like 02:00:00:00:00:01";
                Err(self.fail(value.at, problem))
            }
            (IpAddr::V4(_), _) => Err(self.fail(value.at, "an IPv4 address doesn't go with `ip6`")),
            (IpAddr::V6(_), _) => Err(self.fail(
                value.at,
                "an IPv6 address goes with `ip6` or without a protocol",
            )),
        }
    }

    fn port_range(&self, kind: Kind, value: Token<'_>) -> Parsed<(u16, u16)> {
        let read = |text: &str| {
            let port = number(text).and_then(|n| u16::try_from(n).ok());
            port.ok_or_else(|| self.unexpected(value, "a port number from 0 to 65535"))
        };
        match value.text.split_once('-') {
            Some((a, b)) if kind == Kind::PortRange => {
                let (a, b) = (read(a)?, read(b)?);
                Ok((a.min(b), a.max(b)))
            }
            Some(_) => Err(self.fail(value.at, "for several ports write `portrange FIRST-LAST`")),
            None => read(value.text).map(|p| (p, p)),
        }
    }

    fn protocol(&self, proto: Option<Proto>, start: Token<'_>, value: Token<'_>) -> Parsed<Test> {
        // libpcap wants words of the language escaped here.
        let name = value.text.strip_prefix('\\').unwrap_or(value.text);
        if proto == Some(Proto::Ether) {
            let number = match name {
                "ip" => Some(0x0800),
                "arp" => Some(0x0806),
                "ip6" => Some(0x86dd),
                _ => number(name).and_then(|n| u16::try_from(n).ok()),
            };
            // IEEE 802.3 3.2.6: lesser numbers are lengths.
            return match number {
                Some(n) if n >= 0x600 => Ok(Test::EtherType(EtherType(n))),
                Some(_) => Err(self.fail(value.at, "EtherTypes begin at 0x600")),
                None => Err(self.unexpected(value, "an EtherType like 0x88cc")),
            };
        }
        let number = match name {
            "icmp" => Some(1),
            "igmp" => Some(2),
            "tcp" => Some(6),
            "udp" => Some(17),
            "icmp6" => Some(58),
            "sctp" => Some(132),
            _ => number(name).and_then(|n| u8::try_from(n).ok()),
        };
        let Some(number) = number else {
            return Err(self.unexpected(value, "an IP protocol number from 0 to 255"));
        };
        let (v4, v6) = match proto {
            None => (true, true),
            Some(Proto::Ip) => (true, false),
            Some(Proto::Ip6) => (false, true),
            Some(_) => {
                let problem = "`proto` goes with `ether`, `ip`, `ip6` or nothing before it";
                return Err(self.fail(start.at, problem));
            }
        };
        Ok(Test::Proto {
            proto: number,
            v4,
            v6,
        })
    }

    fn vlan(&mut self) -> Parsed<Test> {
        let follows = self.peek_text().starts_with(|c: char| c.is_ascii_digit());
        if !follows {
            return Ok(Test::Vlan(None));
        }
        let vid = self.number("a VLAN from 0 to 4095", 0, 4095)?;
        Ok(Test::Vlan(Some(vid as u16)))
    }

    fn number(&mut self, wanted: &str, least: u32, most: u32) -> Parsed<u32> {
        let t = self.take(wanted)?;
        let n = number(t.text).filter(|n| (least..=most).contains(n));
        n.ok_or_else(|| self.unexpected(t, wanted))
    }
}

/// A number, decimal or in hexadecimal with 0x. (Octal, which libpcap reads, is refused rather than misread.)
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            u32::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None if text == "0" => Some(0),
        None if text.starts_with(['0', '+']) => None,
        None => text.parse().ok(),
    }
}
