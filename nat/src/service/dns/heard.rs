//! What an answer says of a name: its addresses, for who has rules about names.

use super::wire::{self, Question, flag, kind, rcode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// Longest chain of aliases that is followed.
const CHAIN: usize = 16;
/// Most addresses taken from an answer.
const MOST: usize = 64;

/// Addresses that a name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The name that was asked for, in lower case.
    pub name: String,
    /// Its addresses, or those of the name that it is an alias of.
    pub addresses: Vec<IpAddr>,
    /// The shortest TTL on the way there.
    pub ttl: Duration,
}

/// Reads what an answer says of the name that was asked for; `None` if it has no address for it. A name with other characters than
/// those of host names is none that a rule could have.
#[must_use]
pub fn resolved(answer: &[u8]) -> Option<Resolved> {
    let flags = wire::u16_at(answer, 2)?;
    if flags & flag::QR == 0 || flags & 15 != rcode::NO_ERROR || flags & flag::TC != 0 {
        return None;
    }
    let (question, end) = Question::read(answer)?;
    if !matches!(question.kind, A | AAAA) || question.class != kind::CLASS_IN {
        return None;
    }
    let name = text(&question.name)?;
    let mut records: Vec<(Vec<u8>, wire::Record)> = vec![];
    for r in wire::records(answer, end)? {
        if r.section == 0 && r.class == kind::CLASS_IN && records.len() < CHAIN + MOST {
            records.push((wire::read_name(answer, r.start)?, r));
        }
    }
    let mut owner = question.name.to_vec();
    let mut ttl = u32::MAX;
    for _ in 0..CHAIN {
        let alias = records.iter().find(|(n, r)| r.kind == CNAME && *n == owner);
        let Some((_, r)) = alias else { break };
        ttl = ttl.min(r.ttl);
        owner = wire::read_name(answer, r.data.0)?;
    }
    let mut addresses = vec![];
    let of = records.iter();
    for (_, r) in of.filter(|(n, r)| r.kind == question.kind && *n == owner) {
        let data = answer.get(r.data.0..r.data.1)?;
        let address = match r.kind {
            A => Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into(),
        };
        ttl = ttl.min(r.ttl);
        addresses.push(address);
    }
    addresses.truncate(MOST);
    let ttl = Duration::from_secs(ttl.into());
    (!addresses.is_empty()).then_some(Resolved {
        name,
        addresses,
        ttl,
    })
}

/// A host name in wire form as text, without the root's dot.
fn text(wire: &[u8]) -> Option<String> {
    let mut labels = vec![];
    let mut rest = wire;
    while let Some((len, tail)) = rest.split_first().filter(|(len, _)| **len > 0) {
        let (label, tail) = tail.split_at_checked(usize::from(*len))?;
        let host = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !label.iter().all(host) {
            return None;
        }
        labels.push(std::str::from_utf8(label).ok()?);
        rest = tail;
    }
    (!labels.is_empty()).then(|| labels.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, OpCode, Query};
    use hickory_proto::rr::rdata;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn answer(asked: &str, records: &[(&str, u32, RData)]) -> Vec<u8> {
        let mut m = Message::response(7, OpCode::Query);
        m.add_query(Query::query(name(asked), RecordType::A));
        for (owner, ttl, data) in records {
            m.add_answer(Record::from_rdata(name(owner), *ttl, data.clone()));
        }
        m.to_vec().expect("it is encoded")
    }

    fn a(last: u8) -> RData {
        RData::A(rdata::A::new(192, 0, 2, last))
    }

    #[test]
    fn addresses_of_the_name_and_of_what_it_is_an_alias_of() {
        let cname = |to| RData::CNAME(rdata::CNAME(name(to)));
        let told = answer(
            "Web.Example.",
            &[
                ("other.example.", 9, a(9)),
                ("edge.example.", 40, a(1)),
                ("edge.example.", 50, a(2)),
                ("WEB.example.", 30, cname("edge.example.")),
            ],
        );
        let read = resolved(&told).expect("it has addresses");
        assert_eq!(read.name, "web.example");
        let all = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse::<IpAddr>().expect("an address"));
        assert_eq!(read.addresses, all);
        assert_eq!(read.ttl, Duration::from_secs(30));
        // A circle ends.
        let circle = [
            ("b.example.", 1, cname("a.example.")),
            ("a.example.", 1, cname("b.example.")),
        ];
        assert_eq!(resolved(&answer("a.example.", &circle)), None);
        // What only looks like the name in text.
        assert_eq!(
            resolved(&answer("web\\.example.", &[("web\\.example.", 5, a(1))])),
            None
        );
        // Cut off: nothing is sure.
        let mut cut = told;
        cut[2] |= 2;
        assert_eq!(resolved(&cut), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..200usize) {
            let _ = resolved(&bytes);
            let mut told = answer("web.example.", &[("web.example.", 5, a(1))]);
            let at = at % told.len();
            told.truncate(at);
            told.extend(bytes);
            let _ = resolved(&told);
        }
    }
}
