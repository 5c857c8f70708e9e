//! `vswitchctl trace`: what would become of a frame, stage by stage.

use super::capture::summary::summary;
use super::{CtlError, Done, Session, show};
use crate::pcapng::{Block, Blocks};
use crate::plane::{TraceRequest, TraceView};
use crate::units::Mac;
use clap::Args;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
The frame takes the real stages' way, but nothing is learned, tracked, counted or sent. What isn't named is taken from what the \
switch knows: the port's MAC and address, the gateway's or the neighbour's MAC.

Examples:
  vswitchctl trace --from web --dst-ip 192.0.2.11 --dport 5432
  vswitchctl trace --from web --dst-ip 198.51.100.254 --proto udp --dport 53
  vswitchctl trace --from web --dst-ip 2001:db8::1 --icmp echo-request
  vswitchctl trace --file capture.pcapng --packet 3";

/// What is to be traced.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, next_display_order = None)]
pub(super) struct Trace {
    /// Whether IPv4 mustn't fragment it [default: true].
    #[arg(long, value_name = "BOOL")]
    dont_fragment: Option<bool>,
    /// Destination port.
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
    /// Destination address.
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["frame", "file"])]
    dst_ip: Option<IpAddr>,
    /// Destination MAC [default: the next hop's].
    #[arg(long, value_name = "MAC")]
    dst_mac: Option<Mac>,
    /// A frame of a file that `vswitchctl capture --write` made.
    #[arg(long, value_name = "FILE", conflicts_with_all = FIELDS)]
    file: Option<PathBuf>,
    /// The frame in hexadecimal digits.
    #[arg(long, value_name = "HEX", conflicts_with_all = FIELDS, conflicts_with = "file")]
    frame: Option<String>,
    /// The port that receives it [default: the one in the file].
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    from: Option<String>,
    /// Bytes of payload in each segment that offloads of the sender leave to be made [default: none, but in a given frame of TCP
    /// over the port's MTU].
    #[arg(long, value_name = "BYTES")]
    gso_size: Option<u16>,
    /// ICMP type [default: echo-request].
    #[arg(long, value_name = "TYPE")]
    icmp: Option<String>,
    /// Which packet of the file, counted from 1.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "file", value_parser = clap::value_parser!(u64).range(1..))]
    packet: u64,
    /// Bytes of payload behind the headers [default: 0].
    #[arg(long, value_name = "BYTES")]
    payload: Option<u16>,
    /// Protocol [default: tcp, or icmp with an ICMP type].
    #[arg(long)]
    proto: Option<String>,
    /// Source port, or identifier of an ICMP query [default: 49152].
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Source address [default: the port's].
    #[arg(long, value_name = "ADDRESS")]
    src_ip: Option<IpAddr>,
    /// Source MAC [default: the one configured for the port or learned at it].
    #[arg(long, value_name = "MAC")]
    src_mac: Option<Mac>,
    /// TCP flags, letters of F, S, R, P, A, U [default: S].
    #[arg(long, value_name = "FLAGS")]
    tcp_flags: Option<String>,
    /// TTL or hop limit [default: 64].
    #[arg(long)]
    ttl: Option<u8>,
    /// VLAN of its tag [default: untagged].
    #[arg(long)]
    vlan: Option<u16>,
}

/// Options that are fields of a frame.
const FIELDS: [&str; 13] = [
    "dont_fragment",
    "dport",
    "dst_ip",
    "dst_mac",
    "icmp",
    "payload",
    "proto",
    "sport",
    "src_ip",
    "src_mac",
    "tcp_flags",
    "ttl",
    "vlan",
];

fn unreadable(file: &Path, reason: impl Into<String>, remedy: &'static str) -> CtlError {
    CtlError::Usage {
        act: "reading",
        thing: format!("`{}`", file.display()),
        reason: reason.into(),
        remedy,
    }
}

/// A frame of a capture file, and the port that it was captured at.
fn read(file: &Path, number: u64) -> Result<(String, Vec<u8>), CtlError> {
    let bytes = std::fs::read(file).map_err(|source| CtlError::Io {
        act: "reading",
        thing: format!("`{}`", file.display()),
        source,
        remedy: "name a file that `vswitchctl capture --write` made",
    })?;
    let mut blocks = Blocks::default();
    blocks.push(&bytes);
    let (mut ports, mut left) = (Vec::new(), number);
    loop {
        let block = blocks.next_block().map_err(|e| {
            let remedy = "name a file that `vswitchctl capture --write` made";
            unreadable(file, e.to_string(), remedy)
        })?;
        match block {
            Some((Block::Interface(name), _)) => ports.push(name),
            Some((
                Block::Packet {
                    interface,
                    len,
                    bytes,
                    ..
                },
                _,
            )) => {
                left -= 1;
                if left > 0 {
                    continue;
                }
                if len != bytes.len() {
                    let reason = format!("packet {number} was cut to {} bytes", bytes.len());
                    return Err(unreadable(file, reason, "capture without --snaplen"));
                }
                let port = ports.get(interface as usize).cloned();
                return Ok((port.unwrap_or_default(), bytes));
            }
            Some(_) => {}
            None => {
                let reason = format!("it has no packet {number}");
                return Err(unreadable(file, reason, "name one that is there"));
            }
        }
    }
}

impl Trace {
    fn request(self) -> Result<TraceRequest, CtlError> {
        if let Some(file) = &self.file {
            let (port, bytes) = read(file, self.packet)?;
            return Ok(TraceRequest {
                from: self.from.unwrap_or(port),
                frame: Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
                gso_size: self.gso_size,
                ..TraceRequest::default()
            });
        }
        Ok(TraceRequest {
            from: self.from.unwrap_or_default(),
            frame: self.frame,
            src_mac: self.src_mac,
            dst_mac: self.dst_mac,
            vlan: self.vlan,
            src_ip: self.src_ip,
            dst_ip: self.dst_ip,
            proto: self.proto,
            sport: self.sport,
            dport: self.dport,
            icmp: self.icmp,
            tcp_flags: self.tcp_flags,
            ttl: self.ttl,
            dont_fragment: self.dont_fragment,
            payload: self.payload,
            gso_size: self.gso_size,
        })
    }
}

/// A frame in hexadecimal digits, in a line.
fn said(hex: &str) -> String {
    let digits = hex.as_bytes().chunks_exact(2);
    let byte = |d: &[u8]| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok();
    let bytes: Vec<u8> = digits.filter_map(byte).collect();
    format!("{}, {} bytes", summary(&bytes, bytes.len()), bytes.len())
}

pub(super) async fn run(s: &Session, command: Trace) -> Done {
    let body = serde_json::to_value(command.request()?).unwrap_or_default();
    let answer = s.client.call("POST", "/v1/trace", Some(&body)).await?;
    if s.json {
        return show::json(&answer);
    }
    let Ok(trace) = serde_json::from_value::<TraceView>(answer.clone()) else {
        return show::json(&answer);
    };
    show::print(&text(&trace))
}

fn text(t: &TraceView) -> String {
    let mut text = format!("port {}: {}\n", t.from, said(&t.frame));
    let row = |s: &crate::plane::StepView| {
        let place = match (&s.port, &s.network) {
            (Some(port), _) => format!("port {port}"),
            (None, Some(network)) => format!("network {network}"),
            (None, None) => String::new(),
        };
        vec![s.stage.clone(), s.decision.clone(), place, s.detail.clone()]
    };
    let rows = t.steps.iter().map(row).collect();
    text += &show::aligned(
        &["STAGE", "DECISION", "WHERE", "WHY"],
        rows,
        "no stage saw it",
    );
    for l in &t.sent {
        text += &match &l.drop {
            Some(why) => format!("port {}: dropped, {why}\n", l.port),
            None if l.frames > 1 => format!(
                "port {}: {} frames of {}\n",
                l.port,
                l.frames,
                said(&l.frame)
            ),
            None => format!("port {}: {}\n", l.port, said(&l.frame)),
        };
    }
    for b in &t.besides {
        text += &format!(
            "besides, port {} ({}): {}\n",
            b.port,
            b.kind,
            said(&b.frame)
        );
    }
    text += &match &t.reason {
        Some(why) => format!("{}: {why}\n", t.verdict),
        None => format!("{}\n", t.verdict),
    };
    text
}
