//! Asking what would become of a frame.
//!
//! # Theory of operation
//!
//! A frame that is asked about takes the way of one received, through the same code: there is no second implementation that could come
//! to differ. [`Cx::is_dry`] says that it is only asked about; whatever would change something that outlives the
//! call (learn, enter, count, charge a token bucket) then looks instead. Decisions are noted with [`Cx::note`], which costs frames that
//! are really forwarded one branch. What the stages emit meanwhile belongs to the answer and isn't sent; events and news are lost.

use super::{Cx, LinkState, Origin, Stage, Worker};
use crate::bridge::NetworkId;
use crate::frame::{Batch, DropReason, Frame, Verdict};
use crate::port::PortId;
use crate::wire;
use std::fmt;

/// Most decisions that are noted: a flood to hundreds of ports has as many.
const STEPS: usize = 512;

/// A decision on the way of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who decides.
    pub stage: &'static str,
    /// What.
    pub decision: &'static str,
    /// Why, in words.
    pub detail: String,
    /// The port that it is about.
    pub port: Option<PortId>,
    /// The network that it is about.
    pub network: Option<NetworkId>,
}

impl Step {
    /// A decision without particulars.
    #[must_use]
    pub fn new(stage: &'static str, decision: &'static str) -> Step {
        Step {
            stage,
            decision,
            detail: String::new(),
            port: None,
            network: None,
        }
    }

    /// A frame is dropped.
    #[must_use]
    pub fn drop(stage: &'static str, why: DropReason) -> Step {
        Step::new(stage, "drop").detail(why.as_str())
    }

    /// Says why.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Step {
        self.detail = detail.to_string();
        self
    }

    /// Says at which port.
    #[must_use]
    pub fn port(mut self, port: PortId) -> Step {
        self.port = Some(port);
        self
    }

    /// Says in which network.
    #[must_use]
    pub fn network(mut self, network: NetworkId) -> Step {
        self.network = Some(network);
        self
    }
}

/// What becomes of a frame in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It leaves by the ports of [`Trace::sent`].
    Sent,
    /// It waits: for a neighbour, or for a fragment that comes before it.
    Held,
    /// It is dropped, or consumed by the switch itself.
    Dropped(DropReason),
}

/// A frame as it leaves a port.
#[derive(Debug)]
pub struct Leaving {
    /// The port.
    pub port: PortId,
    /// The frame, or the first one that it is divided into; empty if it is dropped.
    pub frame: Vec<u8>,
    /// How many frames it is divided into.
    pub frames: usize,
    /// Why it doesn't leave.
    pub drop: Option<DropReason>,
}

impl Leaving {
    fn step(&self) -> Step {
        let step = match self.drop {
            Some(why) => Step::drop("egress", why),
            None if self.frames > 1 => {
                Step::new("egress", "sends").detail(format_args!("in {} frames", self.frames))
            }
            None => Step::new("egress", "sends"),
        };
        step.port(self.port)
    }
}

/// What would become of a frame.
#[derive(Debug)]
pub struct Trace {
    /// The decisions.
    pub steps: Vec<Step>,
    /// The end.
    pub outcome: Outcome,
    /// Where the frame goes.
    pub sent: Vec<Leaving>,
    /// What the switch sends besides: answers, requests for addresses, copies.
    pub emitted: Vec<(PortId, Vec<u8>, Origin)>,
}

impl Cx {
    /// Whether the frame at hand is only asked about: nothing may change that outlives the call.
    #[inline]
    #[must_use]
    pub fn is_dry(&self) -> bool {
        self.trace.is_some()
    }

    /// Notes a decision about a frame that is asked about.
    #[inline]
    pub fn note(&mut self, step: impl FnOnce() -> Step) {
        if let Some(steps) = &mut self.trace
            && steps.len() < STEPS
        {
            steps.push(step());
        }
    }
}

impl<S: Stage> Worker<S> {
    /// What would become of a frame received by a port, at this moment. Changes nothing.
    pub fn trace(&mut self, from: PortId, frame: Frame) -> Trace {
        let cx = &mut self.cx;
        let before = Cx {
            now: cx.now,
            worker: cx.worker,
            ..std::mem::take(cx)
        };
        (cx.now, cx.worker) = (before.now, before.worker);
        cx.trace = Some(Vec::new());
        let mut trace = self.rehearse(from, frame);
        let mut cx = std::mem::replace(&mut self.cx, before);
        trace.steps = cx.trace.take().unwrap_or_default();
        let emitted = cx.emits.into_iter();
        // A frame cut into fragments, or one that waited, was sent beside the batch.
        for (port, frame, origin) in emitted {
            if origin == Origin::Held {
                trace.outcome = Outcome::Sent;
                let leaving = self.leaves(port, frame);
                trace.sent.push(leaving);
            } else {
                trace.emitted.push((port, frame.to_vec(), origin));
            }
        }
        trace
    }

    fn rehearse(&mut self, from: PortId, frame: Frame) -> Trace {
        let mut trace = Trace {
            steps: Vec::new(),
            outcome: Outcome::Dropped(DropReason::NoPort),
            sent: Vec::new(),
            emitted: Vec::new(),
        };
        let Some(slot) = self.out.slot(from) else {
            return trace;
        };
        if slot.link == LinkState::AdminDown {
            trace.outcome = Outcome::Dropped(DropReason::PortDown);
            let down = || Step::drop("receive", DropReason::PortDown).port(from);
            self.cx.note(down);
            return trace;
        }
        let Some(meta) = wire::parse(frame.head(), frame.len()) else {
            trace.outcome = Outcome::Dropped(DropReason::Runt);
            self.cx.note(|| Step::drop("receive", DropReason::Runt));
            return trace;
        };
        let mut batch = Batch::new(from);
        // An empty batch has room.
        let _ = batch.push(frame);
        for e in &mut batch.entries {
            e.meta = meta;
        }
        self.stage.rehearse(&mut self.cx, &mut batch);
        for e in batch.entries.drain(..) {
            let to = match e.verdict {
                Verdict::Forward(to) => vec![to],
                Verdict::Hairpin => vec![from],
                Verdict::Flood(set) => {
                    let (first, len) = (set.start as usize, set.len as usize);
                    let ports = self.cx.flood.get(first..first + len);
                    ports.unwrap_or_default().to_vec()
                }
                Verdict::Held => {
                    trace.outcome = Outcome::Held;
                    continue;
                }
                Verdict::Drop(why) => {
                    trace.outcome = Outcome::Dropped(why);
                    continue;
                }
                Verdict::Gateway | Verdict::Next => vec![],
            };
            trace.outcome = Outcome::Dropped(DropReason::NoDestination);
            for port in to {
                let mut frame = e.frame.duplicate();
                let leaving = match self
                    .stage
                    .egress(&mut self.cx, from, port, &mut frame, &e.meta)
                {
                    Ok(()) => {
                        let leaving = self.leaves(port, frame);
                        self.cx.note(|| leaving.step());
                        leaving
                    }
                    Err(why) => Leaving {
                        port,
                        frame: Vec::new(),
                        frames: 0,
                        drop: Some(why),
                    },
                };
                match leaving.drop {
                    None => trace.outcome = Outcome::Sent,
                    Some(why) if trace.outcome != Outcome::Sent => {
                        trace.outcome = Outcome::Dropped(why);
                    }
                    Some(_) => {}
                }
                trace.sent.push(leaving);
            }
        }
        trace
    }

    /// A frame that the stages let go.
    fn leaves(&mut self, port: PortId, frame: Frame) -> Leaving {
        let (mut first, mut frames) = (None, 0);
        let passed = self.out.finished(port, frame, &mut |f| {
            frames += 1;
            first.get_or_insert_with(|| f.to_vec());
        });
        Leaving {
            port,
            frame: first.unwrap_or_default(),
            frames,
            drop: passed.err(),
        }
    }
}
