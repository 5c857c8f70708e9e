//! iperf3 between two nodes, its JSON report read.

use std::time::Duration;

use serde_json::Value;

use crate::node::Node;

/// Sums of one run over all its streams.
#[derive(Debug, Clone)]
pub struct Iperf {
    /// Payload bytes that arrived.
    pub received_bytes: u64,
    /// Payload rate at the receiver, bits per second.
    pub bits_per_second: f64,
    /// TCP segments the sender repeated; 0 for UDP.
    pub retransmits: u64,
    /// UDP datagrams lost; 0 for TCP.
    pub lost_datagrams: u64,
    /// UDP datagrams sent; 0 for TCP.
    pub datagrams: u64,
    /// The whole report.
    pub report: Value,
}

impl Node {
    /// Runs `iperf3 --client address ARGS` against an `iperf3 --server` that the caller started
    /// (see [`Node::iperf3_server`]). Bound the load in `args`: `["-t", "2"]`, `["-n", "64M"]`.
    ///
    /// # Panics
    /// When the run fails.
    #[track_caller]
    pub fn iperf3(&self, address: &str, args: &[&str]) -> Iperf {
        let argv = [&["iperf3", "--json", "--client", address], args].concat();
        let output = self.run_for(&argv, Duration::from_secs(60));
        assert!(output.success(), "{output}");
        let report: Value = serde_json::from_str(&output.stdout).expect("JSON of iperf3");
        let end = &report["end"];
        // UDP reports one sum; `sum` counts what the receiver missed.
        let received = if end["sum_received"].is_object() {
            &end["sum_received"]
        } else {
            &end["sum"]
        };
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Iperf {
            received_bytes: number(&received["bytes"]),
            bits_per_second: received["bits_per_second"].as_f64().unwrap_or(0.0),
            retransmits: number(&end["sum_sent"]["retransmits"]),
            lost_datagrams: number(&end["sum"]["lost_packets"]),
            datagrams: number(&end["sum"]["packets"]),
            report,
        }
    }

    /// An iperf3 server that listens; it serves one run after the other until dropped.
    #[track_caller]
    pub fn iperf3_server(&self) -> crate::Background {
        let mut server = self.spawn(&["iperf3", "--server", "--forceflush"]);
        server.wait_for("Server listening");
        server
    }
}
