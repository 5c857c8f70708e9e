//! Traffic of a node: ping, frames of any bytes, kernel counters.

use std::time::Duration;

use crate::node::Node;
use crate::process::Output;

/// Python of the distribution, where `python3-scapy` is installed; another one may come first in PATH.
const PYTHON: &str = "/usr/bin/python3";

/// Sends the lines of stdin, each a frame in hexadecimal, by a packet socket.
const SENDER: &str = "\
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[1], 0))
for line in sys.stdin:
    s.send(bytes.fromhex(line))
";

impl Node {
    /// Three echo requests, 0.2 s apart, each with 2 s to be answered; returns how many were.
    #[track_caller]
    pub fn ping(&self, address: &str) -> usize {
        self.ping_with(address, &["-c", "3", "-i", "0.2", "-W", "2"])
            .stdout
            .matches(" ttl=")
            .count()
    }

    /// `ping` with arguments of its own (`-n -q` and so on), for sizes and counts.
    #[track_caller]
    pub fn ping_with(&self, address: &str, args: &[&str]) -> Output {
        self.run(&[&["ping", "-n"], args, &[address]].concat())
    }

    /// All three echo requests are answered.
    #[track_caller]
    pub fn assert_ping(&self, address: &str) {
        let answered = self.ping(address);
        assert_eq!(
            answered,
            3,
            "{} pings {address}: {answered} of 3 answered",
            self.name()
        );
    }

    /// No echo request is answered.
    #[track_caller]
    pub fn assert_no_ping(&self, address: &str) {
        let args = ["-c", "3", "-i", "0.2", "-W", "1"];
        let answered = self
            .ping_with(address, &args)
            .stdout
            .matches(" ttl=")
            .count();
        assert_eq!(
            answered,
            0,
            "{} mustn't reach {address}, {answered} of 3 answered",
            self.name()
        );
        // The kernel asks for the neighbour for 3 s, then fails what waits for the answer. Who pings again after
        // a change near that end would lose its first requests with it.
        self.ok(&["ip", "neigh", "flush", "to", address]);
    }

    /// Sends frames (from the destination MAC on, without FCS) of any bytes out of an interface.
    #[track_caller]
    pub fn send_frames(&self, interface: &str, frames: &[Vec<u8>]) {
        let mut lines = String::new();
        for frame in frames {
            lines.extend(frame.iter().map(|byte| format!("{byte:02x}")));
            lines.push('\n');
        }
        self.ok_with_input(&[PYTHON, "-c", SENDER, interface], lines.as_bytes());
    }

    /// Runs Python with everything of scapy imported; returns its stdout.
    #[track_caller]
    pub fn scapy(&self, script: &str) -> String {
        let script = format!("from scapy.all import *\nconf.verb = 0\n{script}\n");
        self.run_for(&[PYTHON, "-c", &script], Duration::from_secs(60))
            .expect_ok()
    }

    /// Sets one offload of an interface with ethtool: `offload("eth0", "tso", false)`.
    #[track_caller]
    pub fn offload(&self, interface: &str, feature: &str, on: bool) {
        self.ok(&[
            "ethtool",
            "-K",
            interface,
            feature,
            if on { "on" } else { "off" },
        ]);
    }

    /// A counter of the node's kernel as `nstat` names it: `TcpInCsumErrors`, `UdpInErrors`, `Icmp6InMsgs`.
    #[track_caller]
    pub fn kernel_counter(&self, name: &str) -> u64 {
        let text = self.ok(&["nstat", "--zeros", "--ignore", "--noupdate", name]);
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        value.unwrap_or_else(|| panic!("nstat doesn't know {name}: {text}"))
    }

    /// No TCP, UDP or ICMP checksum error has been counted in this node.
    #[track_caller]
    pub fn assert_no_checksum_errors(&self) {
        for name in [
            "TcpInCsumErrors",
            "UdpInCsumErrors",
            "IcmpInCsumErrors",
            "Udp6InCsumErrors",
            "Icmp6InCsumErrors",
        ] {
            let count = self.kernel_counter(name);
            assert_eq!(count, 0, "{name} in {}", self.name());
        }
    }
}
