//! `vswitchctl events`.

use super::{CtlError, Done, Session, show};
use crate::client::ClientError;
use crate::events::{NAMES, Record};
use clap::builder::PossibleValuesParser;
use http_body_util::BodyExt;

#[derive(Debug, clap::Args)]
pub(super) struct Events {
    /// Only these events, such as port_down.
    #[arg(long, value_delimiter = ',', value_name = "EVENTS", value_parser = PossibleValuesParser::new(NAMES))]
    only: Vec<String>,
    /// End after this many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) async fn run(s: &Session, command: &Events) -> Done {
    let mut body = s.client.open("GET", "/v1/events", None).await?.into_body();
    let (mut text, mut left) = (Vec::new(), command.count.unwrap_or(u64::MAX));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ClientError::Broken(e.to_string()))?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let record: Record =
                serde_json::from_slice(&line).map_err(|e| ClientError::Broken(e.to_string()))?;
            if !command.only.is_empty() && !command.only.contains(&record.event) {
                continue;
            }
            if s.json {
                show::print(&String::from_utf8_lossy(&line))?;
            } else {
                show::print(&line_of(&record))?;
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

fn line_of(r: &Record) -> String {
    let secs = r.time / 1000 % 86_400;
    let (h, m, sec, ms) = (secs / 3600, secs / 60 % 60, secs % 60, r.time % 1000);
    let mut line = format!("{h:02}:{m:02}:{sec:02}.{ms:03} {}", r.event);
    let vlan = r.vlan.map(|v| v.to_string());
    for (name, value) in [
        ("network", &r.network),
        ("port", &r.port),
        ("other", &r.other),
        ("vlan", &vlan),
        ("mac", &r.mac),
    ] {
        if let Some(v) = value {
            line.push_str(&format!(" {name}={v}"));
        }
    }
    if let Some(reason) = &r.reason {
        line.push_str(&format!(": {reason}"));
    }
    line + "\n"
}
