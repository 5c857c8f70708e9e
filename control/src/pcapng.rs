//! Capture files as Wireshark reads them: pcapng (draft-ietf-opsawg-pcapng), what of it a capture of ours needs.
//!
//! A section header, an interface per port (named, nanoseconds), a packet block per frame with its direction and, for a
//! dropped frame, the reason as its comment, and at the end each interface's statistics. [`Blocks`] reads the same back, in
//! pieces as they come, and keeps to whole blocks, so that a file written from it is valid wherever it ends.

use vswitch_core::capture::{Captured, Direction};

/// Media type of what is written.
pub const CONTENT_TYPE: &str = "application/x-pcapng";
/// What the comment of a dropped frame begins with.
pub const DROPPED: &str = "dropped: ";

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;
const COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const IF_FILTER: u16 = 11;
const USER_APPLICATION: u16 = 4;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_USRDELIV: u16 = 8;
/// Longest block that is read: far longer than any that is written.
const MAX_BLOCK: usize = 1 << 20;

/// What was counted at an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames looked at.
    pub seen: u64,
    /// Frames that passed the filter.
    pub passed: u64,
    /// Of those, the ones lost because the reader was too slow.
    pub lost: u64,
    /// Frames written.
    pub written: u64,
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = (out.len() - start + 4) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out.extend(length.to_le_bytes());
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

// Blocks begin at multiples of 4 within what is written, so padding can count from there.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

/// Two halves, the high one first, each in the file's byte order.
fn halves(n: u64) -> [u8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(&((n >> 32) as u32).to_le_bytes());
    both[4..].copy_from_slice(&(n as u32).to_le_bytes());
    both
}

/// Appends the section header.
pub fn section(out: &mut Vec<u8>) {
    block(out, SECTION, |out| {
        out.extend(BYTE_ORDER.to_le_bytes());
        out.extend([1, 0, 0, 0]);
        // Length of the section: not known.
        out.extend([0xff; 8]);
        let program = concat!("vswitchd ", env!("CARGO_PKG_VERSION"));
        option(out, USER_APPLICATION, program.as_bytes());
        end_of_options(out);
    });
}

/// Appends the next interface.
pub fn interface(out: &mut Vec<u8>, name: &str, snaplen: usize, filter: Option<&str>) {
    block(out, INTERFACE, |out| {
        out.extend(ETHERNET.to_le_bytes());
        out.extend([0; 2]);
        out.extend((snaplen as u32).to_le_bytes());
        option(out, IF_NAME, name.as_bytes());
        // 10^-9 s.
        option(out, IF_TSRESOL, &[9]);
        if let Some(filter) = filter {
            // 0: a text.
            option(out, IF_FILTER, &[&[0], filter.as_bytes()].concat());
        }
        end_of_options(out);
    });
}

/// Appends a frame.
pub fn packet(out: &mut Vec<u8>, copy: &Captured) {
    block(out, PACKET, |out| {
        out.extend(copy.interface.to_le_bytes());
        out.extend(halves(copy.time));
        out.extend((copy.bytes().len() as u32).to_le_bytes());
        out.extend((copy.len as u32).to_le_bytes());
        padded(out, copy.bytes());
        let way: u32 = match copy.direction {
            Direction::Ingress => 1,
            Direction::Egress => 2,
        };
        option(out, EPB_FLAGS, &way.to_le_bytes());
        if let Some(why) = copy.dropped {
            let text = format!("{DROPPED}{}", why.as_str());
            option(out, COMMENT, text.as_bytes());
        }
        end_of_options(out);
    });
}

/// Appends the statistics of an interface, as they are at `time`.
pub fn statistics(out: &mut Vec<u8>, interface: u32, time: u64, counts: &Counts) {
    block(out, STATISTICS, |out| {
        out.extend(interface.to_le_bytes());
        out.extend(halves(time));
        for (code, n) in [
            (ISB_IFRECV, counts.seen),
            (ISB_IFDROP, counts.lost),
            (ISB_FILTERACCEPT, counts.passed),
            (ISB_USRDELIV, counts.written),
        ] {
            option(out, code, &n.to_le_bytes());
        }
        end_of_options(out);
    });
}

/// What a block says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// An interface's name.
    Interface(String),
    /// A frame.
    Packet {
        /// Number of its interface, in order of the blocks.
        interface: u32,
        /// Nanoseconds since 1970-01-01 UTC.
        time: u64,
        /// Which way it went, if that is said.
        direction: Option<Direction>,
        /// Its comment.
        comment: Option<String>,
        /// Its length, of which the bytes may be the beginning only.
        len: usize,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Statistics of an interface.
    Statistics(u32, Counts),
    /// Another block.
    Other,
}

/// Reads blocks from pieces of a file that [`section`] and the others wrote.
#[derive(Debug, Default)]
pub struct Blocks {
    pending: Vec<u8>,
    at: usize,
}

/// The bytes aren't pcapng of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a damaged block in the capture")]
pub struct Damaged;

impl Blocks {
    /// Takes the next piece.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.at);
        self.at = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// Whether all that came has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.pending.len()
    }

    /// The next whole block and its bytes; `None` until more comes.
    pub fn next_block(&mut self) -> Result<Option<(Block, &[u8])>, Damaged> {
        let rest = self.pending.get(self.at..).unwrap_or_default();
        let (Some(kind), Some(length)) = (le32(rest, 0), le32(rest, 4)) else {
            return Ok(None);
        };
        let length = length as usize;
        if length < 12 || !length.is_multiple_of(4) || length > MAX_BLOCK {
            return Err(Damaged);
        }
        let Some(raw) = rest.get(..length) else {
            return Ok(None);
        };
        let body = raw.get(8..length - 4).ok_or(Damaged)?;
        let block = match kind {
            INTERFACE => read_interface(body),
            PACKET => read_packet(body),
            STATISTICS => read_statistics(body),
            _ => Some(Block::Other),
        };
        self.at += length;
        Ok(Some((block.ok_or(Damaged)?, raw)))
    }
}

fn le32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

fn read_halves(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(le32(b, at)?) << 32 | u64::from(le32(b, at + 4)?))
}

/// Code and value of each option.
fn options(mut b: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = le32(b, 0).filter(|h| h & 0xffff != 0)?;
        let (code, length) = (head as u16, (head >> 16) as usize);
        let value = b.get(4..4 + length)?;
        b = b.get(4 + length.next_multiple_of(4)..)?;
        Some((code, value))
    })
}

fn read_interface(body: &[u8]) -> Option<Block> {
    let name = options(body.get(8..)?).find(|(code, _)| *code == IF_NAME);
    let text = String::from_utf8_lossy(name.map_or(&[], |(_, v)| v));
    Some(Block::Interface(text.into_owned()))
}

fn read_packet(body: &[u8]) -> Option<Block> {
    let kept = le32(body, 12)? as usize;
    let bytes = body.get(20..20usize.checked_add(kept)?)?.to_vec();
    let (mut direction, mut comment) = (None, None);
    for (code, value) in options(body.get(20 + kept.next_multiple_of(4)..)?) {
        match code {
            EPB_FLAGS => {
                direction = match le32(value, 0)? & 3 {
                    1 => Some(Direction::Ingress),
                    2 => Some(Direction::Egress),
                    _ => None,
                }
            }
            COMMENT => comment = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
    }
    Some(Block::Packet {
        interface: le32(body, 0)?,
        time: read_halves(body, 4)?,
        direction,
        comment,
        len: le32(body, 16)? as usize,
        bytes,
    })
}

fn read_statistics(body: &[u8]) -> Option<Block> {
    let mut counts = Counts::default();
    for (code, value) in options(body.get(12..)?) {
        let n = u64::from_le_bytes(*value.first_chunk()?);
        match code {
            ISB_IFRECV => counts.seen = n,
            ISB_IFDROP => counts.lost = n,
            ISB_FILTERACCEPT => counts.passed = n,
            ISB_USRDELIV => counts.written = n,
            _ => {}
        }
    }
    Some(Block::Statistics(le32(body, 0)?, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_from_pieces_of_any_size() {
        let mut file = Vec::new();
        section(&mut file);
        interface(&mut file, "web", 96, Some("tcp"));
        interface(&mut file, "a-longer-name", 96, None);
        let counts = Counts {
            seen: 9,
            passed: 7,
            lost: 2,
            written: 5,
        };
        statistics(&mut file, 1, 1 << 40, &counts);
        assert_eq!(file.len() % 4, 0);
        for size in [1, 5, file.len()] {
            let (mut blocks, mut found, mut again) = (Blocks::default(), Vec::new(), Vec::new());
            for piece in file.chunks(size) {
                blocks.push(piece);
                while let Some((block, raw)) = blocks.next_block().unwrap() {
                    found.push(block);
                    again.extend_from_slice(raw);
                }
            }
            assert_eq!(again, file);
            assert!(blocks.is_empty());
            let expected = [
                Block::Other,
                Block::Interface("web".into()),
                Block::Interface("a-longer-name".into()),
                Block::Statistics(1, counts),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn damage_is_told() {
        let mut blocks = Blocks::default();
        blocks.push(&[6, 0, 0, 0, 13, 0, 0, 0]);
        assert_eq!(blocks.next_block(), Err(Damaged));
        // A packet block whose data is longer than itself.
        let mut file = Vec::new();
        block(&mut file, PACKET, |out| {
            out.extend([0; 12]);
            out.extend(u32::MAX.to_le_bytes());
            out.extend([0; 4]);
        });
        let mut blocks = Blocks::default();
        blocks.push(&file);
        assert_eq!(blocks.next_block(), Err(Damaged));
    }
}
