//! The server's answers, encoded by `dhcproto`.

use super::request::Request;
use super::{Config, Reply};
use crate::service::name;
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder};
use std::net::Ipv4Addr;
use std::time::Duration;
use vswitch_core::wire::MacAddr;

/// Shortest message that every client takes (RFC 1542 2.1).
const SHORTEST: usize = 300;
/// IPv4 and UDP headers, which a client's maximum message size counts (RFC 2132 9.10).
const HEADERS: usize = 28;
/// What every client must take (RFC 2131 2), and what fits a frame.
const SIZES: std::ops::RangeInclusive<u16> = 576..=1500;

/// An answer that gives nothing: a refusal (RFC 2131 table 3), always broadcast.
pub(super) fn refuse(config: &Config, request: &Request, why: &str) -> Option<Reply> {
    let mut message = start(config, request, MessageType::Nak);
    message.set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::Message(why.to_owned()));
    Some(Reply {
        payload: encode(&message)?,
        mac: MacAddr::BROADCAST,
        ip: Ipv4Addr::BROADCAST,
    })
}

/// OFFER or ACK of an address, or with `lease` absent the answer to an INFORM.
pub(super) fn give(
    config: &Config,
    request: &Request,
    kind: MessageType,
    lease: Option<(Ipv4Addr, Duration)>,
    host_name: Option<&str>,
) -> Option<Reply> {
    let mut message = start(config, request, kind);
    let mut ip = request.ciaddr;
    if kind == MessageType::Ack {
        message.set_ciaddr(request.ciaddr);
    }
    if let Some((address, time)) = lease {
        message.set_yiaddr(address);
        let secs = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let options = message.opts_mut();
        options.insert(DhcpOption::AddressLeaseTime(secs));
        if secs != u32::MAX {
            // Fractions of RFC 2131 4.4.5.
            options.insert(DhcpOption::Renewal(secs / 2));
            options.insert(DhcpOption::Rebinding(secs - secs / 8));
        }
        if kind == MessageType::Ack && request.rapid_commit && config.rapid_commit {
            options.insert(DhcpOption::RapidCommit);
        }
        ip = match request.ciaddr {
            Ipv4Addr::UNSPECIFIED => address,
            renewing => renewing,
        };
    }
    insert_options(&mut message, config, request, host_name);
    let payload = fit(message, request)?;
    // Who has no address yet and can't take unicast says so (RFC 2131 4.1).
    let broadcast = request.broadcast && request.ciaddr.is_unspecified();
    Some(if broadcast {
        Reply {
            payload,
            mac: MacAddr::BROADCAST,
            ip: Ipv4Addr::BROADCAST,
        }
    } else {
        Reply {
            payload,
            mac: request.chaddr,
            ip,
        }
    })
}

fn start(config: &Config, request: &Request, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(request.xid, none, none, none, none, &request.chaddr.0);
    message.set_opcode(Opcode::BootReply);
    if request.broadcast {
        message.set_flags(Flags::default().set_broadcast());
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(config.server));
    if let Some(id) = &request.client_id {
        // RFC 6842 3.
        options.insert(DhcpOption::ClientIdentifier(id.clone()));
    }
    message
}

fn insert_options(
    message: &mut Message,
    config: &Config,
    request: &Request,
    host_name: Option<&str>,
) {
    let options = message.opts_mut();
    let mut add = |option: DhcpOption| {
        if request.wants(OptionCode::from(&option).into()) {
            options.insert(option);
        }
    };
    add(DhcpOption::SubnetMask(config.mask()));
    add(DhcpOption::BroadcastAddr(config.broadcast()));
    if let Some(router) = config.router {
        add(DhcpOption::Router(vec![router]));
    }
    if !config.dns.is_empty() {
        add(DhcpOption::DomainNameServer(config.dns.clone()));
    }
    if let Some(domain) = &config.domain {
        add(DhcpOption::DomainName(domain.clone()));
    }
    if let Some(mtu) = config.mtu {
        add(DhcpOption::InterfaceMtu(mtu));
    }
    if let Some(name) = host_name {
        add(DhcpOption::Hostname(name.to_owned()));
    }
    let search: Vec<_> = config
        .search
        .iter()
        .filter_map(|n| name::domain(n).ok())
        .collect();
    if !search.is_empty() {
        add(DhcpOption::DomainSearch(search));
    }
}

/// Encodes within the client's maximum size; what isn't essential goes first.
fn fit(mut message: Message, request: &Request) -> Option<Vec<u8>> {
    let size = request.max_size.unwrap_or(*SIZES.start());
    let most = usize::from(size.clamp(*SIZES.start(), *SIZES.end())) - HEADERS;
    let mut spare = [
        OptionCode::DomainSearch,
        OptionCode::Hostname,
        OptionCode::DomainName,
    ]
    .into_iter();
    loop {
        let bytes = encode(&message)?;
        if bytes.len() <= most {
            return Some(bytes);
        }
        message.opts_mut().remove(spare.next()?);
    }
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SHORTEST);
    message.encode(&mut Encoder::new(&mut bytes)).ok()?;
    if bytes.len() < SHORTEST {
        bytes.resize(SHORTEST, 0);
    }
    Some(bytes)
}
