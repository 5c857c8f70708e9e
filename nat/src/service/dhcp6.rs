//! Stateless DHCPv6 (RFC 8415 6.1, 18.3.5): resolvers and search list for hosts that make their addresses themselves.
//!
//! Only INFORMATION-REQUEST is answered; addresses come by router advertisements, so all that asks for one is not for this
//! server. Options are read by a walk of our own; the answer is written by `dhcproto`.

use super::name::{self, InvalidName};
use dhcproto::v6::{DhcpOption, Message, MessageType};
use dhcproto::{Encodable, Encoder};
use std::net::Ipv6Addr;
use std::time::Duration;
use vswitch_core::wire::MacAddr;

/// UDP port of servers; they listen on ff02::1:2.
pub const SERVER_PORT: u16 = 547;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 546;
/// All_DHCP_Relay_Agents_and_Servers.
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const INFORMATION_REQUEST: u8 = 11;
/// Longest message that is read.
const LONGEST: usize = 1500;
/// Longest identifier of a client (RFC 8415 11.1).
const LONGEST_DUID: usize = 130;

mod code {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    /// IA_NA, IA_TA and IA_PD.
    pub(super) const IDENTITIES: [u16; 3] = [3, 4, 25];
    pub(super) const REQUESTED: u16 = 6;
    pub(super) const DNS: u16 = 23;
    pub(super) const SEARCH: u16 = 24;
    pub(super) const REFRESH: u16 = 32;
}

/// What hosts are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Recursive DNS servers.
    pub dns: Vec<Ipv6Addr>,
    /// DNS search list.
    pub search: Vec<String>,
    /// When to ask again (RFC 8415 21.23), at least 10 minutes.
    pub refresh: Duration,
}

/// Stateless DHCPv6 server of one network.
#[derive(Debug)]
pub struct Server {
    dns: Vec<Ipv6Addr>,
    search: Vec<hickory_proto::rr::Name>,
    refresh: u32,
    duid: Vec<u8>,
}

impl Server {
    /// `mac` is the gateway's: the server's identifier is made of it (DUID-LL, RFC 8415 11.4).
    ///
    /// # Errors
    /// When a name of the search list can't be one.
    pub fn new(config: &Config, mac: MacAddr) -> Result<Server, InvalidName> {
        let search = config.search.iter().map(|n| name::domain(n));
        Ok(Server {
            dns: config.dns.iter().copied().take(8).collect(),
            search: search.take(8).collect::<Result<_, _>>()?,
            refresh: u32::try_from(config.refresh.as_secs().max(600)).unwrap_or(u32::MAX),
            duid: [&[0, 3, 0, 1][..], &mac.0].concat(),
        })
    }

    /// The answer to a client's message, to be sent to its address and port 546.
    #[must_use]
    pub fn handle(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let [INFORMATION_REQUEST, x, y, z, options @ ..] = payload else {
            return None;
        };
        if payload.len() > LONGEST {
            return None;
        }
        let mut client = None;
        let mut requested: Vec<u16> = vec![];
        let mut rest = options;
        while !rest.is_empty() {
            let (head, after) = rest.split_at_checked(4)?;
            let [a, b, c, d] = head.try_into().ok()?;
            let (kind, len) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let (value, after) = after.split_at_checked(usize::from(len))?;
            rest = after;
            match kind {
                // Not more than once, and of a length an identifier may have.
                code::CLIENT_ID if client.is_some() || value.len() > LONGEST_DUID => return None,
                code::CLIENT_ID => client = Some(value),
                code::SERVER_ID if value != self.duid => return None,
                code::REQUESTED => {
                    let codes = value.chunks_exact(2);
                    requested.extend(codes.map(|c| u16::from_be_bytes([c[0], c[1]])));
                }
                // RFC 8415 16.12.
                kind if code::IDENTITIES.contains(&kind) => return None,
                _ => {}
            }
        }
        let mut message = Message::new_with_id(MessageType::Reply, [*x, *y, *z]);
        let opts = message.opts_mut();
        if let Some(id) = client {
            opts.insert(DhcpOption::ClientId(id.to_vec()));
        }
        opts.insert(DhcpOption::ServerId(self.duid.clone()));
        let asked = |code| requested.contains(&code);
        if asked(code::DNS) && !self.dns.is_empty() {
            opts.insert(DhcpOption::DomainNameServers(self.dns.clone()));
        }
        if asked(code::SEARCH) && !self.search.is_empty() {
            opts.insert(DhcpOption::DomainSearchList(self.search.clone()));
        }
        if asked(code::REFRESH) {
            opts.insert(DhcpOption::InformationRefreshTime(self.refresh));
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::v6::{IANA, ORO, OptionCode};
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    const DNS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);

    fn server() -> Server {
        let config = Config {
            dns: vec![DNS],
            search: vec!["net1.example".into()],
            refresh: Duration::from_secs(3600),
        };
        Server::new(&config, MacAddr([2, 0, 0, 0, 0, 1])).expect("valid")
    }

    fn request(options: Vec<DhcpOption>) -> Vec<u8> {
        let mut m = Message::new_with_id(MessageType::InformationRequest, [1, 2, 3]);
        for o in options {
            m.opts_mut().insert(o);
        }
        m.to_vec().expect("encodes")
    }

    fn oro(codes: &[OptionCode]) -> DhcpOption {
        DhcpOption::ORO(ORO {
            opts: codes.to_vec(),
        })
    }

    #[test]
    fn information() {
        let ask = request(vec![
            DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 9]),
            oro(&[OptionCode::DomainNameServers, OptionCode::DomainSearchList]),
        ]);
        let bytes = server().handle(&ask).expect("an answer");
        let m = Message::decode(&mut Decoder::new(&bytes)).expect("dhcproto reads it");
        assert_eq!((m.msg_type(), m.xid()), (MessageType::Reply, [1, 2, 3]));
        let opts = m.opts();
        assert_eq!(
            opts.get(OptionCode::ClientId),
            Some(&DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 9]))
        );
        assert_eq!(
            opts.get(OptionCode::ServerId),
            Some(&DhcpOption::ServerId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 1]))
        );
        assert_eq!(
            opts.get(OptionCode::DomainNameServers),
            Some(&DhcpOption::DomainNameServers(vec![DNS]))
        );
        assert!(opts.get(OptionCode::DomainSearchList).is_some());
        assert!(opts.get(OptionCode::InformationRefreshTime).is_none());
    }

    #[test]
    fn not_for_us() {
        let s = server();
        assert!(s.handle(&request(vec![])).is_some());
        let iana = DhcpOption::IANA(IANA {
            id: 1,
            t1: 0,
            t2: 0,
            opts: Default::default(),
        });
        assert_eq!(s.handle(&request(vec![iana])), None);
        let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
        assert_eq!(s.handle(&request(vec![other])), None);
        let long = DhcpOption::ClientId(vec![0; 131]);
        assert_eq!(s.handle(&request(vec![long])), None);
        let mut solicit = request(vec![]);
        solicit[0] = 1;
        assert_eq!(s.handle(&solicit), None);
        let whole = request(vec![oro(&[OptionCode::DomainNameServers])]);
        for len in 5..whole.len() {
            assert_eq!(s.handle(&whole[..len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = server().handle(&bytes);
            let framed = [&[11, 1, 2, 3][..], &bytes].concat();
            if let Some(answer) = server().handle(&framed) {
                prop_assert!(Message::decode(&mut Decoder::new(&answer)).is_ok());
            }
        }
    }
}
