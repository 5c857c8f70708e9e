//! Reading DNS messages in place (RFC 1035 4): the question, EDNS, and where the TTLs are.
//!
//! A query needs no more than that, and neither does an answer that is passed on or kept: it stays the bytes that
//! the resolver sent, whatever types of record are in it, with id, flags, question and TTLs patched. Names are walked with bounds; only
//! names that have to be compared are read through their pointers, of which each must point backwards.

/// Length of a header.
pub(super) const HEADER: usize = 12;
/// Longest name in wire form (RFC 1035 2.3.4).
const LONGEST_NAME: usize = 255;

/// Flags in bytes 2 and 3.
pub(super) mod flag {
    pub(in super::super) const QR: u16 = 0x8000;
    pub(in super::super) const TC: u16 = 0x0200;
    pub(in super::super) const RD: u16 = 0x0100;
    pub(in super::super) const RA: u16 = 0x0080;
    pub(in super::super) const AD: u16 = 0x0020;
    pub(in super::super) const CD: u16 = 0x0010;
}

/// Types and classes.
pub(super) mod kind {
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const OPT: u16 = 41;
    pub(in super::super) const IXFR: u16 = 251;
    pub(in super::super) const MAILA: u16 = 254;
    pub(in super::super) const ANY: u16 = 255;
    pub(in super::super) const CLASS_IN: u16 = 1;
}

/// Response codes.
pub(super) mod rcode {
    pub(in super::super) const NO_ERROR: u16 = 0;
    pub(in super::super) const FORM_ERR: u16 = 1;
    pub(in super::super) const SERV_FAIL: u16 = 2;
    pub(in super::super) const NX_DOMAIN: u16 = 3;
    pub(in super::super) const NOT_IMP: u16 = 4;
    pub(in super::super) const REFUSED: u16 = 5;
    /// Extended: high bits in the OPT record (RFC 6891 9).
    pub(in super::super) const BAD_VERS: u16 = 16;
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(field.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(field.try_into().ok()?))
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Position after the name at `at`; a pointer ends it.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            len if len & 0xc0 == 0xc0 => return (at + 2 <= bytes.len()).then_some(at + 2),
            len if len & 0xc0 == 0 => at += 1 + usize::from(len),
            _ => return None,
        }
    }
}

/// The name at `at`, its pointers followed, in lower case.
pub(super) fn read_name(bytes: &[u8], mut at: usize) -> Option<Vec<u8>> {
    let mut name = vec![];
    let mut lowest = at;
    loop {
        let len = *bytes.get(at)?;
        match len & 0xc0 {
            0 => {
                let end = at + 1 + usize::from(len);
                name.extend(bytes.get(at..end)?);
                if name.len() > LONGEST_NAME {
                    return None;
                }
                if len == 0 {
                    // Length bytes are below `A`, so they stay as they are.
                    name.make_ascii_lowercase();
                    return Some(name);
                }
                at = end;
            }
            0xc0 => {
                at = usize::from(u16_at(bytes, at)? & 0x3fff);
                if at >= lowest {
                    return None;
                }
                lowest = at;
            }
            _ => return None,
        }
    }
}

/// The question of a message, which has exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// Name in wire form, lower case.
    pub(super) name: Box<[u8]>,
    pub(super) kind: u16,
    pub(super) class: u16,
}

impl Question {
    /// The question and the position after it.
    pub(super) fn read(bytes: &[u8]) -> Option<(Question, usize)> {
        let end = skip_name(bytes, HEADER)?;
        let name = read_name(bytes, HEADER)?;
        // Nothing before it to point at.
        if name.len() != end - HEADER {
            return None;
        }
        let question = Question {
            name: name.into(),
            kind: u16_at(bytes, end)?,
            class: u16_at(bytes, end + 2)?,
        };
        Some((question, end + 4))
    }
}

/// A resource record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Where its name begins.
    pub(super) start: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where its TTL is.
    pub(super) ttl_at: usize,
    pub(super) ttl: u32,
    /// Where its data is, and where it ends.
    pub(super) data: (usize, usize),
    /// 0 answer, 1 authority, 2 additional.
    pub(super) section: u8,
}

/// All records after the question, or `None` when they don't fit the message.
pub(super) fn records(bytes: &[u8], mut at: usize) -> Option<Vec<Record>> {
    let mut all = vec![];
    for section in 0..3u8 {
        for _ in 0..u16_at(bytes, 6 + 2 * usize::from(section))? {
            let fields = skip_name(bytes, at)?;
            let data = fields + 10;
            let end = data + usize::from(u16_at(bytes, fields + 8)?);
            if end > bytes.len() {
                return None;
            }
            all.push(Record {
                start: at,
                kind: u16_at(bytes, fields)?,
                class: u16_at(bytes, fields + 2)?,
                ttl_at: fields + 4,
                ttl: u32_at(bytes, fields + 4)?,
                data: (data, end),
                section,
            });
            at = end;
        }
    }
    Some(all)
}

/// What a client's OPT record says (RFC 6891 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    pub(super) size: u16,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
}

/// A query as a client sent it.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) question: Question,
    /// The question as the client wrote it.
    pub(super) raw_question: Box<[u8]>,
    pub(super) edns: Option<Edns>,
}

/// Why a message is no query that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// No header, or itself an answer: not to be answered, or two servers would talk for ever.
    Silent,
    /// To be answered with the code and nothing else.
    Code(u16),
}

impl Query {
    pub(super) fn read(bytes: &[u8]) -> Result<Query, Unreadable> {
        let (Some(id), Some(flags), true) =
            (u16_at(bytes, 0), u16_at(bytes, 2), bytes.len() >= HEADER)
        else {
            return Err(Unreadable::Silent);
        };
        if flags & flag::QR != 0 {
            return Err(Unreadable::Silent);
        }
        if flags & 0x7800 != 0 {
            return Err(Unreadable::Code(rcode::NOT_IMP));
        }
        let bad = Unreadable::Code(rcode::FORM_ERR);
        let counts = bytes.get(4..10).ok_or(bad)?;
        if counts != [0, 1, 0, 0, 0, 0] {
            return Err(bad);
        }
        let (question, end) = Question::read(bytes).ok_or(bad)?;
        let mut opts = records(bytes, end)
            .ok_or(bad)?
            .into_iter()
            .filter(|r| r.kind == kind::OPT);
        let opt = opts.next();
        if opts.next().is_some() {
            return Err(bad);
        }
        let edns = opt.map(|r| Edns {
            size: r.class,
            version: (r.ttl >> 16) as u8,
            dnssec_ok: r.ttl & 0x8000 != 0,
        });
        Ok(Query {
            id,
            flags,
            question,
            raw_question: bytes.get(HEADER..end).ok_or(bad)?.into(),
            edns,
        })
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|e| e.dnssec_ok)
    }
}

/// A message with a header and a question, no records.
pub(super) fn bare(id: u16, flags: u16, question: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend(id.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend([0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
    out.extend(question);
    out
}

/// Adds an OPT record; `rcode_high` are the upper bits of an extended code.
pub(super) fn add_opt(message: &mut Vec<u8>, size: u16, rcode_high: u8, dnssec_ok: bool) {
    message.extend([0, 0, kind::OPT as u8]);
    message.extend(size.to_be_bytes());
    message.extend([rcode_high, 0, if dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    let count = u16_at(message, 10).unwrap_or(0);
    put_u16(message, 10, count.saturating_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns as HickoryEdns, Message, Query as HickoryQuery};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    #[test]
    fn a_query_of_hickory() {
        let mut m = Message::query();
        m.metadata.id = 77;
        let name = Name::from_ascii("Web.Net1.Example.").unwrap();
        m.add_query(HickoryQuery::query(name, RecordType::AAAA));
        let mut edns = HickoryEdns::new();
        edns.set_max_payload(1400).set_dnssec_ok(true);
        m.set_edns(edns);
        let bytes = m.to_vec().unwrap();
        let q = Query::read(&bytes).unwrap();
        assert_eq!((q.id, q.question.kind, q.question.class), (77, 28, 1));
        assert_eq!(&*q.question.name, b"\x03web\x04net1\x07example\0");
        assert!(q.raw_question.starts_with(b"\x03Web"));
        let edns = q.edns.unwrap();
        assert_eq!((edns.size, edns.dnssec_ok), (1400, true));
        for len in 0..bytes.len() {
            assert!(Query::read(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn names_with_pointers() {
        let mut m = vec![0; HEADER];
        m.extend(b"\x01A\0\x01b\xc0\x0c\xc0\x0f\xc0\x15");
        assert_eq!(read_name(&m, 12).unwrap(), b"\x01a\0");
        assert_eq!(read_name(&m, 15).unwrap(), b"\x01b\x01a\0");
        assert_eq!(read_name(&m, 19).unwrap(), b"\x01b\x01a\0");
        // To itself.
        assert_eq!(read_name(&m, 21), None);
        let long = [[1, b'a'].repeat(127), vec![0]].concat();
        assert_eq!(read_name(&long, 0).map(|n| n.len()), Some(255));
        let longer = [[1, b'a'].repeat(128), vec![0]].concat();
        assert_eq!(read_name(&longer, 0), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Query::read(&bytes);
            let _ = records(&bytes, HEADER);
            for at in 0..bytes.len() {
                if let Some(name) = read_name(&bytes, at) {
                    prop_assert!(name.len() <= LONGEST_NAME);
                }
            }
        }
    }
}
