//! The gateway without a worker: batches go in, verdicts and frames come out.

mod ahead;
mod leases;
mod rig;
