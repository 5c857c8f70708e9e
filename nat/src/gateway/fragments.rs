//! Fragments on their way through the router: later ones take the way of the first.

use super::Gateway;
use super::flows::ZONE;
use super::forward::{Follow, Outcome};
use crate::frag::Tracked;
use vswitch_core::bridge::{Bridge, NetworkId};
use vswitch_core::clock::Nanos;
use vswitch_core::frame::{DropReason, Entry, Frame, Verdict};
use vswitch_core::wire::Meta;
use vswitch_core::worker::{Cx, Origin};

/// Frames and datagrams let go of per tick.
const BUDGET: usize = 64;

impl Gateway {
    /// A fragment, first or later.
    pub(super) fn fragment(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        e: &mut Entry,
    ) -> Result<Outcome, DropReason> {
        let now = cx.now;
        let zone = ZONE;
        let mut lost = Vec::new();
        let tracked = self
            .fragments
            .track(now, zone, &e.frame, &e.meta, &mut |f, _| lost.push(f));
        self.lose(lost);
        match tracked {
            Tracked::Whole => self.whole(cx, bridge, network, e).map(|(o, _)| o),
            Tracked::Follow(Some(follow)) => self.follow(cx, bridge, network, e, follow),
            Tracked::Follow(None) | Tracked::Drop(_) => Err(DropReason::Fragment),
            Tracked::First(key) => {
                let judged = self.whole(cx, bridge, network, e);
                let follow: Follow = judged.as_ref().map_or(None, |(_, follow)| *follow);
                let mut waiting: Vec<(Frame, Meta)> = Vec::new();
                let released = &mut |f: Frame, m: &Meta| waiting.push((f, *m));
                self.fragments.decide(&key, follow, released);
                // The first leaves with the batch, after these: order needn't be kept (RFC 791 3.2).
                for (frame, meta) in waiting {
                    self.release(cx, bridge, network, (frame, meta), follow);
                }
                judged.map(|(outcome, _)| outcome)
            }
            Tracked::Hold(key) => {
                let frame = std::mem::take(&mut e.frame);
                let mut lost = Vec::new();
                self.hold(1);
                let out = &mut |f, _| lost.push(f);
                self.fragments.hold(now, &key, frame, &e.meta, out);
                self.lose(lost);
                cx.tick_by(now.after(std::time::Duration::from_secs(2)));
                Ok(Outcome::Held)
            }
        }
    }

    /// A held fragment whose first one has been judged.
    fn release(
        &mut self,
        cx: &mut Cx,
        bridge: &mut Bridge,
        network: NetworkId,
        (frame, meta): (Frame, Meta),
        follow: Follow,
    ) {
        self.hold(-1);
        let mut e = Entry {
            frame,
            meta,
            verdict: Verdict::Next,
        };
        let outcome = match follow {
            Some(follow) => self.follow(cx, bridge, network, &mut e, follow),
            None => Err(DropReason::Fragment),
        };
        match outcome {
            Ok(Outcome::Send(out)) => self.send(cx, bridge, out, e.frame, Origin::Held),
            Ok(Outcome::Held) => {}
            Err(why) => self.counters.count_drop(why, 1),
        }
    }

    /// Held fragments that are given up.
    fn lose(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            drop(frame);
            self.hold(-1);
            self.counters.count_drop(DropReason::Fragment, 1);
        }
    }

    /// Lets go of what is too old.
    pub(super) fn age_fragments(&mut self, now: Nanos) -> Nanos {
        let mut lost = Vec::new();
        let next = self.fragments.tick(now, BUDGET, &mut |f, _| lost.push(f));
        self.lose(lost);
        next
    }
}
