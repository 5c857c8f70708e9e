//! What the demo and the agents say to each other: lines of JSON on a socket pair.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What an agent is asked to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Send ICMP echo requests.
    Ping { to: IpAddr, count: u16 },
    /// Send as much as goes over one TCP connection.
    Send { to: IpAddr, millis: u64 },
    /// Exchange datagrams one by one.
    Measure { to: IpAddr, millis: u64 },
}

/// What comes of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// From the holder: the agent runs. `names`: the containers' names are in its /etc/hosts.
    Started { pid: i32, names: bool },
    /// Round trips in nanoseconds; null for a lost one.
    Pinged { trips: Vec<Option<u64>> },
    /// Bytes the other end has confirmed, after so many nanoseconds; and bytes written in each tenth of a second.
    Sent {
        bytes: u64,
        nanos: u64,
        tenths: Vec<u64>,
    },
    /// Round trips in nanoseconds with how often each was seen, and how many were lost.
    Measured { counts: Vec<(u64, u64)>, lost: u64 },
    /// It couldn't be done.
    Failed { reason: String },
}

/// A message as its line.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}
