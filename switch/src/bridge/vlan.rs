//! 802.1Q: which VLAN a frame received is in, and the tag it leaves with.
//!
//! We are a C-VLAN bridge (IEEE 802.1Q 5.9): only an outermost 0x8100 tag selects a VLAN. A frame with an 802.1ad tag (0x88a8)
//! outside is untagged to us and carried in the PVID with all its tags. Priority-tagged frames (VID 0) take the PVID as well;
//! if a further tag follows the priority tag they are refused, for without it the inner tag would select a VLAN
//! elsewhere.

use super::PortConfig;
use crate::frame::{DropReason, Frame};
use crate::wire::{EtherType, Meta};

/// Length of a tag: protocol identifier and control information.
const TAG_LEN: usize = 4;
/// Destination and source address, which stand before the tag.
const ADDRESSES: usize = 12;

/// The VLAN of a frame received by the port; `None` refuses it.
pub(super) fn classify(port: &PortConfig, meta: &Meta) -> Option<u16> {
    match meta.tag {
        Some(tag) if tag.tpid == EtherType::VLAN => match tag.vid() {
            0 if meta.tags > 1 => None,
            0 => port.pvid,
            vid => port.tagged.contains(vid).then_some(vid),
        },
        _ => port.pvid,
    }
}

/// Gives the frame the tag with which the port sends VLAN `vid`, or takes its tag away.
pub(super) fn egress(port: &PortConfig, vid: u16, frame: &mut Frame) -> Result<(), DropReason> {
    let tagged = port.tagged.contains(vid);
    if !tagged && !port.untagged.contains(vid) {
        return Err(DropReason::VlanEgress);
    }
    // By the bytes, not by what was parsed: a stage may have rewritten the frame.
    let tci = match frame.head().get(ADDRESSES..ADDRESSES + TAG_LEN) {
        Some(&[0x81, 0x00, a, b]) => Some(u16::from_be_bytes([a, b])),
        _ => None,
    };
    match (tci, tagged) {
        (None, false) => Ok(()),
        (Some(tci), true) => {
            let tci = (tci & 0xf000) | vid;
            write_tag(frame, tci)
        }
        (None, true) => {
            let Some(addresses) = frame.head().first_chunk::<ADDRESSES>().copied() else {
                return Err(DropReason::VlanEgress);
            };
            if !frame.push_front(TAG_LEN) {
                return Err(DropReason::VlanEgress);
            }
            if let Some(to) = frame.head_mut().first_chunk_mut() {
                *to = addresses;
            }
            write_tag(frame, vid)
        }
        (Some(_), false) => {
            let Some(addresses) = frame.head().first_chunk::<ADDRESSES>().copied() else {
                return Err(DropReason::VlanEgress);
            };
            if !frame.pull_front(TAG_LEN) {
                return Err(DropReason::VlanEgress);
            }
            match frame.head_mut().first_chunk_mut() {
                Some(to) => *to = addresses,
                None => return Err(DropReason::VlanEgress),
            }
            Ok(())
        }
    }
}

fn write_tag(frame: &mut Frame, tci: u16) -> Result<(), DropReason> {
    let [a, b] = tci.to_be_bytes();
    let tag = frame
        .head_mut()
        .get_mut(ADDRESSES..ADDRESSES + TAG_LEN)
        .ok_or(DropReason::VlanEgress)?;
    tag.copy_from_slice(&[0x81, 0x00, a, b]);
    Ok(())
}
