//! What happens to frames before they are switched: mirrors, loop guard, rate limit, VLAN, source guard.
//!
//! Only for ports that have one of these configured.

use super::mirror::Tap;
use super::network::Network;
use super::port::BridgePort;
use super::vlan;
use crate::frame::{Batch, DropReason, Entry, Verdict};
use crate::policy::meter::wire_load;
use crate::worker::Cx;

/// Judges the frames of a batch from `port`; puts those that pass into a VLAN.
pub(super) fn screen(cx: &mut Cx, port: &BridgePort, net: &Network, batch: &mut Batch) {
    for e in &mut batch.entries {
        for tap in &port.taps_in {
            tap.copy(cx, &e.frame);
        }
        if e.verdict != Verdict::Next {
            continue;
        }
        match judge(cx, port, e) {
            Ok(()) => copy_vlan(cx, &net.taps, e),
            Err(why) => e.verdict = Verdict::Drop(why),
        }
    }
}

fn judge(cx: &Cx, port: &BridgePort, e: &mut Entry) -> Result<(), DropReason> {
    if port.vlan_aware {
        e.meta.vid = vlan::classify(&port.config, &e.meta).ok_or(DropReason::VlanIngress)?;
    }
    if let Some(guard) = &port.guard {
        guard.judge(e.frame.head(), &e.meta)?;
    }
    if let Some(meter) = &port.meters.ingress {
        let (_, bytes) = wire_load(&e.frame, &e.meta);
        if !meter.admit(cx.now, bytes) {
            return Err(DropReason::IngressRate);
        }
    }
    Ok(())
}

fn copy_vlan(cx: &mut Cx, taps: &[(u16, Tap)], e: &Entry) {
    for (vid, tap) in taps {
        if *vid == e.meta.vid {
            tap.copy(cx, &e.frame);
        }
    }
}
