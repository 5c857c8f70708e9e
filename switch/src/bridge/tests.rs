//! Frames in and out of a bridge.

use super::fdb::{FdbCursor, FlushFilter};
use super::*;
use crate::clock::Nanos;
use crate::frame::{Batch, DropReason, Frame, GsoType, Verdict, VnetHdr};
use crate::port::PortId;
use crate::wire::{self, MacAddr};
use crate::worker::{Cx, Event, Origin, Stage, Sync};
use std::time::Duration;

mod gateway;
mod guarding;
mod snooping;
mod switching;

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
struct Fate {
    /// Ports it left by, in order, with its bytes.
    out: Vec<(u16, Vec<u8>)>,
    /// Frames emitted beside it: copies and frames of our own.
    emitted: Vec<(u16, Vec<u8>, Origin)>,
    drops: Vec<DropReason>,
}

impl Fate {
    fn ports(&self) -> Vec<u16> {
        self.out.iter().map(|(p, _)| *p).collect()
    }
}

/// A bridge with a clock of its own, and what a worker does around it.
struct Rig {
    bridge: Bridge,
    cx: Cx,
    events: Vec<Event>,
    news: Vec<Sync>,
}

const NET: NetworkId = NetworkId(0);

impl Rig {
    /// A network with ports 0..n.
    fn new(net: NetworkConfig, n: u16) -> Rig {
        let mut rig = Rig::bare(Bridge::new(), (0, 1));
        rig.bridge.set_network(NET, net);
        for p in 0..n {
            rig.port(p, |_| {});
        }
        rig
    }

    fn bare(bridge: Bridge, worker: (u16, u16)) -> Rig {
        Rig {
            bridge,
            cx: Cx {
                now: Nanos(3_600_000_000_000),
                worker,
                ..Cx::default()
            },
            events: Vec::new(),
            news: Vec::new(),
        }
    }

    fn port(&mut self, p: u16, change: impl FnOnce(&mut PortConfig)) {
        let mut c = PortConfig::new(NET);
        c.loop_guard = false;
        change(&mut c);
        self.bridge.set_port(PortId(p), c);
    }

    fn send(&mut self, port: u16, bytes: &[u8]) -> Fate {
        self.send_frame(port, Frame::from_bytes(bytes).expect("fits"))
    }

    fn send_frame(&mut self, port: u16, frame: Frame) -> Fate {
        // Whoever asks beforehand is told the same.
        self.cx.trace = Some(Vec::new());
        let (pending, events) = (std::mem::take(&mut self.cx.emits), self.events.len());
        let asked = self.pass(Batch::new(PortId(port)), frame.duplicate());
        self.cx.trace = None;
        self.cx.emits = pending;
        self.events.truncate(events);
        let fate = self.pass(Batch::new(PortId(port)), frame);
        assert_eq!((&asked.out, &asked.drops), (&fate.out, &fate.drops));
        fate
    }

    /// A frame that another worker has received, and handed off.
    fn hand(&mut self, port: u16, bytes: &[u8]) -> Fate {
        let mut batch = Batch::new(PortId(port));
        batch.handed = true;
        self.pass(batch, Frame::from_bytes(bytes).expect("fits"))
    }

    /// A frame that is only asked about.
    fn ask(&mut self, port: u16, bytes: &[u8]) -> Fate {
        self.cx.trace = Some(Vec::new());
        let frame = Frame::from_bytes(bytes).expect("fits");
        let fate = self.pass(Batch::new(PortId(port)), frame);
        assert!(self.cx.trace.take().is_some_and(|t| !t.is_empty()));
        fate
    }

    fn pass(&mut self, mut batch: Batch, frame: Frame) -> Fate {
        let from = batch.ingress;
        batch.push(frame).expect("room");
        for e in &mut batch.entries {
            e.meta = wire::parse(e.frame.head(), e.frame.len()).expect("whole header");
        }
        self.bridge.run(&mut self.cx, &mut batch);
        let mut fate = Fate {
            out: Vec::new(),
            emitted: Vec::new(),
            drops: Vec::new(),
        };
        let e = batch.entries.pop().expect("one frame");
        let to: Vec<PortId> = match e.verdict {
            Verdict::Forward(p) => vec![p],
            Verdict::Hairpin => vec![from],
            Verdict::Flood(s) => {
                self.cx.flood[s.start as usize..(s.start + s.len) as usize].to_vec()
            }
            Verdict::Drop(why) => {
                fate.drops.push(why);
                vec![]
            }
            Verdict::Next | Verdict::Gateway | Verdict::Held => vec![],
        };
        for p in to {
            let mut copy = e.frame.duplicate();
            match self
                .bridge
                .egress(&mut self.cx, from, p, &mut copy, &e.meta)
            {
                Ok(()) => fate.out.push((p.0, copy.to_vec())),
                Err(why) => fate.drops.push(why),
            }
        }
        self.collect(&mut fate);
        fate
    }

    fn collect(&mut self, fate: &mut Fate) {
        self.cx.flood.clear();
        fate.emitted.extend(
            self.cx
                .emits
                .drain(..)
                .map(|(p, f, o)| (p.0, f.to_vec(), o)),
        );
        self.events.append(&mut self.cx.events);
        self.news.append(&mut self.cx.news);
    }

    /// Lets time pass, ticking whenever the bridge wants to be; returns what it sent by itself.
    fn wait(&mut self, by: Duration) -> Vec<(u16, Vec<u8>, Origin)> {
        let end = self.cx.now.after(by);
        let mut fate = Fate {
            out: Vec::new(),
            emitted: Vec::new(),
            drops: Vec::new(),
        };
        for _ in 0..100_000 {
            let due = self.bridge.tick(&mut self.cx);
            self.collect(&mut fate);
            assert!(due > self.cx.now, "a tick asks for another at once");
            if due > end {
                self.cx.now = end;
                return fate.emitted;
            }
            self.cx.now = due;
        }
        panic!("ticks never end");
    }

    fn secs(&mut self, n: u64) -> Vec<(u16, Vec<u8>, Origin)> {
        self.wait(Duration::from_secs(n))
    }
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

const ALL: MacAddr = MacAddr::BROADCAST;

/// A 60-byte frame of an EtherType nobody looks into.
fn plain(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    tagged(dst, src, &[])
}

/// The same with tags (protocol, control information).
fn tagged(dst: MacAddr, src: MacAddr, tags: &[(u16, u16)]) -> Vec<u8> {
    let mut f = [dst.0, src.0].concat();
    for (tpid, tci) in tags {
        f.extend(tpid.to_be_bytes());
        f.extend(tci.to_be_bytes());
    }
    f.extend([0x88, 0xb6]);
    f.resize(60 + 4 * tags.len(), 0xab);
    f
}
