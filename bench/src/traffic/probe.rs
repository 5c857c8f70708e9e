//! How long a switch takes from its start: until it says it is ready, and until a first datagram has gone through it and
//! back. Both are times of CLOCK_MONOTONIC, so that the two processes' times can be subtracted.

use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::{Ends, monotonic, print, ready};

/// Between two attempts.
const STEP: Duration = Duration::from_micros(200);

/// When the first answer came.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub(crate) at: u64,
}

/// When the program was started and when it was ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) started: u64,
    pub(crate) ready: u64,
    pub(crate) pid: u32,
}

pub(super) fn first_reply(ends: &Ends) -> anyhow::Result<Reply> {
    ready()?;
    let mut answer = [0; 64];
    loop {
        // Anew each time: an address of the container may have come meanwhile.
        let socket = UdpSocket::bind("0.0.0.0:0").context("opening a UDP socket")?;
        if socket.connect(ends.address).is_ok() {
            socket
                .set_read_timeout(Some(STEP))
                .context("setting a time limit to receive")?;
            // One socket for several attempts, or a late answer would find none.
            for _ in 0..100 {
                if socket.send(b"probe").is_ok() && socket.recv(&mut answer).is_ok() {
                    return Ok(Reply { at: monotonic() });
                }
            }
        }
        thread::sleep(STEP);
    }
}

pub(super) fn start(argv: &[String]) -> anyhow::Result<()> {
    let (program, args) = argv.split_first().context("no program named")?;
    // Without close-on-exec, so that the program has the write end under the same number.
    let (read, write) = nix::unistd::pipe().context("opening a pipe")?;
    let mut command = Command::new(program);
    command
        .args(args)
        .arg("--ready-fd")
        .arg(write.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let started = monotonic();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    drop(write);
    // vswitchd says `ready`, slirp4netns `1`.
    let mut said = [0];
    let read = std::fs::File::from(read).read_exact(&mut said);
    let at = monotonic();
    ensure!(
        read.is_ok() && matches!(&said, b"r" | b"1"),
        "{program} ended before it was ready"
    );
    print(&Started {
        started,
        ready: at,
        pid: child.id(),
    })?;
    child
        .wait()
        .with_context(|| format!("waiting for {program}"))?;
    Ok(())
}
