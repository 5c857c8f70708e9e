//! `vswitchctl port`.

use super::options::{PortOptions, PortPlace, Unset, changes, patch};
use super::{CtlError, Done, Session, show};
use crate::client::{ClientError, escape};
use crate::handover::{self, Handover};
use crate::model::{Topology, to_toml};
use crate::plane::PortView;
use clap::Subcommand;
use serde_json::Value;

#[derive(Debug, Subcommand)]
#[command(next_display_order = None)]
pub(super) enum Port {
    /// Add a port.
    Add {
        /// Its name.
        name: String,
        /// The network it belongs to.
        #[arg(long)]
        network: String,
        /// Hand over this open TAP queue (file descriptor of vswitchctl); the port is of kind fd.
        #[arg(long, value_name = "FD", conflicts_with_all = ["kind", "device", "netns"])]
        tap_fd: Option<i32>,
        #[command(flatten)]
        place: Box<PortPlace>,
        #[command(flatten)]
        options: Box<PortOptions>,
    },
    /// Delete ports.
    Del {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Change a port.
    Set {
        /// Its name.
        name: String,
        /// Move it to this network.
        #[arg(long)]
        network: Option<String>,
        #[command(flatten)]
        unset: Unset,
        #[command(flatten)]
        place: Box<PortPlace>,
        #[command(flatten)]
        options: Box<PortOptions>,
    },
    /// Show ports.
    Show {
        /// Only this one, with its settings.
        name: Option<String>,
    },
}

fn path(name: &str) -> String {
    format!("/v1/ports/{}", escape(name))
}

pub(super) async fn run(s: &Session, command: Port) -> Done {
    match command {
        Port::Add {
            name,
            network,
            tap_fd,
            place,
            options,
        } => {
            let mut body = patch(&*place);
            body.extend(options.patch());
            body.insert("network".into(), network.into());
            if let Some(fd) = tap_fd {
                body.insert("kind".into(), "fd".into());
                return hand_over(s, name, Value::Object(body), fd).await;
            }
            let body = Value::Object(body);
            let made = s.client.call("POST", &path(&name), Some(&body)).await?;
            if s.json { show::json(&made) } else { Ok(()) }
        }
        Port::Del { names } => {
            for name in names {
                s.client.call("DELETE", &path(&name), None).await?;
            }
            Ok(())
        }
        Port::Set {
            name,
            network,
            unset,
            place,
            options,
        } => {
            let mut body = patch(&*place);
            body.extend(options.patch());
            body.extend(network.map(|n| ("network".to_owned(), n.into())));
            unset.put(&mut body);
            let body = changes("port", &name, body)?;
            let now = s.client.call("PATCH", &path(&name), Some(&body)).await?;
            if s.json { show::json(&now) } else { Ok(()) }
        }
        Port::Show { name } => {
            let one = name.is_some();
            let ports: Vec<PortView> = match name {
                Some(n) => vec![s.client.get(&path(&n)).await?],
                None => s.client.get("/v1/ports").await?,
            };
            if s.json {
                return show::json(&ports);
            }
            let rows = ports.iter().map(row).collect();
            let head = [
                "PORT", "NETWORK", "KIND", "DEVICE", "NETNS", "MTU", "STATE", "REASON",
            ];
            show::table(
                &head,
                rows,
                "no ports: `vswitchctl port add NAME --network NETWORK`",
            )?;
            if one {
                return show::print(&settings(ports));
            }
            Ok(())
        }
    }
}

async fn hand_over(s: &Session, name: String, port: Value, number: i32) -> Done {
    let fd = vswitch_core::sys::scm::inherited(number);
    let fd = fd.map_err(|source| CtlError::Io {
        act: "taking up",
        thing: format!("file descriptor {number}"),
        source,
        remedy: "open the TAP queue in the program that starts vswitchctl, without close-on-exec",
    })?;
    let port = serde_json::from_value(port).map_err(|e| ClientError::Broken(e.to_string()))?;
    let request = Handover { name, port };
    let answer = handover::send(&s.socket, &request, &fd).await;
    let answer = answer.map_err(|source| ClientError::Unreachable {
        path: handover::path_beside(&s.socket),
        source,
    })?;
    let view = answer.map_err(ClientError::Refused)?;
    if s.json { show::json(&view) } else { Ok(()) }
}

/// What isn't by default, as in a topology file.
fn settings(ports: Vec<PortView>) -> String {
    let mut topology = Topology::default();
    topology
        .ports
        .extend(ports.into_iter().map(|p| (p.name, p.config)));
    format!("\n{}", to_toml(&topology))
}

fn row(p: &PortView) -> Vec<String> {
    vec![
        p.name.clone(),
        p.config.network.clone(),
        p.config.kind.as_str().into(),
        p.device.clone(),
        p.config.netns.clone().unwrap_or_else(|| "-".into()),
        p.config.mtu.to_string(),
        p.state.clone(),
        p.reason.clone().unwrap_or_default(),
    ]
}
