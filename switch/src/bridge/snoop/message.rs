//! IGMP (RFC 1112, 2236, 3376) and MLD (RFC 2710, 3810) messages, and PIM hellos (RFC 7761), as far as a snooping switch
//! reads them: checked for length and checksum before anything is believed.

use crate::frame::Frame;
use crate::wire::{L3, L4, Meta, csum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a frame says of multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: data, or a protocol we don't snoop.
    Other,
    /// A membership query. Its sender is the router to report to, unless the source is unspecified (RFC 4541 2.1.1 1).
    Query {
        /// The source address is a real one.
        from_router: bool,
    },
    /// A report or leave; the changes were told.
    Report,
    /// A multicast router says hello.
    RouterHello,
}

/// A change of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Join,
    Leave,
}

/// The message contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

const IGMP: u8 = 2;
const PIM: u8 = 103;
/// PIM version 2, type hello.
const PIM_HELLO: u8 = 0x20;

/// Reads a frame. `each` is told of every change of a membership, after the whole message was checked.
pub(super) fn read(
    frame: &Frame,
    m: &Meta,
    each: &mut dyn FnMut(IpAddr, Change),
) -> Result<Kind, Malformed> {
    match (m.l3, m.l4, m.proto) {
        (L3::V4, _, IGMP) => igmp(frame, m, each),
        (L3::V6, L4::Icmp6, _) => mld(frame, m, each),
        (L3::V4 | L3::V6, _, PIM) => Ok(pim(frame, m)),
        _ => Ok(Kind::Other),
    }
}

/// Destination address of the packet.
pub(super) fn destination(head: &[u8], m: &Meta) -> Option<IpAddr> {
    let l3 = head.get(usize::from(m.l3_off)..)?;
    match m.l3 {
        L3::V4 => {
            let a: [u8; 4] = *l3.get(16..)?.first_chunk()?;
            Some(IpAddr::V4(Ipv4Addr::from(a)))
        }
        L3::V6 => {
            let a: [u8; 16] = *l3.get(24..)?.first_chunk()?;
            Some(IpAddr::V6(Ipv6Addr::from(a)))
        }
        _ => None,
    }
}

fn igmp(frame: &Frame, m: &Meta, each: &mut dyn FnMut(IpAddr, Change)) -> Result<Kind, Malformed> {
    let head = frame.head();
    // IGMP isn't fragmented in practice; half a message can't be checked.
    if m.fragment {
        return Err(Malformed);
    }
    let l3 = head
        .get(usize::from(m.l3_off)..m.l3_end as usize)
        .ok_or(Malformed)?;
    let ihl = usize::from(l3.first().ok_or(Malformed)? & 0x0f) * 4;
    let (ip, body) = l3.split_at_checked(ihl).ok_or(Malformed)?;
    if csum::finish(csum::add(0, ip)) != 0 || csum::finish(csum::add(0, body)) != 0 {
        return Err(Malformed);
    }
    let &[ty, _, _, _, a, b, c, d] = body.first_chunk::<8>().ok_or(Malformed)?;
    let group = Ipv4Addr::new(a, b, c, d);
    let member = |change: Change, each: &mut dyn FnMut(IpAddr, Change)| {
        if !group.is_multicast() {
            return Err(Malformed);
        }
        each(IpAddr::V4(group), change);
        Ok(Kind::Report)
    };
    match ty {
        0x11 => {
            let source: [u8; 4] = *ip
                .get(12..)
                .and_then(<[u8]>::first_chunk)
                .ok_or(Malformed)?;
            Ok(Kind::Query {
                from_router: source != [0; 4],
            })
        }
        0x12 | 0x16 => member(Change::Join, each),
        0x17 => member(Change::Leave, each),
        0x22 => {
            records::<4>(body, each, |a| IpAddr::V4(Ipv4Addr::from(a)))?;
            Ok(Kind::Report)
        }
        _ => Ok(Kind::Other),
    }
}

fn mld(frame: &Frame, m: &Meta, each: &mut dyn FnMut(IpAddr, Change)) -> Result<Kind, Malformed> {
    let head = frame.head();
    let ty = *head.get(usize::from(m.l4_off)).ok_or(Malformed)?;
    if !matches!(ty, 130..=132 | 143) {
        return Ok(Kind::Other);
    }
    if m.fragment {
        return Err(Malformed);
    }
    let fixed: &[u8; 40] = head
        .get(usize::from(m.l3_off)..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(Malformed)?;
    let body = head
        .get(usize::from(m.l4_off)..m.l3_end as usize)
        .ok_or(Malformed)?;
    let (addresses, source) = (&fixed[8..40], &fixed[8..24]);
    // Hop limit 1, source link-local or, in reports, unspecified (RFC 3810 5.1.14, 5.2.13).
    let unspecified = source.iter().all(|b| *b == 0);
    let link_local = matches!(source, [0xfe, b, ..] if b & 0xc0 == 0x80);
    if fixed[7] != 1 || !(link_local || unspecified && ty != 130) {
        return Err(Malformed);
    }
    if !frame.vnet.needs_csum {
        let mut sum = csum::add(0, addresses);
        sum += body.len() as u64 + 58;
        if csum::finish(csum::add(sum, body)) != 0 {
            return Err(Malformed);
        }
    }
    if ty == 143 {
        records::<16>(body, each, |a| IpAddr::V6(Ipv6Addr::from(a)))?;
        return Ok(Kind::Report);
    }
    let group: [u8; 16] = *body
        .get(8..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(Malformed)?;
    let group = Ipv6Addr::from(group);
    if ty == 130 {
        return Ok(Kind::Query { from_router: true });
    }
    if !group.is_multicast() {
        return Err(Malformed);
    }
    let change = if ty == 131 {
        Change::Join
    } else {
        Change::Leave
    };
    each(IpAddr::V6(group), change);
    Ok(Kind::Report)
}

/// Group records of IGMPv3 (RFC 3376 4.2) and MLDv2 (RFC 3810 5.2) reports: the same but for the size of an address.
fn records<const N: usize>(
    body: &[u8],
    each: &mut dyn FnMut(IpAddr, Change),
    address: impl Fn([u8; N]) -> IpAddr,
) -> Result<(), Malformed> {
    let &[_, _, _, _, _, _, n0, n1] = body.first_chunk::<8>().ok_or(Malformed)?;
    let count = u16::from_be_bytes([n0, n1]);
    // Twice: once to check, once to tell.
    for telling in [false, true] {
        let mut rest = body.get(8..).ok_or(Malformed)?;
        for _ in 0..count {
            let (&[ty, aux, s0, s1], after) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
            let (group, after) = after.split_first_chunk::<N>().ok_or(Malformed)?;
            let sources = usize::from(u16::from_be_bytes([s0, s1]));
            let skip = sources * N + usize::from(aux) * 4;
            rest = after.get(skip..).ok_or(Malformed)?;
            let group = address(*group);
            if !group.is_multicast() {
                return Err(Malformed);
            }
            // Sources aren't tracked: a group is wanted as soon as one source is.
            let change = match (ty, sources) {
                // Mode is include, change to include: nothing means leaving.
                (1, 0) => None,
                (3, 0) => Some(Change::Leave),
                // Include or allow some, exclude any.
                (1..=4, _) | (5, 1..) => Some(Change::Join),
                _ => None,
            };
            if telling && let Some(change) = change {
                each(group, change);
            }
        }
    }
    Ok(())
}

fn pim(frame: &Frame, m: &Meta) -> Kind {
    let head = frame.head();
    let Some(first) = head.get(usize::from(m.l3_off)) else {
        return Kind::Other;
    };
    let header = if m.l3 == L3::V4 {
        usize::from(first & 0x0f) * 4
    } else {
        40
    };
    let all_routers = match destination(head, m) {
        Some(IpAddr::V4(a)) => a == Ipv4Addr::new(224, 0, 0, 13),
        Some(IpAddr::V6(a)) => a == Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xd),
        None => false,
    };
    if all_routers && head.get(usize::from(m.l3_off) + header) == Some(&PIM_HELLO) {
        Kind::RouterHello
    } else {
        Kind::Other
    }
}
