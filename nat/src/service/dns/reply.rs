//! Messages to clients and to resolvers: local answers encoded by `hickory-proto`, fetched ones patched in place.

use super::UDP_SIZE;
use super::cache::Key;
use super::wire::{self, HEADER, Query, Question, flag, kind, rcode};
use super::zone::{Found, Zone};
use hickory_proto::op::{Message, OpCode, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Room that an OPT record takes.
const OPT_LEN: usize = 11;
/// TTL of the answer to ANY.
const ANY_TTL: u32 = 3600;

/// Flags of any answer to a query.
fn flags(query: &Query, code: u16) -> u16 {
    flag::QR | flag::RA | (query.flags & (flag::RD | flag::CD)) | (code & 15)
}

/// Puts the client's EDNS on an answer and makes it short enough.
fn finish(query: &Query, mut message: Vec<u8>, code: u16, tcp: bool) -> Vec<u8> {
    let edns = query.edns;
    let limit = match (tcp, edns) {
        (true, _) => usize::from(u16::MAX),
        (false, None) => 512,
        (false, Some(e)) => usize::from(e.size.clamp(512, UDP_SIZE)),
    };
    let opt = if edns.is_some() { OPT_LEN } else { 0 };
    if message.len() + opt > limit {
        let flags = wire::u16_at(&message, 2).unwrap_or(0) | flag::TC;
        message = wire::bare(query.id, flags, &query.raw_question);
    }
    if let Some(edns) = edns {
        wire::add_opt(&mut message, UDP_SIZE, (code >> 4) as u8, edns.dnssec_ok);
    }
    message
}

/// An answer that is only a code.
pub(super) fn code(query: &Query, code: u16, tcp: bool) -> Vec<u8> {
    let message = wire::bare(query.id, flags(query, code), &query.raw_question);
    finish(query, message, code, tcp)
}

/// The code for a message whose header is all that can be read.
pub(super) fn unreadable(payload: &[u8], code: u16) -> Vec<u8> {
    let id = wire::u16_at(payload, 0).unwrap_or(0);
    let flags = wire::u16_at(payload, 2).unwrap_or(0) & (0x7800 | flag::RD);
    wire::bare(id, flag::QR | flag::RA | flags | code, &[])
}

/// The short answer to ANY (RFC 8482 4.2).
pub(super) fn any(query: &Query, tcp: bool) -> Vec<u8> {
    let hinfo = RData::HINFO(HINFO::new("RFC8482".into(), String::new()));
    build(query, false, ResponseCode::NoError, |message, name| {
        message.add_answer(Record::from_rdata(name.clone(), ANY_TTL, hinfo));
    })
    .map_or_else(
        || code(query, rcode::SERV_FAIL, tcp),
        |m| finish(query, m, 0, tcp),
    )
}

/// An answer of the zone.
pub(super) fn local(query: &Query, found: Found, zone: &Zone, tcp: bool) -> Vec<u8> {
    let response = match found {
        Found::NxDomain => ResponseCode::NXDomain,
        _ => ResponseCode::NoError,
    };
    let built = build(query, true, response, |message, name| match found {
        Found::Records(records, more) => {
            for data in records {
                message.add_answer(Record::from_rdata(name.clone(), zone.ttl(), data));
            }
            for (owner, data) in more {
                message.add_additional(Record::from_rdata(owner, zone.ttl(), data));
            }
        }
        Found::NoData | Found::NxDomain | Found::Elsewhere => {
            let (owner, soa) = zone.soa(name);
            message.add_authority(Record::from_rdata(owner, zone.negative_ttl(), soa));
        }
    });
    built.map_or_else(
        || code(query, rcode::SERV_FAIL, tcp),
        |m| finish(query, m, 0, tcp),
    )
}

/// Encodes an answer with the client's spelling of the question.
fn build(
    query: &Query,
    authoritative: bool,
    response: ResponseCode,
    fill: impl FnOnce(&mut Message, &Name),
) -> Option<Vec<u8>> {
    let name = Name::read(&mut BinDecoder::new(&query.raw_question)).ok()?;
    let mut message = Message::response(query.id, OpCode::Query);
    let meta = &mut message.metadata;
    meta.authoritative = authoritative;
    meta.recursion_desired = query.has(flag::RD);
    meta.recursion_available = true;
    meta.checking_disabled = query.has(flag::CD);
    meta.response_code = response;
    let kind = RecordType::from(query.question.kind);
    message.add_query(HickoryQuery::query(name.clone(), kind));
    fill(&mut message, &name);
    message.to_vec().ok()
}

/// The question as it is sent to a resolver; the id comes later.
pub(super) fn upstream(key: &Key) -> Vec<u8> {
    let mut question = key.question.name.to_vec();
    question.extend(key.question.kind.to_be_bytes());
    question.extend(key.question.class.to_be_bytes());
    let cd = if key.checking_disabled { flag::CD } else { 0 };
    // AD asks whether the resolver has validated (RFC 6840 5.7).
    let mut message = wire::bare(0, flag::RD | flag::AD | cd, &question);
    wire::add_opt(&mut message, UDP_SIZE, 0, key.dnssec_ok);
    message
}

/// A resolver's message without its OPT record and whatever follows, or nothing if it isn't an answer to the question.
pub(super) fn clean(mut message: Vec<u8>, question: &Question) -> Option<Vec<u8>> {
    if wire::u16_at(&message, 2)? & flag::QR == 0 || wire::u16_at(&message, 4)? != 1 {
        return None;
    }
    let (asked, question_end) = Question::read(&message)?;
    if asked != *question {
        return None;
    }
    let records = wire::records(&message, question_end)?;
    // Pointers only point backwards, so what is before the OPT record stands by itself.
    let is_opt = |r: &wire::Record| r.kind == kind::OPT;
    let opt = records.iter().position(is_opt);
    if let Some(at) = opt {
        let opt = records.get(at)?;
        if opt.section != 2 || opt.ttl >> 24 != 0 {
            return None;
        }
        let kept = records.iter().take(at).filter(|r| r.section == 2).count();
        message.truncate(opt.start);
        wire::put_u16(&mut message, 10, u16::try_from(kept).ok()?);
    } else {
        message.truncate(records.last().map_or(question_end, |r| r.data.1));
    }
    Some(message)
}

/// What is kept where no resolver answered.
pub(super) fn failure(question: &Question) -> Vec<u8> {
    let mut raw = question.name.to_vec();
    raw.extend(question.kind.to_be_bytes());
    raw.extend(question.class.to_be_bytes());
    wire::bare(0, flag::QR | flag::RA | rcode::SERV_FAIL, &raw)
}

/// A cleaned message for a client.
pub(super) fn fetched(query: &Query, mut message: Vec<u8>, tcp: bool) -> Vec<u8> {
    let got = wire::u16_at(&message, 2).unwrap_or(rcode::SERV_FAIL);
    let code = got & 15;
    // The client hears of validation if it understands it (RFC 6840 5.8).
    let validated = query.has(flag::AD) || query.dnssec_ok();
    let ad = if validated { got & flag::AD } else { 0 };
    wire::put_u16(&mut message, 0, query.id);
    wire::put_u16(&mut message, 2, flags(query, code) | ad | (got & flag::TC));
    // The client's own spelling: some check it (0x20).
    if let Some(place) = message.get_mut(HEADER..HEADER + query.raw_question.len()) {
        place.copy_from_slice(&query.raw_question);
    }
    finish(query, message, 0, tcp)
}
