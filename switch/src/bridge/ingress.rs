//! What happens to frames before they are switched: mirrors, loop guard, rate limit, VLAN, source guard.
//!
//! Only for ports that have one of these configured.

use super::mirror::Tap;
use super::network::Network;
use super::port::BridgePort;
use super::vlan;
use crate::frame::{Batch, DropReason, Entry, Verdict};
use crate::policy::meter::wire_load;
use crate::worker::{Cx, Step};

/// Judges the frames of a batch from `port`; puts those that pass into a VLAN. Mirrors and meters have seen what another worker
/// handed off.
pub(super) fn screen(cx: &mut Cx, port: &BridgePort, net: &Network, batch: &mut Batch) {
    let first = !batch.handed;
    for e in &mut batch.entries {
        for tap in port.taps_in.iter().filter(|_| first) {
            tap.copy(cx, &e.frame);
        }
        if e.verdict != Verdict::Next {
            continue;
        }
        match judge(cx, port, e, first) {
            Ok(()) if first => copy_vlan(cx, &net.taps, e),
            Ok(()) => {}
            Err(why) => {
                cx.note(|| Step::drop("ingress", why));
                e.verdict = Verdict::Drop(why);
            }
        }
    }
}

fn judge(cx: &mut Cx, port: &BridgePort, e: &mut Entry, first: bool) -> Result<(), DropReason> {
    if port.vlan_aware {
        let vid = vlan::classify(&port.config, &e.meta).ok_or(DropReason::VlanIngress)?;
        e.meta.vid = vid;
        cx.note(|| Step::new("ingress", "vlan").detail(vid));
    }
    if let Some(guard) = &port.guard {
        guard.judge(e.frame.head(), &e.meta)?;
        cx.note(|| Step::new("ingress", "guard passes").detail("it speaks for itself"));
    }
    if let Some(meter) = &port.meters.ingress
        && first
    {
        let (_, bytes) = wire_load(&e.frame, &e.meta);
        if !meter.take(cx, bytes) {
            return Err(DropReason::IngressRate);
        }
        cx.note(|| Step::new("ingress", "within rate"));
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
