//! What of a client's message matters to the server, read without trust.
//!
//! A BOOTP message is 236 fixed bytes and the magic cookie (RFC 2131 2); options follow as code, length, value. An option
//! that comes several times is put together (RFC 3396), and options may go on in the fields `file` and `sname` (RFC 2132 9.3).

use std::net::Ipv4Addr;
use vswitch_core::wire::MacAddr;

/// The fixed part with the cookie.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Longest message that is read: nobody needs more than one frame.
const LONGEST: usize = 1500;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

mod code {
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const OVERLOAD: u8 = 52;
    pub(super) const TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const PARAMETERS: u8 = 55;
    pub(super) const MAX_SIZE: u8 = 57;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const RAPID_COMMIT: u8 = 80;
    pub(super) const FQDN: u8 = 81;
}

/// A message type of RFC 2131 that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

/// A client's message.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) xid: u32,
    pub(super) broadcast: bool,
    pub(super) ciaddr: Ipv4Addr,
    pub(super) chaddr: MacAddr,
    pub(super) requested: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) lease_secs: Option<u32>,
    pub(super) parameters: Option<Vec<u8>>,
    pub(super) max_size: Option<u16>,
    pub(super) client_id: Option<Vec<u8>>,
    pub(super) rapid_commit: bool,
    pub(super) host_name: Option<String>,
}

impl Request {
    /// Whether the client asked for option `code`; one that asks for nothing in particular gets everything.
    pub(super) fn wants(&self, code: u8) -> bool {
        self.parameters
            .as_ref()
            .is_none_or(|list| list.contains(&code))
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Request> {
        let fixed = bytes.get(..FIXED)?;
        // A request (op 1) over Ethernet, not through a relay: the server sits on the clients' link.
        let relayed = fixed[24..28] != [0; 4];
        if fixed[..3] != [1, 1, 6] || fixed[236..] != COOKIE || relayed || bytes.len() > LONGEST {
            return None;
        }
        let options = Options::read(bytes)?;
        let fqdn = || {
            let name = options.get(code::FQDN)?.get(3..)?;
            // Flags E (RFC 4702 2.1): the name is in wire form; its first label is all that counts.
            let wire = options.get(code::FQDN)?.first()? & 4 != 0;
            let label = if wire {
                name.get(1..1 + usize::from(*name.first()?))?
            } else {
                name
            };
            super::super::host_label(label)
        };
        Some(Request {
            kind: match options.get(code::TYPE)?.as_slice() {
                [1] => Kind::Discover,
                [3] => Kind::Request,
                [4] => Kind::Decline,
                [7] => Kind::Release,
                [8] => Kind::Inform,
                _ => return None,
            },
            xid: u32::from_be_bytes(array(&fixed[4..8])?),
            broadcast: fixed[10] & 0x80 != 0,
            ciaddr: array(&fixed[12..16])?.into(),
            chaddr: MacAddr(array(&fixed[28..34])?),
            requested: options.address(code::REQUESTED),
            server: options.address(code::SERVER),
            lease_secs: options.array(code::LEASE_TIME).map(u32::from_be_bytes),
            parameters: options.get(code::PARAMETERS).cloned(),
            max_size: options.array(code::MAX_SIZE).map(u16::from_be_bytes),
            // One byte of type and an identifier (RFC 2132 9.14).
            client_id: options
                .get(code::CLIENT_ID)
                .filter(|id| (2..=255).contains(&id.len()))
                .cloned(),
            rapid_commit: options.get(code::RAPID_COMMIT).is_some(),
            host_name: fqdn().or_else(|| super::super::host_label(options.get(code::HOST_NAME)?)),
        })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// The options that matter, each put together.
#[derive(Default)]
struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    fn read(bytes: &[u8]) -> Option<Options> {
        let mut options = Options::default();
        options.scan(bytes.get(FIXED..)?)?;
        let overload = options
            .array(code::OVERLOAD)
            .map_or(0, |[fields]: [u8; 1]| fields);
        if overload & 1 != 0 {
            options.scan(bytes.get(FILE)?)?;
        }
        if overload & 2 != 0 {
            options.scan(bytes.get(SNAME)?)?;
        }
        Some(options)
    }

    /// `None` when an option reaches beyond the field.
    fn scan(&mut self, mut rest: &[u8]) -> Option<()> {
        while let Some((&code, after)) = rest.split_first() {
            rest = match code {
                0 => after,
                255 => break,
                _ => {
                    let (&len, after) = after.split_first()?;
                    let (value, after) = after.split_at_checked(usize::from(len))?;
                    self.add(code, value);
                    after
                }
            };
        }
        Some(())
    }

    fn add(&mut self, code: u8, value: &[u8]) {
        match self.0.iter_mut().find(|(c, _)| *c == code) {
            Some((_, whole)) => whole.extend(value),
            None => self.0.push((code, value.to_vec())),
        }
    }

    fn get(&self, code: u8) -> Option<&Vec<u8>> {
        self.0.iter().find(|(c, _)| *c == code).map(|(_, v)| v)
    }

    fn array<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        array(self.get(code)?)
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.array(code).map(|a: [u8; 4]| Ipv4Addr::from(a))
    }
}
