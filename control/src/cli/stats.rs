//! `vswitchctl stats`.

use super::{Done, Session, show};
use crate::plane::{AcceleratorView, PortStats, Stats as Reading, Totals};
use crate::refusal::Refusal;
use std::fmt;

#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    /// Only this port.
    port: Option<String>,
}

pub(super) async fn run(s: &Session, command: &Stats) -> Done {
    let mut stats: Reading = s.client.get("/v1/stats").await?;
    if let Some(name) = &command.port {
        let names: Vec<String> = stats.ports.iter().map(|p| p.name.clone()).collect();
        stats.ports.retain(|p| p.name == *name);
        if stats.ports.is_empty() {
            let missing = Refusal::missing("showing counters of", "port", name, &names);
            return Err(crate::client::ClientError::Refused(missing).into());
        }
    }
    if s.json {
        return show::json(&stats);
    }
    let head = [
        "PORT",
        "NETWORK",
        "RX FRAMES",
        "RX BYTES",
        "TX FRAMES",
        "TX BYTES",
        "DROPS",
    ];
    show::table(&head, stats.ports.iter().map(row).collect(), "no ports")?;
    let fast = stats.accelerator.as_ref().map(|a| format!("{a}\n"));
    show::print(&format!("{}\n{}", stats.totals, fast.unwrap_or_default()))
}

fn row(p: &PortStats) -> Vec<String> {
    vec![
        p.name.clone(),
        p.network.clone(),
        p.rx_frames.to_string(),
        p.rx_bytes.to_string(),
        p.tx_frames.to_string(),
        p.tx_bytes.to_string(),
        drops(p),
    ]
}

impl fmt::Display for AcceleratorView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.on {
            let reason = self.reason.as_deref().unwrap_or("unknown");
            return write!(f, "fast path: off: {reason}");
        }
        write!(
            f,
            "fast path: {} ports, {} flows, {} frames, {} bytes",
            self.ports, self.flows, self.frames, self.bytes
        )?;
        match self.connections {
            0 => Ok(()),
            n => write!(f, "; {n} directions of connections by policy"),
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "received {} + copied {} + originated {} + split {} = sent {} + dropped {} + held {}",
            self.received,
            self.copied,
            self.originated,
            self.split,
            self.sent,
            self.dropped,
            self.held
        )
    }
}

/// Drops by reason, the most first.
pub(super) fn drops(p: &PortStats) -> String {
    let mut drops: Vec<(&String, &u64)> = p.drops.iter().collect();
    drops.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let texts: Vec<String> = drops.iter().map(|(r, n)| format!("{r} {n}")).collect();
    texts.join(", ")
}
