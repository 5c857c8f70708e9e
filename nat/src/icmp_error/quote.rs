//! The packet an ICMP error quotes: an IP header and the beginning of what follows, cut anywhere.

use super::ErrorReject;
use crate::Endpoint;
use crate::rewrite::{Icmp, icmp_kind, icmp6_kind};
use vswitch_core::wire::csum;

/// A quoted packet, as far as the quote goes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted {
    /// IP protocol number of the transport.
    pub proto: u8,
    /// Its source.
    pub src: Endpoint,
    /// Its destination.
    pub dst: Endpoint,
    /// Type of a quoted ICMP or ICMPv6 message.
    pub icmp_type: Option<u8>,
    /// Identification of a quoted fragment.
    pub fragment_id: Option<u32>,
    /// Where the IP header is in the frame.
    pub(super) at: usize,
    /// Where the transport header is; none in a later fragment, which has no ports.
    pub(super) l4_at: Option<usize>,
    /// Length of the whole packet's L4, if it isn't fragmented.
    pub(super) whole_l4_len: Option<usize>,
    /// Where the quote ends.
    pub(super) end: usize,
}

impl Quoted {
    /// Whether it has no ports: a later fragment. Its flow is the one of [`Quoted::fragment_id`]'s first fragment.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.l4_at.is_none()
    }

    /// Whether it is an ICMP query, with an identifier.
    #[must_use]
    pub fn is_query(&self) -> bool {
        self.icmp_type.is_some()
    }

    /// Reads the quote at `at..end` of `head`.
    pub(super) fn parse(
        head: &[u8],
        at: usize,
        end: usize,
        v6: bool,
    ) -> Result<Quoted, ErrorReject> {
        let quote = head.get(at..end).ok_or(ErrorReject::Truncated)?;
        let mut q = if v6 { ipv6(quote) } else { ipv4(quote) }?;
        q.at += at;
        q.end += at;
        if let Some(l4) = &mut q.l4_at {
            *l4 += at;
        }
        q.ports(head, v6)?;
        Ok(q)
    }

    fn ports(&mut self, head: &[u8], v6: bool) -> Result<(), ErrorReject> {
        let Some(l4) = self.l4_at else { return Ok(()) };
        let icmp = self.proto == if v6 { 58 } else { 1 };
        let known = icmp || matches!(self.proto, 6 | 17 | 132);
        let Some(&[a, b, c, d, e, f, _, _]) = head.get(l4..self.end).and_then(|h| h.first_chunk())
        else {
            return if known {
                Err(ErrorReject::Truncated)
            } else {
                Ok(())
            };
        };
        match self.proto {
            6 | 17 | 132 => {
                self.src.port = u16::from_be_bytes([a, b]);
                self.dst.port = u16::from_be_bytes([c, d]);
            }
            _ if icmp => {
                let kind = if v6 { icmp6_kind(a) } else { icmp_kind(a) };
                match kind {
                    Icmp::Error => return Err(ErrorReject::Nested),
                    Icmp::Query => {
                        self.icmp_type = Some(a);
                        let identifier = u16::from_be_bytes([e, f]);
                        // Replies: 0, 14, 16, 18; 129.
                        if matches!((self.proto, a), (1, 0 | 14 | 16 | 18) | (58, 129)) {
                            self.dst.port = identifier;
                        } else {
                            self.src.port = identifier;
                        }
                    }
                    Icmp::Other => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn ipv4(quote: &[u8]) -> Result<Quoted, ErrorReject> {
    let fixed: &[u8; 20] = quote.first_chunk().ok_or(ErrorReject::Truncated)?;
    let header_len = usize::from(fixed[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if fixed[0] >> 4 != 4 || header_len < 20 || total < header_len {
        return Err(ErrorReject::Truncated);
    }
    let header = quote.get(..header_len).ok_or(ErrorReject::Truncated)?;
    if csum::finish(csum::add(0, header)) != 0 {
        return Err(ErrorReject::QuotedChecksum);
    }
    let frag = u16::from_be_bytes([fixed[6], fixed[7]]);
    let is_fragment = frag & 0x3fff != 0;
    let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *fixed;
    Ok(Quoted {
        proto: fixed[9],
        src: Endpoint::new([s0, s1, s2, s3].into(), 0),
        dst: Endpoint::new([d0, d1, d2, d3].into(), 0),
        icmp_type: None,
        fragment_id: is_fragment.then(|| u16::from_be_bytes([fixed[4], fixed[5]]).into()),
        at: 0,
        l4_at: (frag & 0x1fff == 0).then_some(header_len),
        whole_l4_len: (!is_fragment).then_some(total - header_len),
        end: quote.len().min(total),
    })
}

fn ipv6(quote: &[u8]) -> Result<Quoted, ErrorReject> {
    let fixed: &[u8; 40] = quote.first_chunk().ok_or(ErrorReject::Truncated)?;
    if fixed[0] >> 4 != 6 {
        return Err(ErrorReject::Truncated);
    }
    let total = 40 + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let end = quote.len().min(total);
    let (mut next, mut at, mut fragment_id, mut later) = (fixed[6], 40, None, false);
    // As in `vswitch_core::wire::parse`.
    for _ in 0..8 {
        let byte = |i: usize| quote.get(i).copied().ok_or(ErrorReject::Truncated);
        let len = match next {
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(byte(at + 1)?) + 1) * 8,
            51 => (usize::from(byte(at + 1)?) + 2) * 4,
            44 => 8,
            _ => break,
        };
        if at + len > end {
            return Err(ErrorReject::Truncated);
        }
        if next == 44 {
            let id = [byte(at + 4)?, byte(at + 5)?, byte(at + 6)?, byte(at + 7)?];
            fragment_id = Some(u32::from_be_bytes(id));
            later = u16::from_be_bytes([byte(at + 2)?, byte(at + 3)?]) & 0xfff8 != 0;
        }
        next = byte(at)?;
        at += len;
        if later {
            break;
        }
    }
    let address = |from: usize| {
        let bytes: Option<&[u8; 16]> = quote.get(from..).and_then(|b| b.first_chunk());
        bytes
            .map(|b| Endpoint::new((*b).into(), 0))
            .ok_or(ErrorReject::Truncated)
    };
    Ok(Quoted {
        proto: next,
        src: address(8)?,
        dst: address(24)?,
        icmp_type: None,
        fragment_id,
        at: 0,
        l4_at: (!later).then_some(at),
        whole_l4_len: fragment_id.is_none().then_some(total.saturating_sub(at)),
        end,
    })
}
