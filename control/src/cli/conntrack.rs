//! `vswitchctl conntrack`: connections of the gateways.

use super::{CtlError, Done, Session, show};
use crate::api::ConnectionEvent;
use crate::client::{ClientError, escape};
use crate::plane::{ConnectionCount, ConnectionView, Direction};
use crate::units::Cidr;
use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use std::net::SocketAddr;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Conntrack {
    /// Count connections, and what was done to them.
    Count,
    /// Watch connections begin and end.
    Events {
        /// End after this many.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// End connections; all, if nothing is named.
    Flush(Filter),
    /// Show connections.
    Show(Filter),
}

#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only with a destination, original or translated, in this prefix.
    #[arg(long, value_name = "PREFIX")]
    dst: Option<Cidr>,
    /// Show so many at most.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only with this source or destination port.
    #[arg(long)]
    port: Option<u16>,
    /// Only of this protocol: tcp, udp, icmp, icmp6, sctp or a number.
    #[arg(long)]
    protocol: Option<String>,
    /// Only with a source in this prefix.
    #[arg(long, value_name = "PREFIX")]
    src: Option<Cidr>,
    /// Only in this state, such as established.
    #[arg(long)]
    state: Option<String>,
}

impl Filter {
    fn query(&self) -> String {
        let named = [
            ("dst", self.dst.as_ref().map(ToString::to_string)),
            ("limit", self.limit.map(|l| l.to_string())),
            ("port", self.port.map(|p| p.to_string())),
            ("protocol", self.protocol.clone()),
            ("src", self.src.as_ref().map(ToString::to_string)),
            ("state", self.state.clone()),
        ];
        let set = named.into_iter().filter_map(|(k, v)| Some((k, v?)));
        let set: Vec<String> = set.map(|(k, v)| format!("{k}={}", escape(&v))).collect();
        format!("/v1/conntrack?{}", set.join("&"))
    }
}

fn side(d: &Direction, protocol: &str) -> String {
    if matches!(protocol, "tcp" | "udp" | "sctp") {
        let [src, dst] = [(d.src, d.src_port), (d.dst, d.dst_port)].map(SocketAddr::from);
        format!("{src} -> {dst}")
    } else if d.src_port | d.dst_port != 0 {
        format!("{} -> {} id {}", d.src, d.dst, d.src_port | d.dst_port)
    } else {
        format!("{} -> {}", d.src, d.dst)
    }
}

fn row(c: &ConnectionView) -> Vec<String> {
    let translated = (
        c.original.src,
        c.original.src_port,
        c.original.dst,
        c.original.dst_port,
    ) != (c.reply.dst, c.reply.dst_port, c.reply.src, c.reply.src_port);
    let reply = if translated {
        side(&c.reply, &c.protocol)
    } else {
        "reversed".into()
    };
    let bytes = show::scaled((c.original.bytes + c.reply.bytes) as f64);
    vec![
        c.protocol.clone(),
        c.state.clone(),
        side(&c.original, &c.protocol),
        reply,
        bytes,
        format!("{}s", c.expires),
    ]
}

pub(super) async fn run(s: &Session, command: Conntrack) -> Done {
    match command {
        Conntrack::Show(filter) => {
            let found: Vec<ConnectionView> = s.client.get(&filter.query()).await?;
            if s.json {
                return show::json(&found);
            }
            let rows = found.iter().map(row).collect();
            let head = ["PROTO", "STATE", "ORIGINAL", "REPLY", "BYTES", "EXPIRES"];
            show::table(&head, rows, "no connections")
        }
        Conntrack::Flush(filter) => {
            let ended = s.client.call("DELETE", &filter.query(), None).await?;
            if s.json {
                return show::json(&ended);
            }
            let n = ended["removed"].as_u64().unwrap_or_default();
            let plural = if n == 1 { "" } else { "s" };
            show::print(&format!("{n} connection{plural} ended\n"))
        }
        Conntrack::Count => {
            let count: ConnectionCount = s.client.get("/v1/conntrack/count").await?;
            if s.json {
                return show::json(&count);
            }
            let mut rows = vec![
                vec!["connections".to_owned(), count.connections.to_string()],
                vec!["at most".to_owned(), count.max.to_string()],
                vec!["external ports".to_owned(), count.mappings.to_string()],
            ];
            rows.extend(
                count
                    .counters
                    .iter()
                    .map(|(n, v)| vec![n.clone(), v.to_string()]),
            );
            show::table(&["WHAT", "COUNT"], rows, "")
        }
        Conntrack::Events { count } => events(s, count.unwrap_or(u64::MAX)).await,
    }
}

async fn events(s: &Session, mut left: u64) -> Done {
    let answer = s.client.open("GET", "/v1/conntrack/events", None).await?;
    let (mut body, mut text) = (answer.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ClientError::Broken(e.to_string()))?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if s.json {
                show::print(&String::from_utf8_lossy(&line))?;
            } else {
                let e: ConnectionEvent = serde_json::from_slice(&line)
                    .map_err(|e| ClientError::Broken(e.to_string()))?;
                show::print(&format!(
                    "{:8} {}\n",
                    e.event,
                    row(&e.connection).join("  ")
                ))?;
            }
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(());
            }
        }
    }
    Err(CtlError::Client(ClientError::Broken(
        "vswitchd ended".into(),
    )))
}
