//! tcpdump into a file, read back with tshark.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::node::Node;
use crate::process::{Background, run_here};

/// A running capture of one interface.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Background,
    file: PathBuf,
}

impl Node {
    /// Starts tcpdump on an interface and waits until it listens; `filter` in BPF syntax, may be empty.
    #[track_caller]
    pub fn capture(&self, interface: &str, filter: &str) -> Capture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = self
            .lab_dir()
            .join(format!("{}-{interface}-{number}.pcap", self.name()));
        let path = file.to_str().expect("the lab's directory is UTF-8");
        // -U: a packet is in the file as soon as it is seen. -Z root: no change of user, whom the
        // lab's directory and user namespace may not know.
        let argv = [
            "tcpdump",
            "-n",
            "-U",
            "-Z",
            "root",
            "--immediate-mode",
            // In KiB. Immediate mode takes a slot of the snapshot length per packet: the default holds 32.
            "-B",
            "16384",
            "-i",
            interface,
            "-w",
            path,
            filter,
        ];
        let mut tcpdump = self.spawn(&argv);
        tcpdump.wait_for("listening on");
        Capture { tcpdump, file }
    }
}

impl Capture {
    /// Ends the capture and returns its file, which lives as long as the lab.
    #[track_caller]
    pub fn stop(self) -> PathBuf {
        let output = self.tcpdump.interrupt();
        assert!(output.success(), "{output}");
        self.file
    }

    /// Ends the capture and returns how many frames it has, without the time that tshark takes to start.
    #[track_caller]
    pub fn count(self) -> usize {
        let bytes = std::fs::read(self.stop()).expect("read tcpdump's file");
        // A file header of 24 bytes, then frames with 16 bytes in front, the third word of which is the length.
        let mut rest = bytes.get(24..).expect("a pcap file");
        let mut frames = 0;
        while let Some((head, after)) = rest.split_first_chunk::<16>() {
            let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
            rest = after.get(length as usize..).expect("a whole frame");
            frames += 1;
        }
        frames
    }

    /// Ends the capture and returns one line per frame with the tab-separated tshark `fields`
    /// (`eth.src`, `vlan.id`, `ip.checksum.status` ...), of the frames that match the display filter.
    #[track_caller]
    pub fn fields(self, filter: &str, fields: &[&str]) -> Vec<String> {
        tshark_fields(&self.stop(), filter, fields)
    }
}

/// Reads any capture file (also a pcapng that the switch wrote) with tshark, checksums verified.
///
/// # Panics
/// When tshark can't read the file.
#[track_caller]
pub fn tshark_fields(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let path = file.to_str().expect("a UTF-8 path");
    let mut argv = vec!["tshark", "-n", "-r", path, "-T", "fields"];
    for check in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
    ] {
        argv.extend(["-o", check]);
    }
    if !filter.is_empty() {
        argv.extend(["-Y", filter]);
    }
    for field in fields {
        argv.extend(["-e", field]);
    }
    let output = run_here(&argv, Duration::from_secs(60)).expect("run tshark (package tshark)");
    output.expect_ok().lines().map(ToOwned::to_owned).collect()
}
