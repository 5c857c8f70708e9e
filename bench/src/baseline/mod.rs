//! What plain I/O on the crates tun-tap and afpacket does: a frame per system call, no offloads, a thread per direction, no
//! table. The difference to it is what virtio-net headers and batches are worth.

pub(crate) mod packet;
pub(crate) mod tap;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nix::sched::{CloneFlags, setns};

/// A frame of any MTU that a device without offloads has.
const FRAME: usize = 65_536;

/// Where the two devices are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Between {
    /// Network namespaces (TAP), or interfaces of this one (packet).
    #[arg(num_args = 2, required = true)]
    ends: Vec<PathBuf>,
    /// Name of the TAP devices.
    #[arg(long, default_value = "eth0")]
    device: String,
}

fn enter(netns: &Path) -> anyhow::Result<()> {
    let file =
        std::fs::File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", netns.display()))
}
