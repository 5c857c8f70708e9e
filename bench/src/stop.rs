//! Ctrl-C: the first ends the bench after the sample under way, with what it has and everything cleaned up; the second at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};

static ASKED: AtomicBool = AtomicBool::new(false);

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
                std::process::exit(130);
            }
            eprintln!("vswitch-bench: ending after this sample; again to end at once");
        }
    });
    Ok(())
}
