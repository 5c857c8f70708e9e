//! `vswitchctl attach`: connects a container in one command.

use super::options::{PortOptions, patch, with_length};
use super::{CtlError, Done, Session, show};
use crate::client::escape;
use crate::units::{Cidr, Mac};
use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use std::net::IpAddr;

const AFTER_HELP: &str = "\
Examples:
  vswitchctl attach lan --pid 4711 --ip 192.0.2.10/24 --gw 192.0.2.1
  vswitchctl attach lan --netns blue --ip 192.0.2.11/24,2001:db8::11/64 --type veth";

#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Device {
    Tap,
    Veth,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, next_display_order = None)]
#[command(group = ArgGroup::new("container").required(true).args(["netns", "pid"]))]
pub(super) struct Attach {
    /// The network to connect it to.
    network: String,
    /// Name of the container's interface.
    #[arg(long, default_value = "eth0")]
    device: String,
    /// Default gateways.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    gw: Vec<IpAddr>,
    /// Addresses of the interface.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ADDRESS/LEN",
        value_parser = with_length,
        required = true
    )]
    ip: Vec<Cidr>,
    /// Its MAC address.
    #[arg(long)]
    mac: Option<Mac>,
    /// Name of the port [default: of the process or namespace].
    #[arg(long)]
    name: Option<String>,
    /// The container's network namespace: a path, or a name under /run/netns.
    #[arg(long)]
    netns: Option<String>,
    /// A process of the container.
    #[arg(long)]
    pid: Option<u32>,
    /// How it is connected.
    #[arg(long = "type", value_enum, default_value = "tap")]
    kind: Device,
    /// VLAN of the container, in a VLAN-aware network.
    #[arg(long, conflicts_with = "pvid")]
    vlan: Option<u16>,
    #[command(flatten)]
    options: Box<PortOptions>,
}

pub(super) async fn run(s: &Session, c: Attach) -> Done {
    let (netns, default) = match (&c.netns, c.pid) {
        (Some(n), _) => (n.clone(), n.rsplit('/').next().unwrap_or(n).to_owned()),
        (None, Some(pid)) => (format!("pid:{pid}"), format!("pid{pid}")),
        (None, None) => {
            return Err(CtlError::Usage {
                act: "attaching",
                thing: "a container".into(),
                reason: "it isn't named".into(),
                remedy: "add --netns or --pid",
            });
        }
    };
    let name = c.name.unwrap_or(default);
    let mut body = patch(&serde_json::json!({
        "network": c.network, "netns": netns, "device": c.device, "kind": c.kind, "addresses": c.ip, "gateways": c.gw,
    }));
    body.extend(c.options.patch());
    body.extend(c.mac.map(|m| ("mac".to_owned(), m.to_string().into())));
    body.extend(c.vlan.map(|v| ("pvid".to_owned(), v.into())));
    let path = format!("/v1/ports/{}", escape(&name));
    let made = s
        .client
        .call("POST", &path, Some(&Value::Object(body)))
        .await?;
    if s.json {
        return show::json(&made);
    }
    show::print(&format!("port {name}\n"))
}
