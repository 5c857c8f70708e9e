//! Ctrl-C: the first ends the bench after the sample under way, with what it has and everything cleaned up; the second at once.
//!
//! What is started inherits the blocked signals; the lab ends it by SIGKILL.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// The lab's directory, which a sudden end would leave.
static LEFT: OnceLock<PathBuf> = OnceLock::new();

/// Exit code of what Ctrl-C has ended (128 + SIGINT).
pub(crate) const CODE: u8 = 130;

/// Names the directory to remove at a sudden end.
pub(crate) fn removes(dir: PathBuf) {
    let _ = LEFT.set(dir);
}

/// Whether somebody wants it to end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Waits for signals from here on; to be called before any other thread is started.
pub(crate) fn listen() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("blocking signals")?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if ASKED.swap(true, Ordering::Relaxed) {
                // Namespaces and processes go with this one (PR_SET_PDEATHSIG).
                if let Some(dir) = LEFT.get() {
                    let _ = std::fs::remove_dir_all(dir);
                }
                std::process::exit(CODE.into());
            }
            eprintln!("vswitch-bench: ending after this sample; again to end at once");
        }
    });
    Ok(())
}
